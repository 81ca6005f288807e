"""Vendors' own calls answer what our sessions answer, on the caller's memory, and say what they compute in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depthkit.errors import BackendError
from depthkit.parity import compare
from depthkit.reference import Reference, read_reference
from depthkit.runtime.runner import GRAPH_RUNNERS, open_peer
from depthkit.session import Session
from depthkit.train.peers import open_torch_peer

STEM = "compact-32x48"


@pytest.fixture
def reference(pristine_exports: Path) -> Reference:
    return read_reference(pristine_exports / f"{STEM}.reference.npz")


@pytest.mark.parametrize("name", GRAPH_RUNNERS)
def test_a_vendor_answers_the_same(name: str, pristine_exports: Path, reference: Reference) -> None:
    with open_peer(name, pristine_exports / f"{STEM}.fp32.onnx") as peer:
        assert isinstance(peer, Session)
        assert name in peer.provider
        found = compare(peer(reference.images), reference)
    assert found.max_abs_mm < (1 if peer.precision == "fp32" else 200)
    assert found.worst_ssim > 0.99


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_answers_the_same(
    compiled: bool, pristine_run: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled:  # in this thread: a first compilation keeps a pool of threads otherwise, until the process ends
        monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    with open_torch_peer(pristine_run, compiled=compiled) as peer:
        assert ("compile" if compiled else "eager") in peer.provider
        assert compare(peer(reference.images), reference).max_abs_mm < 1


@pytest.mark.parametrize("name", GRAPH_RUNNERS)
def test_memory_is_read_and_written_where_it_is(name: str, pristine_exports: Path, reference: Reference) -> None:
    image, depth = reference.images[:1].copy(), np.zeros((1, 32, 48), np.float32)
    with open_peer(name, pristine_exports / f"{STEM}.fp32.onnx") as peer:
        peer.bind(image=image, depth=depth)
        peer.run()
        first = depth.copy()
        image[:] = reference.images[1:2]
        peer.run()
    assert np.abs(first[0] - reference.depths[0]).max() < 0.2
    assert np.abs(depth[0] - reference.depths[1]).max() < 0.2
    assert not np.array_equal(first, depth)


@pytest.mark.parametrize("name", GRAPH_RUNNERS)
def test_a_file_that_a_vendor_rejects_raises_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match=f"{name} cannot be benched"):
        open_peer(name, tmp_path / "broken.onnx")
