"""An export that is there is kept only while all that it was made of is the same, and nothing is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from depthkit import __version__
from depthkit.documents import to_json
from depthkit.export.recipe import ExportOptions, find_current, onnx_path, recipe
from depthkit.files import sha256
from depthkit.onnx_graph import METADATA, describe_onnx
from depthkit.reference import read_reference, write_reference
from depthkit.spec import Dim, Preprocessing
from depthkit.train.document import BundleDocument, read_document

from ..support import before_focal

STEM = "compact-32x48"
FULL = ExportOptions()
Install = Callable[[dict[str, str | None]], None]
Damage = Callable[[Path], object]


def _find(folder: Path, **changed: Any) -> Path | None:
    """The current export of the run with these options, or None."""
    return find_current(folder, read_document(folder), replace(FULL, **changed))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lets distributions be installed in these versions; None: not at all."""
    really = Distribution.from_name

    def install(versions: dict[str, str | None]) -> None:
        class Imaginary:
            def __init__(self, version: str) -> None:
                self.version = version

        def from_name(name: str) -> Any:
            if name not in versions:
                return really(name)
            if (version := versions[name]) is None:
                raise PackageNotFoundError(name)
            return Imaginary(version)

        monkeypatch.setattr(Distribution, "from_name", from_name)

    return install


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_export_of_just_now_is_current(pristine_exports: Path, precision: str) -> None:
    assert _find(pristine_exports, precision=precision) == pristine_exports / f"{STEM}.{precision}.onnx"
    assert _find(pristine_exports, precision=precision, size=(32, 48)), "its own size, given explicitly"


OTHER_SHAPES: list[dict[str, Any]] = [{"size": (48, 64)}, {"batch": 2}, {"batch": Dim("batch", 1, 2, 4)}]


@pytest.mark.parametrize("changed", OTHER_SHAPES, ids=str)
def test_what_was_not_exported_is_not_there(pristine_exports: Path, changed: dict[str, Any]) -> None:
    assert _find(pristine_exports, **changed) is None


@pytest.mark.parametrize("changed", [*OTHER_SHAPES, {"precision": "fp16"}], ids=str)
def test_file_of_other_options_under_the_right_name_is_not_taken(exports: Path, changed: dict[str, Any]) -> None:
    """Say somebody renamed it."""
    options = replace(FULL, **changed)
    goal = onnx_path(exports, read_document(exports), options)
    for path in (exports / f"{STEM}.fp32.onnx", exports / f"{STEM}.reference.npz"):
        path.replace(goal if path.suffix == ".onnx" else goal.with_name(f"{goal.name.split('.')[0]}.reference.npz"))
    assert goal.is_file()
    assert _find(exports, **changed) is None


def test_optimum_of_a_dynamic_batch_counts(pristine_exports: Path) -> None:
    one, other = (ExportOptions(batch=Dim("batch", 1, best, 8)) for best in (2, 4))
    document = read_document(pristine_exports)
    assert onnx_path(pristine_exports, document, one) == onnx_path(pristine_exports, document, other)
    assert recipe(pristine_exports, document, one) != recipe(pristine_exports, document, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: replace(d, weights_sha256="0" * 64),
        lambda d: replace(d, model=replace(d.model, network="unet")),
        lambda d: replace(d, model=replace(d.model, widths=(1, 2))),
        lambda d: replace(d, model=replace(d.model, preprocessing=Preprocessing(std=(1.0, 1.0, 1.0)))),
        lambda d: replace(d, model=replace(d.model, depth_range=(0.0, 20.0))),
        lambda d: replace(d, model=replace(d.model, parameters=1)),
        lambda d: replace(d, model=replace(d.model, focal=1.5)),
    ],
    ids=["weights", "network", "widths", "preprocessing", "range", "parameters", "focal"],
)
def test_changed_run_is_exported_again(
    pristine_exports: Path, change: Callable[[BundleDocument], BundleDocument]
) -> None:
    document = read_document(pristine_exports)
    assert find_current(pristine_exports, document, FULL)
    assert find_current(pristine_exports, change(document), FULL) is None


def test_training_that_ended_in_the_same_weights_changes_nothing(pristine_exports: Path) -> None:
    document = read_document(pristine_exports)
    assert document.training is not None
    longer = replace(document, training=replace(document.training, seconds=1e6))
    assert find_current(pristine_exports, longer, FULL)


