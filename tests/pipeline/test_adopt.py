"""Foreign ONNX files become runs, which are exported, built and checked without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from depthkit.engines.build import runnable
from depthkit.errors import BackendError, BundleError, DataError, DepthkitError, EngineError, GateError, SpecError
from depthkit.export.onnx_file import export_onnx
from depthkit.export.original import Original, prepare
from depthkit.export.recipe import ExportOptions, find_current
from depthkit.files import sha256
from depthkit.onnx_graph import describe_onnx
from depthkit.pipeline.adopt import AdoptOptions, adopt_file
from depthkit.pipeline.calibration import PrecisionOptions
from depthkit.pipeline.export import EngineOptions, export_run
from depthkit.pipeline.runs import open_source
from depthkit.pipeline.tell import silent
from depthkit.reference import read_reference, reference_path
from depthkit.runtime.load import load
from depthkit.spec import Dim, Preprocessing
from depthkit.testing import assert_parity
from depthkit.train.bundle import read_bundle
from depthkit.train.document import read_document

from ..foreign import depth_file

Adopt = Callable[..., Path]


@pytest.fixture
def adopt(tmp_path: Path, photos: Path) -> Adopt:
    """Adopt a file, with its own options of `depth_file`."""

    def make(options: AdoptOptions | None = None, **file: object) -> Path:
        path = depth_file(tmp_path / "net.onnx", **file)  # type: ignore[arg-type]
        given = options or AdoptOptions(str(photos), "metres", Preprocessing())
        adopt_file(path, tmp_path / "runs" / "net", given, silent)
        return tmp_path / "runs" / "net"

    return make


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("shrink", "rank"), [(1, 4), (2, 3)])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_graph_answers_as_the_original_does(
    adopt: Adopt, photos: Path, layout: str, shrink: int, rank: int, color: str
) -> None:
    """The export's own check compares the nodes that were added with NumPy, and would fail."""
    usual = Preprocessing(color, (0.3, 0.5, 0.6), (0.2, 0.3, 0.4), 200.0)  # type: ignore[arg-type]
    run = adopt(AdoptOptions(str(photos), "relative", usual), layout=layout, shrink=shrink, rank=rank)
    made = export_onnx(open_source(run), ExportOptions())
    reference = read_reference(made.reference)
    assert not reference.is_metric
    assert np.ptp(reference.depths) > 0.5, "an answer that is constant would prove nothing"
    with load(made.path) as session:
        assert session.spec.answers == "relative"
        assert_parity(session, reference, precision="fp32")


