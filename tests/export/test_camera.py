"""`--camera`: frames of the camera's size in, depth of that size out, by every backend as by torch and the host."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from depthkit.bench.accuracy import measure_accuracy
from depthkit.data.scenes.render import render_scenes, scene_seed
from depthkit.engines.build import BuildOptions, backend, build
from depthkit.engines.manifest import read_manifest
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import Calibration, ExportOptions, Frames, find_current
from depthkit.export.torch_source import TorchSource
from depthkit.frames import predict_frames
from depthkit.names import BACKENDS
from depthkit.onnx_graph import CONVOLUTIONS, describe_onnx, readers
from depthkit.pipeline.contenders import contenders, peers
from depthkit.pipeline.pictures import read_pictures
from depthkit.pipeline.predictor import Predictor
from depthkit.pipeline.runs import open_source
from depthkit.pipeline.tell import silent
from depthkit.reference import read_reference, reference_path
from depthkit.runtime.load import load
from depthkit.spec import Dim
from depthkit.testing import assert_parity
from depthkit.train.bundle import read_bundle
from depthkit.train.shipped import shipped_run
from depthkit.train.torch_session import TorchSession

SIZE = (48, 64)
CAMERAS = {"whole": (240, 320), "not whole": (120, 150), "dynamic": (96, 128), "fp16": (96, 128), "int8": (96, 128)}
NAMES = {"whole": "240x320.fp32", "not whole": "120x150.fp32", "dynamic": "96x128-b1to4.fp32"}
Files = Callable[[str], Path]


def _rooms(size: tuple[int, int], split: Any, count: int) -> tuple[np.ndarray, ...]:
    images, _ = render_scenes([scene_seed(split, index) for index in range(count)], size)
    return tuple(image.numpy() for image in images)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Frames that no export has seen."""
    return list(_rooms((240, 320), "val", 2))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """ONNX files of the built-in weights, all in one run folder, each made when it is first asked for. Read only."""
    folder = Path(shutil.copytree(shipped_run("compact"), tmp_path_factory.mktemp("camera") / "compact"))
    made: dict[str, Path] = {}

    def file(kind: str) -> Path:
        if kind not in made:
            options = ExportOptions(size=SIZE, camera=CAMERAS[kind])
            if kind == "dynamic":
                options = replace(options, batch=Dim("batch", 1, 2, 4))
            if kind == "fp16":
                options = replace(options, precision="fp16")
            if kind == "int8":
                rooms = (Frames(_rooms(CAMERAS[kind], split, 8)) for split in ("train", "val"))
                options = replace(options, precision="int8", calibration=Calibration.of("rooms", *rooms))
            made[kind] = export_onnx(open_source(folder), options).path
        return made[kind]

    return file


@pytest.fixture(params=["openvino", "onnxruntime"])
def name(request: pytest.FixtureRequest) -> str:
    """Each backend of a CPU."""
    found = backend(request.param).availability()
    if not found.runnable:
        pytest.skip(f"{request.param}: {found.reason}")
    return str(request.param)


@pytest.mark.parametrize("kind", NAMES)
def test_engine_takes_the_cameras_frames_and_answers_as_torch_and_the_host(
    kind: str, name: str, files: Files, pictures: list[np.ndarray]
) -> None:
    path, camera = files(kind), CAMERAS[kind]
    assert path.name == f"compact-48x64-from-{NAMES[kind]}.onnx"
    frames = _cut(pictures, camera)
    engine = build(path, BuildOptions(name)).path
    with load(engine) as session:
        assert (session.spec.size, session.spec.network_size) == (camera, SIZE)
        parity = assert_parity(session, read_reference(reference_path(path)), precision="fp32")
        found = list(predict_frames(session, frames))
    assert parity.frames == 8
    with TorchSession(path.parent, SIZE, camera=camera) as torch, TorchSession(path.parent, SIZE) as host:
        inside, outside = (list(predict_frames(session, frames)) for session in (torch, host))
    for depth, by_torch, by_host in zip(found, inside, outside, strict=True):
        assert depth.shape == camera
        np.testing.assert_allclose(depth, by_torch, atol=1e-4)
        # Means of blocks are not quite the host's filter; docs/results/camera_export.md has the effect on accuracy.
        assert np.abs(depth - by_host).mean() < (0.01 if kind == "not whole" else 0.1) * by_host.mean()


