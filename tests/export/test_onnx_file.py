"""An export is written whole, with its reference, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from depthkit.errors import GateError, OutputError, SpecError
from depthkit.export import onnx_file
from depthkit.export.checks import Check, Subject
from depthkit.export.onnx_file import export_onnx, make_reference
from depthkit.export.recipe import ExportOptions, stem
from depthkit.export.torch_source import TorchSource
from depthkit.metrics import valid_pixels
from depthkit.pipeline.runs import open_source
from depthkit.reference import read_reference
from depthkit.spec import Dim
from depthkit.train.bundle import Bundle, read_bundle
from depthkit.train.torch_session import TorchSession

from ..support import model_spec

GOAL = "compact-32x48.fp16.onnx"


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_export_leaves_the_file_and_its_reference(pristine_run: Path, pristine_exports: Path) -> None:
    made = {"compact-32x48.fp32.onnx", "compact-32x48.fp16.onnx", "compact-32x48.reference.npz"}
    engines = {name for name in _names(pristine_exports) if ".ort.onnx" in name or ".null" in name}
    assert _names(pristine_exports) - _names(pristine_run) - engines == made


def test_reference_is_eight_frames_with_torchs_finite_answers(pristine_exports: Path) -> None:
    reference = read_reference(pristine_exports / "compact-32x48.reference.npz")
    assert reference.images.shape == (8, 32, 48, 3)
    assert reference.images.dtype == np.uint8
    assert np.isfinite(reference.depths).all()
    assert np.ptp(reference.depths) > 0, "a constant would say nothing of the network"
    assert len({image.tobytes() for image in reference.images}) == 8
    assert valid_pixels(reference.truths).any(axis=(1, 2)).all()
    with TorchSession(pristine_exports) as session:
        assert np.array_equal(session(reference.images), reference.depths)


def test_reference_follows_the_size_that_is_exported(pristine_run: Path) -> None:
    bundle = read_bundle(pristine_run)
    reference = make_reference(TorchSource(bundle), bundle.spec_at((48, 64)))
    assert reference.size == (48, 64)
    assert reference.images.shape == (8, 48, 64, 3)
    stored = bundle.frames.depths
    assert set(np.unique(reference.truths)) <= set(np.unique(stored)), "measured depth is never interpolated"


def test_failed_gate_leaves_no_file_under_the_goals_name(overflowing: Bundle) -> None:
    folder = overflowing.folder
    before = _names(folder)
    (folder / GOAL).write_text("an export of yesterday's weights")
    told: list[Check] = []
    with pytest.raises(GateError, match=GOAL) as caught:
        export_onnx(TorchSource(overflowing), ExportOptions("fp16"), told.append)
    assert _names(folder) == before
    assert caught.value.exit_code == 3
    assert [check.passed for check in told] == [True] * (len(told) - 1) + [False]
    assert told[-1].name in str(caught.value)
    # A CPU with FP16 arithmetic of its own overflows one check earlier, in ONNX Runtime.
    assert told[-1].name in {"torch FP16 vs FP32", "ONNX Runtime vs torch"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, GateError])
def test_export_that_does_not_pass_keeps_the_good_file_of_these_weights(
    exports: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    before = {path.name: path.read_bytes() for path in exports.iterdir()}

    def checks(_: Subject) -> Iterator[Check]:
        if stop is KeyboardInterrupt:
            raise KeyboardInterrupt
        yield Check("ONNX Runtime vs torch", passed=False, detail="too far away")

    monkeypatch.setattr(onnx_file, "run_checks", checks)
    with pytest.raises(stop):
        export_onnx(open_source(exports), ExportOptions("fp16"))
    assert {path.name: path.read_bytes() for path in exports.iterdir()} == before


def test_size_that_the_network_does_not_take_writes_nothing(run: Path) -> None:
    before = _names(run)
    with pytest.raises(SpecError, match=r"40x48.*32x48 and 48x48"):
        export_onnx(open_source(run), ExportOptions(size=(40, 48)))
    assert _names(run) == before


def test_goal_that_cannot_be_written_is_an_output_error(run: Path) -> None:
    (run / GOAL).mkdir()
    with pytest.raises(OutputError, match=GOAL):
        export_onnx(open_source(run), ExportOptions("fp16"))


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        (1, "Net-480x640"),
        (4, "Net-480x640-b4"),
        (Dim("batch", 1, 4, 8), "Net-480x640-b1to8"),
        (Dim("batch", 1, 1, 1), "Net-480x640-b1to1"),
    ],
)
def test_stem_depends_on_the_batch_and_the_camera(batch: int | Dim, name: str) -> None:
    spec = replace(model_spec(480, 640, batch), network="my.module:Net")
    assert stem(spec) == name
    assert stem(spec.with_camera((720, 1280))) == name.replace("480x640", "480x640-from-720x1280")
