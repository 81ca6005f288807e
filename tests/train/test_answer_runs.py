"""Runs of networks with other answers: adopted, exported with their gates, benched, trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from depthkit.cli import run as depthkit
from depthkit.data.scenes.scene_dataset import Scenes
from depthkit.errors import SpecError, TrainingError, UserError
from depthkit.files import sha256
from depthkit.onnx_graph import describe_onnx
from depthkit.parity import compare, gate_faults
from depthkit.pipeline.runs import open_source
from depthkit.pipeline.targets import open_teacher
from depthkit.reference import Reference, read_reference
from depthkit.spec import Answers, ModelSpec, Preprocessing
from depthkit.train.bundle import import_weights, read_bundle
from depthkit.train.document import WEIGHTS, read_document
from depthkit.train.fit_options import TrainOptions
from depthkit.train.hub import DepthModel
from depthkit.train.networks import build_network
from depthkit.train.peers import open_torch_peer
from depthkit.train.torch_session import TorchSession

from ..support import run_python
from ..zoo import ZOO, build
from .nets import MODULE
from .runs import abs_rel_of, curve_of, cut_short, fitted, train_options, weights_of

Captured = pytest.CaptureFixture[str]
SIZE: Final = (32, 48)
BGR: Final = Preprocessing("BGR", (100.0, 110.0, 120.0), (60.0, 50.0, 40.0), scale=1.0)


def _weights(name: str, folder: Path) -> Path:
    path = folder / f"{name}.safetensors"
    save_file(build_network(f"{MODULE}:{name}").state_dict(), path)
    return path


def _adopt(folder: Path, name: str, **changes: Any) -> ModelSpec:
    """The run of a network of `nets` at `folder / name`."""
    weights, frames = _weights(name, folder), Scenes("val", size=(48, 72), count=8)
    options: dict[str, Any] = {"preprocessing": BGR, **changes}
    return import_weights(folder / name, f"{MODULE}:{name}", weights, SIZE, frames, **options)


@pytest.fixture
def disparity(tmp_path: Path) -> Path:
    """The run of a network that answers inverse depth at half the resolution, in BGR."""
    spec = _adopt(tmp_path, "Disparity", answers="inverse", output="maps.1")
    assert not spec.is_metric
    return tmp_path / "Disparity"


def test_colours_of_depth_without_metres_span_its_own_answers(disparity: Path) -> None:
    bundle = read_bundle(disparity)
    with TorchSession(bundle) as session:
        images = np.stack([image[8:-8, 12:-12] for image in bundle.frames.images])
        found = np.percentile(session(images), (2, 98))
    low, high = bundle.spec.depth_range
    assert high - low > 0
    np.testing.assert_allclose((low, high), found, atol=0.5 * (high - low))


def _adopting(name: str, folder: Path, data: Path) -> list[str]:
    """The command line that makes `folder / "runs" / name` the run of a network of `nets`."""
    where = ["--weights", str(_weights(name, folder)), "--runs", str(folder / "runs"), "--data", str(data)]
    return ["adopt", f"{MODULE}:{name}", "--size", "32x48", *where]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Disparity", "--answers", "inverse"], ["2 outputs", "maps.0 (2 x 8 x 12 x 1)", "--output"]),
        (["Disparity", "--answers", "inverse", "--output", "maps.7"], ["no output maps.7", "maps.1", "features"]),
        (["Disparity", "--answers", "inverse", "--output", "features"], ["features (2 x 4 x 16 x 24)", "2 x 1 x 32"]),
        (["Disparity", "--answers", "inverse", "--output", "maps.1", "--depth-range", "1,2"], ["no effect", "inverse"]),
        (["Share", "--output", "depth"], ["one tensor", "leave --output out"]),
        (["Broken", "--answers", "relative"], ["NaN or Inf", "3 of 3 frames", "--mean"]),
        (["Constant", "--answers", "relative"], ["one constant", "3 of 3 frames", "--color"]),
        (["Metres", "--depth-range", "5e3,6e3"], ["only 0.0% is within 5000", "read as share", "--answers"]),
    ],
)
def test_command_line_refuses_answers_in_one_sentence(
    pairs: Path, tmp_path: Path, capsys: Captured, arguments: list[str], words: list[str]
) -> None:
    name, *options = arguments
    status = depthkit([*_adopting(name, tmp_path, pairs), *options])
    assert status == (3 if name in {"Broken", "Constant", "Metres"} else 2)
    message = " ".join(capsys.readouterr().err.split())
    assert all(word in message for word in words), message
    assert not (tmp_path / "runs").exists()


def test_command_line_says_which_output_it_takes(pairs: Path, tmp_path: Path, capsys: Captured) -> None:
    adopting = _adopting("Metres", tmp_path, pairs)
    assert depthkit([*adopting, "--answers", "metres", "--color", "bgr", "--scale", "1"]) == 0
    assert "output metres" in capsys.readouterr().out
    spec = read_document(tmp_path / "runs" / "Metres").model
    assert (spec.answers, spec.network_output, spec.depth_range) == ("metres", "metres", (0.0, 1000.0))
    assert (spec.preprocessing.color, spec.preprocessing.scale) == ("BGR", 1.0)


def _exported(run: Path, *options: str) -> tuple[Path, Reference]:
    """The only ONNX file that an export writes, which has passed its checks, and its reference."""
    assert depthkit(["export", str(run), "--onnx-only", *options]) == 0
    (path,) = run.glob("*.onnx")
    (reference,) = run.glob("*.reference.npz")
    return path, read_reference(reference)


def test_a_half_graph_of_any_batch_resizes_both_ways(disparity: Path) -> None:
    path, reference = _exported(disparity, "--fp16", "--camera", "48x60", "--batch", "1,2,4")
    described = describe_onnx(path).model
    assert (described.answers, described.network_output, described.size) == ("inverse", "maps.1", (48, 60))
    assert not reference.is_metric
    with TorchSession(disparity, SIZE, camera=(48, 60)) as session:
        np.testing.assert_array_equal(session(reference.images), reference.depths)


def test_shrinking_a_larger_answer_is_no_layer(tmp_path: Path) -> None:
    spec = _adopt(tmp_path, "Fine", depth_range=(0.0, 10.0))
    path, _ = _exported(tmp_path / "Fine")
    layers = describe_onnx(path).products
    assert [layer.module for layer in layers] == ["first", "second", "head"]
    assert sum(layer.macs for layer in layers) == spec.macs


@pytest.mark.slow
def test_an_int8_graph_passes_its_gate(disparity: Path) -> None:
    _exported(disparity, "--int8", "--calibrate", "scenes")


def test_parity_of_an_export_sees_one_changed_weight(disparity: Path) -> None:
    _, reference = _exported(disparity)
    weights = read_bundle(disparity).network.state_dict()
    weights["head.weight"][0, 0, 1, 1] += 0.01
    document = (disparity / "model.json").read_text().replace(sha256(disparity / WEIGHTS), "{}")
    save_file(weights, disparity / WEIGHTS)
    (disparity / "model.json").write_text(document.replace("{}", sha256(disparity / WEIGHTS)))
    source = open_source(disparity)
    changed = compare(source.answer(source.spec_at(None), reference.images), reference)
    assert gate_faults(changed, "fp32")


def test_the_peer_and_the_model_answer_what_the_session_answers(disparity: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    with TorchSession(disparity) as session, open_torch_peer(disparity) as peer:
        expected = session(images)
        np.testing.assert_allclose(peer(images), expected, atol=1e-4)
    np.testing.assert_array_equal(DepthModel(read_bundle(disparity)).predict(images[0]), expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dav2s", "dpt", "glpn"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_networks_of_transformers_need_no_wrapper(tmp_path: Path, name: str, precision: str) -> None:
    wrapped, size = build(f"{name}-small"), ZOO[f"{name}-small"].size
    save_file(wrapped.get_submodule("network").state_dict(), tmp_path / "w.safetensors")
    answers: Answers = "metres" if name == "glpn" else "inverse"
    where: tuple[Path, str, Path] = (tmp_path / "run", f"{MODULE}:{name}", tmp_path / "w.safetensors")
    frames = Scenes("val", size=size, count=8)
    spec = import_weights(*where, size, frames, preprocessing=Preprocessing(), answers=answers)
    assert spec.network_output == "predicted_depth"
    _, reference = _exported(tmp_path / "run", *([] if precision == "fp32" else [f"--{precision}"]))
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (spec.preprocessing.mean, spec.preprocessing.std))
    with torch.inference_mode():
        expected = wrapped((torch.from_numpy(reference.images).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    np.testing.assert_allclose(reference.depths, expected, atol=1e-3)


def _options(pairs: Path, out: Path, name: str, **changes: Any) -> Any:
    return train_options(pairs, out, network=f"{MODULE}:{name}", **changes)


def test_metres_in_a_dict_are_trained_as_the_same_share_is(pairs: Path, tmp_path: Path) -> None:
    share = fitted(_options(pairs, tmp_path, "Share", epochs=2))
    metres = fitted(_options(pairs, tmp_path, "Metres", epochs=2, answers="metres"))
    spec = read_document(metres).model
    assert (spec.answers, spec.network_output, spec.depth_range) == ("metres", "metres", (0.1, 10.0))
    trained = weights_of(metres)
    assert trained["head.bias"] != build_network(f"{MODULE}:Metres").state_dict()["head.bias"].tolist()
    for name, values in weights_of(share).items():
        np.testing.assert_allclose(trained[name], values, atol=2e-4)
    assert float(curve_of(metres)[-1]["val_abs_rel"]) == pytest.approx(abs_rel_of(metres, pairs), rel=1e-3)


@pytest.fixture(scope="module")
def cut(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """A network that answers metres at half the resolution; its training ended after the first of two epochs."""
    out = tmp_path_factory.mktemp("cut")
    options: TrainOptions = _options(pairs, out, "Disparity", answers="metres", output="maps.1", epochs=2)
    cut_short(options)
    return options


@pytest.fixture(scope="module")
def metres(cut: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `cut`, resumed. Read only."""
    out = Path(shutil.copytree(cut.out, tmp_path_factory.mktemp("metres") / "runs"))
    return fitted(replace(cut, out=out, resume=True))


