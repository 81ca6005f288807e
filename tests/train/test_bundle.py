"""The run bundle: what is written is what is read, and what was altered is refused."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from depthkit.errors import BundleError, DepthkitError, OutputError, SpecError, UserError
from depthkit.files import sha256
from depthkit.train.bundle import read_bundle, write_bundle
from depthkit.train.document import Frames
from depthkit.train.networks import build_network

from ..support import Place, at, places

BUNDLE = {"model.safetensors", "model.json", "frames.npz"}


def _archive(**arrays: np.ndarray) -> bytes:
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


IMAGES_ALONE = _archive(images=np.zeros((1, 4, 6, 3), np.uint8))


@pytest.fixture(scope="module")
def scratch(pristine_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose `model.json` and `frames.npz` tests overwrite; `pristine_run` holds the originals."""
    folder = tmp_path_factory.mktemp("scratch")
    for name in BUNDLE:
        shutil.copy(pristine_run / name, folder)
    return folder


def _document(folder: Path) -> Any:
    return json.loads((folder / "model.json").read_text(encoding="utf-8"))


def _edit(folder: Path, change: Callable[[Any], None]) -> None:
    document = _document(folder)
    change(document)
    (folder / "model.json").write_text(json.dumps(document), encoding="utf-8")


def _objects(document: Any) -> list[Place]:
    """Where its JSON objects stand. `versions` maps free names: any key may come or go there."""
    return [path for path, node in places(document) if isinstance(node, dict) and path[-1:] != ("versions",)]


def test_round_trip(pristine_run: Path, tmp_path: Path) -> None:
    first = read_bundle(pristine_run)
    write_bundle(tmp_path, first.network, first.spec, first.training, first.frames)
    second = read_bundle(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == BUNDLE
    assert (second.spec, second.training, second.folder) == (first.spec, first.training, tmp_path)
    assert second.weights_sha256 == first.weights_sha256 == sha256(pristine_run / "model.safetensors")
    assert _document(tmp_path) == _document(pristine_run)
    weights = second.network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in first.network.state_dict().items())
    np.testing.assert_array_equal(second.frames.images, first.frames.images)
    np.testing.assert_array_equal(second.frames.depths, first.frames.depths)


def test_weights_of_any_values_survive(pristine_run: Path, tmp_path: Path) -> None:
    bundle = read_bundle(pristine_run)
    network = build_network("compact")
    frames = Frames(np.zeros((2, 4, 6, 3), np.uint8), np.ones((2, 4, 6), np.float32))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 1e3)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    write_bundle(tmp_path, network, bundle.spec, bundle.training, frames)
    weights = read_bundle(tmp_path).network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())


def test_a_bundle_is_read_in_evaluation_mode(pristine_run: Path) -> None:
    assert not any(module.training for module in read_bundle(pristine_run).network.modules())


def test_a_missing_folder_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere.*depthkit train"):
        read_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(BUNDLE))
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(BundleError, match=name):
        read_bundle(run)


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        read_bundle(tmp_path)
    assert all(name in str(caught.value) for name in BUNDLE)
    assert "--resume" not in str(caught.value)


def test_a_run_that_was_cut_short_can_be_resumed(run: Path) -> None:
    for name in BUNDLE:
        (run / name).unlink()
    assert (run / "last.ckpt").is_file()
    with pytest.raises(BundleError, match=r"depthkit train.*--resume"):
        read_bundle(run)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda document: document.update(schema_version=1), SpecError, r"model\.json.*version 1"),
        (lambda document: document["model"].update(schema_version=5), SpecError, r"model\.json.*schema_version"),
        (lambda document: document["training"].update(momentum=0.9), SpecError, r"model\.json.*momentum"),
        (lambda document: document["model"].update(network="resnet"), UserError, "resnet"),
    ],
    ids=["schema version", "schema version of the spec", "unknown key", "unknown network"],
)
def test_a_document_that_does_not_fit_names_what(
    run: Path, change: Callable[[Any], None], error: type[DepthkitError], words: str
) -> None:
    _edit(run, change)
    with pytest.raises(error, match=words):
        read_bundle(run)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), value=st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()))