def _cut(pictures: list[np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
    """Not resized, so that they are as sharp as a camera's."""
    return [np.ascontiguousarray(picture[: size[0], : size[1]]) for picture in pictures]


@pytest.mark.parametrize("size", [(96, 128), (80, 112)], ids=["whole", "not whole"])
def test_real_frames_lose_no_accuracy(nyu: Path, size: tuple[int, int]) -> None:
    found = read_pictures(str(nyu), "val", 97)
    samples = list(zip(found.images, found.depths, strict=True))
    scores = []
    for camera in (None, (480, 640)):
        with TorchSession(shipped_run("compact"), size, camera=camera) as session:
            scores.append(measure_accuracy(session, samples, found.crop).pooled)
    assert scores[1].delta1 == pytest.approx(scores[0].delta1, abs=0.002)


def test_predictor_resizes_other_frames_to_the_cameras(files: Files) -> None:
    path = files("whole")
    with Predictor(path) as predictor:
        assert predictor.size == (240, 320)
        assert "48x64 from 240x320" in repr(predictor)
        assert predictor(np.zeros((100, 77, 3), np.uint8)).shape == (100, 77)


def test_nothing_of_the_resizes_is_quantised(files: Files) -> None:
    """Before the first convolution and after the last, an INT8 file has the floats of the FP32 file."""
    path = files("int8")
    assert {each.precision for each in describe_onnx(path).products} == {"int8"}
    graph = onnx.load(path).graph
    made_by = {tensor: node for node in graph.node for tensor in node.output}
    read_by = readers(graph)
    first = next(node for node in graph.node if node.op_type in CONVOLUTIONS)
    before, tensor = [], first.input[0]
    while tensor in made_by:
        before.append(made_by[tensor].op_type)
        tensor = made_by[tensor].input[0]
    assert tensor == "image"
    assert before[:4] == ["DequantizeLinear", "QuantizeLinear", "Add", "Mul"]
    assert before[4:] == ["AveragePool", "Transpose", "Reshape", "ReduceMean", "Reshape", "Cast"]
    after, pending = [], [[node for node in graph.node if node.op_type in CONVOLUTIONS][-1]]
    while pending:
        following = [node for tensor in pending.pop().output for node in read_by.get(tensor, [])]
        after += [node.op_type for node in following]
        pending += following
    assert "Gather" in after
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(after)


def test_int8_engine_holds_its_gate_and_resizes_in_floats(name: str, files: Files) -> None:
    path = files("int8")
    built = build(path, BuildOptions(name))
    with load(built.path) as session:
        assert_parity(session, read_reference(reference_path(path)), precision="int8")
    resizing = {"AveragePool", "Reduce", "ReduceMean", "Gather"}
    layers = [layer for layer in built.manifest.layers if layer.operator in resizing]
    assert layers
    assert not {"int8", "uint8"} & {layer.precision for layer in layers}


@pytest.mark.parametrize("kind", CAMERAS)
def test_tensorrt_rtx_builds_it(kind: str, files: Files) -> None:
    found = backend("tensorrt-rtx").availability()
    if not found.usable:
        pytest.skip(f"tensorrt-rtx: {found.reason}")
    assert build(files(kind), BuildOptions("tensorrt-rtx")).manifest.share == 1


def test_file_is_current_for_its_sizes_only(files: Files) -> None:
    path = files("whole")
    bundle = read_bundle(path.parent)
    same = ExportOptions(size=SIZE, camera=CAMERAS["whole"])
    assert find_current(path.parent, bundle.document, same) == path
    for other in ({"camera": None}, {"camera": (480, 640)}, {"size": (96, 128)}, {"batch": 2}, {"precision": "fp16"}):
        assert find_current(path.parent, bundle.document, replace(same, **other)) is None
    assert replace(same, camera=SIZE).spec_of(bundle.spec) == replace(same, camera=None).spec_of(bundle.spec)


def test_bench_compares_it_with_torch_that_resizes_too(files: Files) -> None:
    """And not with an engine of the whole frame, whose size and weights are the same."""
    shrunk = files("dynamic")
    bundle = read_bundle(shrunk.parent)
    whole = export_onnx(TorchSource(bundle), ExportOptions(size=CAMERAS["dynamic"], batch=Dim("batch", 1, 2, 4))).path
    chosen = contenders([whole, shrunk], silent, with_torch=True)
    assert [each.backend for each in chosen] == ["torch", "ONNX file"] * 2
    assert len({each.model for each in chosen}) == 2
    for contender in (*chosen, *peers(chosen, ["torch"], silent)):
        with contender.open() as session:
            assert session.spec.size == contender.reference.size
            assert session.spec.network_size == contender.reference.network_size
            found = np.stack(list(predict_frames(session, contender.reference.images)))
        # The raw torch of a peer filters as Pillow does.
        assert np.abs(found - contender.reference.depths).mean() < (1e-4 if contender.kind == "engine" else 0.1)


def test_null_engine_says_both_sizes(files: Files) -> None:
    assert "null" in BACKENDS
    engine = build(files("whole"), BuildOptions("null")).path
    assert read_manifest(engine).model.describe_sizes() == "48x64 from 240x320"
