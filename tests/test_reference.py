"""The reference file of a model: read back exactly, and refused in one sentence when it is damaged."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from depthkit.errors import EngineError, OutputError
from depthkit.reference import Reference, find_reference, read_reference, write_reference

from .support import model_spec


def _reference(n: int = 2, height: int = 4, width: int = 5) -> Reference:
    rng = np.random.default_rng(n)
    depths, truths = rng.random((2, n, height, width)).astype(np.float32)
    return Reference(rng.integers(0, 256, (n, height, width, 3), np.uint8), depths, truths)


def _arrays() -> dict[str, Any]:
    reference = _reference()
    weights = np.array(reference.weights_sha256)
    return {
        "images": reference.images,
        "depths": reference.depths,
        "truths": reference.truths,
        "weights_sha256": weights,
    }


def _same(a: Reference, b: Reference) -> bool:
    return all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in ((a.images, b.images), (a.depths, b.depths), (a.truths, b.truths))
    )


def _bytes() -> bytes:
    reference, stream = _reference(), io.BytesIO()
    np.savez_compressed(stream, images=reference.images, depths=reference.depths, truths=reference.truths)
    return stream.getvalue()


WHOLE = _bytes()


@given(
    n=st.integers(1, 3),
    depths=npst.arrays(np.float32, (3, 3, 4), elements=st.floats(allow_nan=False, width=32)),
)
def test_reference_comes_back_exactly(n: int, depths: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "a.reference.npz"
    reference = Reference(np.full((n, 3, 4, 3), n, np.uint8), depths[:n], depths[:n] / 2)
    write_reference(path, reference)
    found = read_reference(path)
    assert _same(found, reference)
    assert found.size == (3, 4)


def test_reference_of_a_resizing_graph_is_not_one_of_the_whole_frame(tmp_path: Path) -> None:
    """Both have frames of one size, and the file beside a renamed ONNX file is found by what it holds."""
    plain = replace(_reference(), weights_sha256="0" * 64)
    for name, reference in (("a", plain), ("b", replace(plain, resized_to=(2, 4)))):
        write_reference(tmp_path / f"{name}.reference.npz", reference)
    assert [read_reference(tmp_path / f"{name}.reference.npz").network_size for name in "ab"] == [(4, 5), (2, 4)]
    whole, shrunk = model_spec(4, 5), model_spec(2, 4).with_camera((4, 5))
    for name, spec in (("a", whole), ("b", shrunk)):
        assert find_reference(tmp_path / "renamed.onnx", "0" * 64, spec).name == f"{name}.reference.npz"


def test_missing_reference_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"a\.reference\.npz.*depthkit export"):
        read_reference(tmp_path / "a.reference.npz")


@given(length=st.integers(0, len(WHOLE) - 1))
def test_truncated_reference_is_refused(length: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.npz"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(EngineError, match=r"cut\.npz.*depthkit export"):
        read_reference(path)


@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
@example(place=70, value=WHOLE[70] ^ 255)
@example(place=200, value=WHOLE[200] ^ 255)
def test_altered_byte_is_refused_or_does_no_harm(
    place: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "bent.npz"
    path.write_bytes(WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :])
    try:
        found = read_reference(path)
    except EngineError as error:
        assert "bent.npz" in str(error)
    else:
        assert _same(found, _reference())


@pytest.mark.parametrize("missing", ["images", "depths", "truths"])
def test_archive_that_lacks_an_array_is_refused(tmp_path: Path, missing: str) -> None:
    np.savez(tmp_path / "a.npz", **{name: value for name, value in _arrays().items() if name != missing})
    with pytest.raises(EngineError, match=missing):
        read_reference(tmp_path / "a.npz")


def test_single_array_is_no_reference(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(EngineError, match=r"a\.npz"):
        read_reference(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("images", np.zeros((3, 4, 5, 3), np.uint8)),
        ("images", np.zeros((2, 4, 5), np.uint8)),
        ("images", np.zeros((2, 4, 5, 3), np.float32)),
        ("depths", np.zeros((2, 4, 6), np.float32)),
        ("depths", np.zeros((2, 20), np.float32)),
        ("depths", np.zeros((), np.float32)),
        ("depths", np.zeros((2, 4, 5), np.int64)),
        ("truths", np.zeros((2, 5, 4), np.float32)),
        ("truths", np.zeros((2, 4, 5, 1), np.float32)),
        ("truths", np.array([print], dtype=object)),  # never unpickled
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path: Path, name: str, array: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", **{**_arrays(), name: array})
    with pytest.raises(EngineError, match=r"a\.npz"):
        read_reference(tmp_path / "a.npz")


def test_reference_of_no_frames_is_refused(tmp_path: Path) -> None:
    """Without frames every parity gate would hold."""
    np.savez(tmp_path / "a.npz", **{name: array[:0] for name, array in _arrays().items() if array.ndim})
    with pytest.raises(EngineError, match=r"a\.npz"):
        read_reference(tmp_path / "a.npz")


def test_reference_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_reference(tmp_path / "file" / "a.npz", _reference())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