def test_a_smaller_answer_is_trained_at_the_pictures_size(metres: Path, pairs: Path) -> None:
    spec = read_document(metres).model
    assert (spec.answers, spec.network_output) == ("metres", "maps.1")
    assert float(curve_of(metres)[-1]["val_abs_rel"]) == pytest.approx(abs_rel_of(metres, pairs), rel=1e-3)


def test_a_resumed_run_must_answer_the_same(cut: TrainOptions) -> None:
    with pytest.raises(TrainingError, match=r"output maps\.1 -> maps\.0.*answers metres -> share"):
        fitted(replace(cut, resume=True, answers=None, output="maps.0"))


def test_a_start_decides_what_is_answered(pairs: Path, tmp_path: Path, metres: Path, disparity: Path) -> None:
    options = _options(pairs, tmp_path / "runs", "Disparity", init=metres)
    with pytest.raises(TrainingError, match=r"answers metres, not share; leave --answers out"):
        fitted(replace(options, answers="share"))
    with pytest.raises(TrainingError, match=r"answers inverse depth, and training needs metres"):
        fitted(replace(options, init=disparity))
    assert not (tmp_path / "runs").exists()
    spec = read_document(fitted(options)).model
    assert (spec.answers, spec.network_output) == ("metres", "maps.1")