def test_reference_is_what_the_file_answers(adopt: Adopt) -> None:
    """Computed here once more, by nothing of depthkit but the frames."""
    import onnxruntime

    run = adopt()
    reference = read_reference(export_onnx(open_source(run), ExportOptions()).reference)
    session = onnxruntime.InferenceSession(str(run / "model.onnx"), providers=["CPUExecutionProvider"])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = ((reference.images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    (answers,) = session.run(None, {"pixels": pixels})
    assert np.abs(reference.depths - answers[:, 0].clip(0, 1000)).max() < 1e-4


@pytest.mark.parametrize("camera", [(64, 96), (70, 100)], ids=["whole ratio", "other ratio"])
@pytest.mark.parametrize("batch", [1, 2, Dim("batch", 1, 2, 4)], ids=str)
def test_frames_of_a_camera_and_batches(adopt: Adopt, camera: tuple[int, int], batch: int | Dim) -> None:
    run = adopt(shrink=2)
    made = export_onnx(open_source(run), ExportOptions(camera=camera, batch=batch))
    with load(made.path) as session:
        assert (session.spec.size, session.spec.network_size) == (camera, (32, 48))
        assert_parity(session, read_reference(made.reference), precision="fp32")


def test_share_becomes_metres_within_the_range(adopt: Adopt, photos: Path) -> None:
    options = AdoptOptions(str(photos), "share", Preprocessing(), depth_range=(1.0, 8.0))
    made = export_onnx(open_source(adopt(options, gain=0.3)), ExportOptions())
    reference = read_reference(made.reference)
    assert reference.is_metric
    assert reference.depths.min() >= 1
    assert reference.depths.max() == 8, "the file answers about 4, which is more than the whole range"


@pytest.mark.parametrize("name", ["image", "depth", "camera.Mul_3"])
def test_names_inside_the_file_may_be_those_of_the_camera_graph(adopt: Adopt, name: str) -> None:
    run = adopt(input_name=name, outputs=("image" if name == "depth" else "depth",))
    assert export_onnx(open_source(run), ExportOptions()).path.is_file()


def test_other_sizes_if_the_file_is_dynamic(adopt: Adopt, photos: Path) -> None:
    options = AdoptOptions(str(photos), "metres", Preprocessing(), size=(32, 48))
    source = open_source(adopt(options, size=("h", "w"), shrink=4))
    with load(export_onnx(source, ExportOptions(size=(40, 64))).path) as session:
        assert session.spec.size == (40, 64)
    with pytest.raises(SpecError, match=r"30x50 .*drops|30x50.*8x13.*nearest.*28x48.*4|nearest"):
        source.spec_at((30, 50))


def test_work_is_counted_at_each_size(adopt: Adopt, photos: Path) -> None:
    options = AdoptOptions(str(photos), "metres", Preprocessing(), size=(32, 48))
    source = open_source(adopt(options, size=("h", "w")))
    assert source.spec_at(None).macs == 32 * 48 * (8 * 27 + 72)
    assert source.spec_at((64, 48)).macs == 2 * source.spec_at(None).macs


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_precision_is_built_and_passes(adopt: Adopt, precision: str) -> None:
    run = adopt()
    document = read_document(run)
    chosen = PrecisionOptions(() if precision == "fp32" else (precision,))  # type: ignore[arg-type]
    options = ExportOptions(chosen.precision, calibration=chosen.calibration(document, None))
    backend = "openvino" if precision == "bf16" else "auto"
    if precision == "bf16" and "openvino" not in runnable():
        pytest.skip("ONNX Runtime has no CPU kernels for BF16, and OpenVINO is not installed")
    said: list[tuple[str, str]] = []
    (engine,) = export_run(run, options, EngineOptions((backend,)), lambda mark, text: said.append((mark, text)))
    assert engine.is_file()
    assert ("held-out" in str(said)) == (precision == "int8")


def test_nothing_is_made_twice(adopt: Adopt, photos: Path) -> None:
    run = adopt()
    made = export_onnx(open_source(run), ExportOptions()).path
    assert find_current(run, read_document(run), ExportOptions()) == made
    adopt(AdoptOptions(str(photos), "metres", Preprocessing("BGR")))
    assert find_current(run, read_document(run), ExportOptions()) is None, "it was adopted in another way"


def test_changed_weight_fails_the_gate(adopt: Adopt) -> None:
    made = export_onnx(open_source(adopt()), ExportOptions())
    model = onnx.load(made.path)
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "second")
    values = numpy_helper.to_array(kernel).copy()
    values[0, 0, 0, 0] += 0.01
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
    onnx.save(model, made.path)
    assert not describe_onnx(made.path).intact
    with load(made.path) as session, pytest.raises(AssertionError, match="mm"):
        assert_parity(session, read_reference(reference_path(made.path)), precision="fp32")


def test_weights_in_other_files_are_stored_in_one(tmp_path: Path, photos: Path) -> None:
    plain = depth_file(tmp_path / "plain.onnx")
    model = onnx.load(plain)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    run = tmp_path / "run"
    options = AdoptOptions(str(photos), "metres", Preprocessing())
    adopt_file(tmp_path / "net.onnx", run, options, silent)
    (tmp_path / "weights.bin").unlink()
    assert export_onnx(open_source(run), ExportOptions()).path.is_file()
    with pytest.raises(EngineError, match=r"weights\.bin, which is missing"):
        adopt_file(tmp_path / "net.onnx", tmp_path / "other", options, silent)


@pytest.mark.parametrize(
    ("file", "options", "error", "words"),
    [
        ({"batch": 4}, {}, DepthkitError, "fixed batch of 4"),
        ({"size": ("h", "w")}, {}, DepthkitError, r"dynamic.*--size"),
        ({"size": (32, 48)}, {"size": (64, 48)}, DepthkitError, "fixed size of 32x48"),
        ({"outputs": ("a", "b")}, {}, DepthkitError, r"several outputs.*--output.*a float32.*b float32"),
        ({"outputs": ("a", "b")}, {"output": "c"}, DepthkitError, r"no output c.*a, b"),
        ({}, {"input": "x"}, DepthkitError, r"no input x.*pixels"),
        ({"dtype": TensorProto.DOUBLE}, {}, DepthkitError, r"no output that is a depth map.*float64"),
        ({"dtype": TensorProto.INT32}, {}, DepthkitError, r"no output that is a depth map.*int32"),
        ({"layout": "NHWC"}, {"layout": "NCHW"}, DepthkitError, "no input that takes pictures"),
        ({"opset": 9}, {}, EngineError, "opset 9"),
        ({"opset": 999}, {}, EngineError, "opset 999"),
        ({"answer": "Constant"}, {}, GateError, r"constant.*normalised otherwise"),
        ({"answer": "NaN"}, {}, GateError, r"NaN.*normalised otherwise"),
        ({}, {"answers": "share"}, DepthkitError, "--depth-range"),
        ({}, {"answers": "inverse", "depth_range": (0.0, 1.0)}, DepthkitError, "no effect"),
        ({}, {"depth_range": (9.0, 1.0)}, SpecError, "LOW < HIGH"),
        ({}, {"focal": 518.9}, SpecError, "width of the picture"),
        ({}, {"frames": "nowhere"}, DataError, "nowhere"),
    ],
)
def test_what_cannot_be_adopted_is_refused_and_nothing_written(
    adopt: Adopt,
    photos: Path,
    tmp_path: Path,
    file: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    given = replace(AdoptOptions(str(photos), "metres", Preprocessing()), **options)
    with pytest.raises(error, match=words) as caught:
        adopt(given, **file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_frames_that_are_no_pictures_are_refused(adopt: Adopt, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"notes\.txt"):
        adopt(AdoptOptions(str(tmp_path / "notes.txt"), "metres", Preprocessing()))


def test_one_picture_is_enough_without_int8(adopt: Adopt, photos: Path) -> None:
    run = adopt(AdoptOptions(str(photos / "00.png"), "metres", Preprocessing()))
    assert len(read_reference(export_onnx(open_source(run), ExportOptions()).reference).images) == 1


def test_export_of_depthkit_is_refused(pristine_exports: Path, photos: Path, tmp_path: Path) -> None:
    exported = pristine_exports / "compact-32x48.fp32.onnx"
    with pytest.raises(DepthkitError, match="export of depthkit already"):
        adopt_file(exported, tmp_path / "run", AdoptOptions(str(photos), "metres", Preprocessing()), silent)


def test_operators_that_engines_do_not_know_are_refused(tmp_path: Path, photos: Path) -> None:
    path = depth_file(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Mystery", ["answer"], ["secret"], domain="acme.ops"))
    model.opset_import.append(helper.make_opsetid("acme.ops", 1))
    onnx.save(model, path)
    with pytest.raises(EngineError, match=r"acme\.ops\.Mystery"):
        adopt_file(path, tmp_path / "run", AdoptOptions(str(photos), "metres", Preprocessing()), silent)


def test_shapes_that_depend_on_values_are_refused_at_export(tmp_path: Path, photos: Path) -> None:
    path = depth_file(tmp_path / "net.onnx")
    model = onnx.load(path)
    last = model.graph.node.pop()
    last.input[0] = "moved"
    model.graph.node.extend(
        [
            helper.make_node("NonZero", ["answer"], ["places"], name="where"),
            helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["floats"], ["most"], keepdims=0),
            helper.make_node("Add", ["answer", "most"], ["moved"]),
            last,
        ]
    )
    onnx.save(model, path)
    run = tmp_path / "run"
    adopt_file(path, run, AdoptOptions(str(photos), "metres", Preprocessing()), silent)
    with pytest.raises(BackendError, match=r"NonZero \(where\)"):
        export_onnx(open_source(run), ExportOptions())


def test_run_of_something_else_is_not_overwritten(adopt: Adopt, run: Path, photos: Path, tmp_path: Path) -> None:
    path, before = depth_file(tmp_path / "net.onnx"), sha256(run / "model.json")
    options = AdoptOptions(str(photos), "metres", Preprocessing())
    with pytest.raises(BundleError, match="not overwritten"):
        adopt_file(path, run, options, silent)
    assert sha256(run / "model.json") == before
    with pytest.raises(BundleError, match="torch does not compute"):
        read_bundle(adopt())


def test_reading_that_fits_better_is_named(tmp_path: Path, photos: Path) -> None:
    """The answers to pixels of 0 to 255 are constant but for noise here: this network wants them from 0 to 1."""
    path = depth_file(tmp_path / "net.onnx", gain=1e-3)
    wrong = Preprocessing("RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 255.0)
    options, said = AdoptOptions(str(photos), "metres", wrong), []
    adopt_file(path, tmp_path / "run", options, lambda mark, text: said.append((mark, text)))
    assert any(mark == "warns" and "pixels 0 to 255" in text for mark, text in said)


def test_document_says_how_it_was_adopted(adopt: Adopt, photos: Path) -> None:
    document = json.loads((adopt() / "model.json").read_text())
    assert document["adopted"] == {
        "input": "pixels",
        "output": "depth_map",
        "layout": "NCHW",
        "dynamic_batch": True,
        "dynamic_size": False,
        "opset": 17,
        "frames": "photos",
        "place": str(photos.resolve()),
    }


def test_a_scale_is_forgotten_when_the_run_answers_something_else(adopt: Adopt, photos: Path) -> None:
    scale = adopt(AdoptOptions(str(photos), "relative", Preprocessing())) / "scale.json"
    scale.write_text("{}")
    adopt(AdoptOptions(str(photos), "relative", Preprocessing()))
    assert scale.is_file(), "nothing has changed"
    adopt(AdoptOptions(str(photos), "relative", Preprocessing("BGR")))
    assert not scale.exists()


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    scale=st.floats(0.1, 1000),
    mean=st.tuples(*[st.floats(-2, 2)] * 3),
    std=st.tuples(*[st.floats(0.01, 3)] * 3),
)
def test_pixels_are_prepared_as_the_formula_says(
    height: int, width: int, scale: float, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, height, width, 3), np.uint8)
    planes = prepare(image, Preprocessing("BGR", mean, std, scale), "NCHW")
    for channel in range(3):
        expected = (image[0, :, :, 2 - channel] / scale - mean[channel]) / std[channel]
        np.testing.assert_allclose(planes[0, channel], expected, rtol=1e-4, atol=1e-3)


def test_original_runs_at_sizes_it_takes(adopt: Adopt) -> None:
    run = adopt(shrink=2)
    document = read_document(run)
    assert document.adopted is not None
    original = Original(run / "model.onnx", document.adopted, document.model.size)
    assert original.answered((32, 48)) == (16, 24)
    with pytest.raises(SpecError, match="fixed size of 32x48"):
        original.answered((64, 96))
    shutil.rmtree(run)
