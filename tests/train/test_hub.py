"""Shipped weights, and the way to and from the Hugging Face Hub; the Hub itself is a folder or a stand-in."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

import depthkit
from depthkit.data.dataset import evenly_spaced
from depthkit.data.nyu import official_test_frames
from depthkit.data.sources import open_dataset
from depthkit.documents import from_json
from depthkit.errors import BundleError, FrameError, UserError
from depthkit.frames import predict_frames
from depthkit.spec import ModelSpec
from depthkit.train.bundle import read_bundle
from depthkit.train.document import read_document
from depthkit.train.hub import DepthModel
from depthkit.train.shipped import SHIPPED, shipped_names, shipped_run
from depthkit.train.torch_session import TorchSession

from ..support import run_python
from .runs import fitted, record_of, train_options

ROOT = Path(depthkit.__file__).parent
PUBLISHED = {"README.md", "config.json", "frames.npz", "model.json", "model.safetensors"}


def picture(height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def same_network(a: DepthModel, b: DepthModel) -> bool:
    frame = torch.from_numpy(picture(*a.spec.size)[None])
    return a.spec == b.spec and torch.equal(a(frame), b(frame))


@pytest.fixture(scope="module")
def ship() -> ModuleType:
    """The script that puts weights into the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        return importlib.import_module("ship")


@pytest.fixture
def model(run: Path) -> DepthModel:
    return DepthModel(read_bundle(run))


def test_a_model_maps_camera_frames_to_metres() -> None:
    model = depthkit.pretrained()
    assert not model.training
    low, high = model.spec.depth_range
    with torch.no_grad():
        depth = model(torch.zeros(2, 32, 48, 3, dtype=torch.uint8))
    assert depth.shape == (2, 32, 48)
    assert depth.dtype == torch.float32
    assert ((depth >= low) & (depth <= high)).all()


def test_predict_answers_what_every_session_answers(model: DepthModel, run: Path) -> None:
    images = [picture(), picture(*model.spec.size), picture(200, 30)]
    with TorchSession(run) as session:
        for image, expected in zip(images, predict_frames(session, images), strict=True):
            depth = model.predict(image)
            assert depth.dtype == np.float32
            np.testing.assert_array_equal(depth, expected)


@pytest.mark.parametrize("image", [picture().astype(np.float32), picture()[..., 0], picture()[None], picture()[:0]])
def test_predict_refuses_what_is_no_picture(image: np.ndarray) -> None:
    with pytest.raises(FrameError, match="uint8"):
        depthkit.pretrained().predict(image)


def test_unknown_weights_are_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"compcat.*compact"):
        depthkit.pretrained("compcat")


def test_without_torch_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["torch"] = None
import depthkit
try:
    depthkit.pretrained
except depthkit.DepthkitError as error:
    print(error)
"""
    printed = run_python("-c", code)
    assert "needs torch" in printed
    assert "depthkit[train]" in printed


def test_what_is_saved_is_read_back_and_is_a_run(model: DepthModel, tmp_path: Path) -> None:
    goal = tmp_path / "saved"
    model.save_pretrained(goal)
    assert {path.name for path in goal.iterdir()} == PUBLISHED
    assert same_network(DepthModel.from_pretrained(goal), model)
    assert read_bundle(goal).weights_sha256 == model.bundle.weights_sha256
    assert from_json(ModelSpec, (goal / "config.json").read_bytes(), source="config.json") == model.spec
    card = ModelCard.load(goal / "README.md").data
    assert (card.pipeline_tag, card.library_name) == ("depth-estimation", "depthkit")


def test_what_is_saved_holds_no_pictures_of_the_data_set_and_no_path(pairs: Path, tmp_path: Path) -> None:
    run = fitted(train_options(pairs, tmp_path / "runs", steps=1, batch=2))
    DepthModel(read_bundle(run)).save_pretrained(tmp_path / "saved")
    assert is_rooms(tmp_path / "saved")
    assert not is_rooms(run)
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in (tmp_path / "saved").iterdir())


def is_rooms(folder: Path) -> bool:
    """Whether a run's frames are of the built-in scenes' validation split."""
    frames = read_bundle(folder).frames
    scenes = open_dataset("scenes", "val", size=(96, 128))
    rooms = np.stack([scenes[index].image for index in evenly_spaced(scenes, 8)])
    # Another processor may round otherwise, by a level here and there.
    return frames.images.shape == rooms.shape and bool(np.abs(frames.images.astype(int) - rooms).mean() < 0.5)


def test_a_card_goes_along_with_its_weights_only(tmp_path: Path) -> None:
    model = depthkit.pretrained()
    model.save_pretrained(tmp_path / "same")
    assert (tmp_path / "same" / "README.md").read_text() == (shipped_run("compact") / "README.md").read_text()
    with torch.no_grad():
        model.network.head.bias += 0.01  # type: ignore[operator, union-attr]
    model.save_pretrained(tmp_path / "tuned")
    assert "model-index" not in (tmp_path / "tuned" / "README.md").read_text()
    assert same_network(DepthModel.from_pretrained(tmp_path / "tuned"), model)


@pytest.fixture
def snapshot(model: DepthModel, tmp_path: Path) -> Path:
    """The folder in which the Hub's cache at `tmp_path` keeps the repository somebody/compact."""
    repository = tmp_path / "models--somebody--compact"
    model.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