@pytest.mark.slow
def test_stages_of_other_sizes_and_two_processes_train_one_of_several_outputs(pairs: Path, tmp_path: Path) -> None:
    """The heads of the other outputs get no gradient, which DDP refuses unless it looks for them."""
    what = ("--network", f"{MODULE}:Metres", "--answers", "metres", "--data", pairs, "--size", "64x96")
    how = ("--preset", "best", "--epochs", "4", "--batch", "2", "--devices", "2", "--out", tmp_path)
    run_python("-m", "depthkit", "train", *what, *how, cwd=Path(__file__).parents[2])
    assert read_document(tmp_path / "Metres").model.network_output == "metres"


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("Disparity", {}, "choose with --output"),
        ("Metres", {"output": "depth"}, "no output depth"),
        ("Auxiliary", {}, "same in training"),
    ],
)
def test_training_refuses_before_it_begins(
    pairs: Path, tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        fitted(_options(pairs, tmp_path, name, **changes))
    assert not list(tmp_path.iterdir())


def test_a_teacher_answers_in_metres(disparity: Path) -> None:
    with pytest.raises(UserError, match=r"answers inverse depth; choose one that answers metres"):
        open_teacher(disparity)


@pytest.mark.parametrize("change", [{"answers": "share"}, {}], ids=["share", "default"])
def test_what_every_run_answered_before_is_the_default(pairs: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    options = _options(pairs, tmp_path, "Share", **change)
    assert options.identity(1, None)["answers"] == "share"