def test_changed_frames_are_exported_again(exports: Path) -> None:
    with np.load(exports / "frames.npz") as content:
        images, depths = content["images"], content["depths"]
    images[0, 0, 0, 0] ^= 1
    np.savez_compressed(exports / "frames.npz", images=images, depths=depths)
    assert _find(exports) is None


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript", "polygraphy", "onnxruntime"])
def test_another_version_of_a_package_exports_again(pristine_exports: Path, package: str, installed: Install) -> None:
    assert _find(pristine_exports)
    installed({package: "0.0.1"})
    assert _find(pristine_exports) is None


def test_another_version_of_depthkit_exports_again(pristine_exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        json.loads(recipe(pristine_exports, read_document(pristine_exports), FULL))["versions"]["depthkit"]
        == __version__
    )
    monkeypatch.setattr("depthkit.export.recipe.__version__", "0.0.0")
    assert _find(pristine_exports) is None


def test_gpu_build_of_onnx_runtime_is_onnx_runtime(pristine_exports: Path, installed: Install) -> None:
    """`depthkit[gpu]` installs the distribution onnxruntime-gpu in place of onnxruntime."""
    installed({"onnxruntime": None, "onnxruntime-gpu": "1.31.1"})
    assert "1.31.1" in recipe(pristine_exports, read_document(pristine_exports), FULL)
    assert _find(pristine_exports) is None


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_size(path: Path) -> None:
    reference = read_reference(path)
    images, depths, truths = (array[:, :16] for array in (reference.images, reference.depths, reference.truths))
    write_reference(path, replace(reference, images=images, depths=depths, truths=truths))


def _other_weights(path: Path) -> None:
    write_reference(path, replace(read_reference(path), weights_sha256="0" * 64))


def _edit(change: Callable[[onnx.ModelProto], object]) -> Damage:
    def edit(path: Path) -> None:
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return edit


def _weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith("head.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))


def _metadata(key: str, value: str | None) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (index,) = [i for i, entry in enumerate(model.metadata_props) if entry.key == key]
        if value is None:
            del model.metadata_props[index]
        else:
            model.metadata_props[index].value = value

    return change


KEYS = [key for name, key in vars(METADATA).items() if not name.startswith("_")]
DAMAGES: dict[str, Damage] = {
    "truncated": _truncate,
    "gone": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("none"),
}
REFERENCE_DAMAGES = {**DAMAGES, "another size": _other_size, "other weights": _other_weights}
ONNX_DAMAGES = {
    **DAMAGES,
    "weight": _edit(_weight),
    "node renamed": _edit(lambda model: setattr(model.graph.node[3], "name", "edited")),
    "node gone": _edit(lambda model: model.graph.node.pop()),
    **{f"another {key}": _edit(_metadata(key, "{}")) for key in KEYS},
    **{f"without {key}": _edit(_metadata(key, None)) for key in KEYS},
}


@pytest.mark.parametrize("damage", REFERENCE_DAMAGES)
def test_damaged_reference_is_written_again(exports: Path, damage: str) -> None:
    REFERENCE_DAMAGES[damage](exports / f"{STEM}.reference.npz")
    assert _find(exports) is None


@pytest.mark.parametrize("damage", ONNX_DAMAGES)
def test_damaged_or_edited_onnx_file_is_written_again(exports: Path, damage: str) -> None:
    ONNX_DAMAGES[damage](exports / f"{STEM}.fp32.onnx")
    assert _find(exports) is None
    assert _find(exports, precision="fp16"), "the other file has nothing to do with it"


def test_range_that_was_edited_in_the_metadata_is_exported_again(exports: Path) -> None:
    model = read_document(exports).model
    wider = to_json(replace(model, depth_range=(0.0, 20.0)))
    _edit(_metadata(METADATA.spec, wider))(exports / f"{STEM}.fp32.onnx")
    assert _find(exports) is None


def test_file_of_before_the_focal_length_is_read_and_current_only_if_it_is_unknown(exports: Path) -> None:
    path, document = exports / f"{STEM}.fp32.onnx", read_document(exports)
    _edit(_metadata(METADATA.spec, json.dumps(before_focal(to_json(document.model)))))(path)
    assert describe_onnx(path).model == replace(document.model, focal=None)
    for focal, current in ((None, path), (0.8, None)):
        changed = replace(document, model=replace(document.model, focal=focal))
        assert find_current(exports, changed, FULL) == current


def test_find_current_changes_nothing(exports: Path) -> None:
    before = {path.name: sha256(path) for path in exports.iterdir()}
    assert _find(exports)
    assert _find(exports, batch=2) is None
    assert {path.name: sha256(path) for path in exports.iterdir()} == before