@pytest.mark.usefixtures("snapshot")
def test_a_repository_of_the_hub_is_read_from_its_cache(model: DepthModel, tmp_path: Path) -> None:
    found = DepthModel.from_pretrained("somebody/compact", cache_dir=tmp_path, local_files_only=True)
    assert same_network(found, model)


def test_a_download_does_not_choose_what_code_is_imported(snapshot: Path, tmp_path: Path) -> None:
    document = (snapshot / "model.json").read_text()
    (snapshot / "model.json").write_text(document.replace('"compact"', '"os:abort"'))
    with pytest.raises(BundleError, match=r"os:abort.*trust"):
        DepthModel.from_pretrained("somebody/compact", cache_dir=tmp_path, local_files_only=True)


def test_damaged_weights_of_a_repository_are_refused(model: DepthModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        DepthModel.from_pretrained(tmp_path)


def test_push_to_hub_uploads_what_save_pretrained_writes(model: DepthModel, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id: str, folder_path: Path, **_: Any) -> str:
            uploaded.update(repo=repo_id, files={path.name for path in folder_path.iterdir()})
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    assert model.push_to_hub("somebody/compact") == "https://hub/commit"
    assert uploaded == {"repo": "somebody/compact", "files": PUBLISHED}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_weights_are_small_and_show_nobodys_pictures(name: str) -> None:
    folder = shipped_run(name)
    height, width = read_document(folder).model.size
    stem = f"{name}-{height}x{width}"
    shipped = {*PUBLISHED, "evaluation.json", f"{stem}.fp32.onnx", f"{stem}.reference.npz"}
    assert {path.name for path in folder.iterdir()} == shipped
    assert (folder / "model.safetensors").stat().st_size <= 5_000_000
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15_000_000
    assert is_rooms(folder)
    assert read_document(folder).model.network == name


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_card_states_the_evaluation(name: str, ship: ModuleType) -> None:
    folder = shipped_run(name)
    card = ModelCard.load(folder / "README.md")
    assert (folder / "README.md").read_text(encoding="utf-8") == f"{ship.model_card(folder)}\n"
    (scores,) = json.loads((folder / "evaluation.json").read_text()).values()
    stated = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert stated == {
        "mse": scores["mse"],
        "ssim": scores["ssim"],
        **{kind: scores["pooled"][kind] for kind in ("abs_rel", "rmse", "log10", "delta1", "delta2", "delta3")},
    }
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "depth-estimation"
    assert card.data.datasets == ["nyu_depth_v2"]
    row = f"| pooled | {scores['mse']:.5f} | {scores['ssim']:.4f} | {scores['pooled']['abs_rel']:.3f} |"
    assert row in card.text
    assert f"{record_of(folder).samples} labelled frames" in card.text
    assert "None" not in card.text.replace("None of its pictures", "")


@pytest.fixture
def evaluation(tmp_path: Path) -> Callable[[int], Path]:
    """Writes what `depthkit evaluate --json` prints for so many frames."""

    def write(frames: int) -> Path:
        content = json.loads((SHIPPED / "compact" / "evaluation.json").read_text())
        content["compact"]["frames"] = frames
        path = tmp_path / "evaluation.json"
        path.write_text(json.dumps({"runs/compact": content["compact"]}))
        return path

    return write


def test_shipping_a_run_writes_a_folder_that_is_read(
    ship: ModuleType, run: Path, evaluation: Callable[[int], Path], tmp_path: Path
) -> None:
    shutil.copytree(SHIPPED, tmp_path / "weights")  # over what was shipped before
    folder = ship.ship(run, evaluation(len(official_test_frames())), tmp_path / "weights")
    assert folder == tmp_path / "weights" / "compact"
    assert read_document(folder).weights_sha256 == read_document(run).weights_sha256
    made = {"compact-32x48.fp32.onnx", "compact-32x48.reference.npz"}
    assert {path.name for path in folder.iterdir()} == {*PUBLISHED, "evaluation.json", *made}
    assert list(json.loads((folder / "evaluation.json").read_text())) == ["compact"]
    assert "--preset paper" in (folder / "README.md").read_text()


def test_shipping_wants_the_whole_test_split(
    ship: ModuleType, run: Path, evaluation: Callable[[int], Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="100 frames"):
        ship.ship(run, evaluation(100), tmp_path / "weights")
    broken = tmp_path / "broken.json"
    for text in ("{}", "[1]", '{"a": 1}', '{"a": {"mse": 1}}', "no JSON"):
        broken.write_text(text)
        with pytest.raises(ValueError, match=r"broken\.json"):
            ship.ship(run, broken, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