def test_any_unknown_key_is_refused(pristine_run: Path, scratch: Path, data: st.DataObject, value: Any) -> None:
    document = _document(pristine_run)
    node = at(document, data.draw(st.sampled_from(_objects(document)), label="object"))
    name = data.draw(st.text().filter(lambda text: text not in node), label="key")
    node[name] = value
    (scratch / "model.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SpecError):
        read_bundle(scratch)


def test_any_missing_key_is_refused(pristine_run: Path, scratch: Path) -> None:
    """All of them, one after another; the list is what was accepted."""
    document = _document(pristine_run)
    accepted = []
    for path in _objects(document):
        for key in at(document, path):
            shorter = copy.deepcopy(document)
            del at(shorter, path)[key]
            (scratch / "model.json").write_text(json.dumps(shorter), encoding="utf-8")
            try:
                read_bundle(scratch)
            except SpecError:
                continue
            accepted.append((*path, key))
    assert accepted == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_value_of_another_type_is_refused(pristine_run: Path, scratch: Path, data: st.DataObject) -> None:
    document = _document(pristine_run)
    node = at(document, data.draw(st.sampled_from(_objects(document)), label="object"))
    key = data.draw(st.sampled_from(list(node)), label="key")
    # No key of the document takes these, but for those that may be null.
    nullable = {"training", "init", "teacher", "place", "fingerprint", "depth_units", "focal", "resized_to"}
    nullable |= {"adopted", "network_output"}
    node[key] = data.draw(st.just([[]]) if key in nullable else st.none() | st.just([[]]), label="value")
    (scratch / "model.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SpecError):
        read_bundle(scratch)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        *[
            ("model.json", content, SpecError)
            for content in (b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000)
        ],
        *[("frames.npz", content, UserError) for content in (b"", b"no archive", b"PK\x03\x04", IMAGES_ALONE)],
    ],
)
def test_a_file_of_another_kind_is_named(run: Path, name: str, content: bytes, error: type[DepthkitError]) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(error, match=re.escape(name)):
        read_bundle(run)


def test_changed_weights(run: Path) -> None:
    path = run / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        read_bundle(run)


@pytest.mark.parametrize("kind", ["another network", "no weights", "empty"])
def test_weights_that_do_not_fit_though_their_hash_does(run: Path, kind: str) -> None:
    path = run / "model.safetensors"
    if kind == "another network":
        save_file(build_network("unet").state_dict(), path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"these are no weights")
    _edit(run, lambda document: document.update(weights_sha256=sha256(path)))
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        read_bundle(run)


@settings(max_examples=100, deadline=None, report_multiple_bugs=False)
@given(data=st.data())
def test_damaged_frames_are_refused_or_read(pristine_run: Path, scratch: Path, data: st.DataObject) -> None:
    """Whatever the archive's reader makes of a damaged file, only our own error comes out."""
    shutil.copy(pristine_run / "model.json", scratch)
    path, depths = scratch / "frames.npz", np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    content = bytearray(_archive(images=np.full((1, 4, 6, 3), 7, np.uint8), depths=depths))
    if data.draw(st.booleans(), label="truncated"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3), label="places"):
            content[place] ^= data.draw(st.integers(1, 255), label="bits")
    path.write_bytes(content)
    try:
        frames = read_bundle(scratch).frames
    except UserError as error:
        assert "frames.npz" in str(error)
    else:
        assert (frames.images == 7).all()
        np.testing.assert_array_equal(frames.depths, depths)


def test_a_folder_that_cannot_be_written(pristine_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    bundle = read_bundle(pristine_run)
    with pytest.raises(OutputError, match="file"):
        write_bundle(tmp_path / "file" / "run", bundle.network, bundle.spec, bundle.training, bundle.frames)
