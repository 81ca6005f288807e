"""Accuracy on depth that is known exactly, at the camera's own size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, replace
from functools import partial

import numpy as np
import pytest

from depthkit.bench.accuracy import measure_accuracy
from depthkit.bench.contender import Contender, SampleSet
from depthkit.bench.suite import SuiteOptions, run_suite
from depthkit.bench.timing import Steady
from depthkit.data.images import resize_depth
from depthkit.errors import UserError
from depthkit.precisions import Precision
from depthkit.reference import Reference
from depthkit.session import Session
from depthkit.spec import Answers

QUICK = SuiteOptions(steady=Steady(0.0, 0.0, 2, rest_s=0.0), phases=False, memory=False, roofline=False)
Sample = tuple[np.ndarray, np.ndarray]


def _room(depth: float, size: tuple[int, int] = (40, 60)) -> Sample:
    return np.zeros((*size, 3), np.uint8), np.full(size, depth, np.float32)


@pytest.mark.parametrize("batch", [1, 2])
def test_exact_depth_has_no_error(recorded: type, batch: int) -> None:
    rooms = [_room(2.5), _room(2.5, (16, 32)), _room(2.5, (100, 31))]
    scores = measure_accuracy(recorded([], batch=batch), rooms, None)
    assert scores.frames == 3
    assert scores.mse == 0
    assert scores.ssim == pytest.approx(1)
    assert astuple(scores.pooled) == astuple(scores.per_image) == (0, 0, 0, 1, 1, 1)


def test_constant_offset_is_measured(recorded: type) -> None:
    scores = measure_accuracy(recorded([]), [_room(2.0)], None)
    assert scores.mse == pytest.approx(0.05**2)
    assert scores.pooled.abs_rel == pytest.approx(0.25)
    assert scores.pooled.rmse == pytest.approx(0.5)
    assert scores.pooled.log10 == pytest.approx(math.log10(1.25))
    assert (scores.pooled.delta1, scores.pooled.delta2) == (0, 1)


def test_each_answer_is_held_to_its_own_picture(recorded: type) -> None:
    """Brightness is depth: a picture that met its neighbour's truth would show."""
    rooms = [(np.full((20, 30, 3), 10 * n, np.uint8), np.full((20, 30), n, np.float32)) for n in range(1, 8)]
    session = recorded([], batch=3, answer=lambda frame: frame[..., 0].astype(np.float32) / 10)
    assert measure_accuracy(session, rooms, None).pooled.rmse == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("answers", "how"), [("inverse", "affine"), ("relative", "median")])
def test_what_has_no_metres_is_aligned_and_never_scored_without(recorded: type, answers: Answers, how: str) -> None:
    """Scale and shift of each picture differ, as those of such networks do."""
    truth = np.linspace(1, 8, 20 * 30, dtype=np.float32).reshape(20, 30)
    rooms = [(np.full((20, 30, 3), 10 * n, np.uint8), truth) for n in range(1, 6)]
    small = resize_depth(truth, (16, 32), smooth=True)

    def answer(frame: np.ndarray) -> np.ndarray:
        own = np.float32(frame[0, 0, 0])
        return own / small + own if answers == "inverse" else own * small

    session = recorded([], answer=answer)
    session.spec = replace(session.spec, answers=answers)
    scores = measure_accuracy(session, rooms, None)
    assert scores.pooled.abs_rel < 0.03, "what resizing costs"
    assert measure_accuracy(session, rooms, None, how) == scores  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"{answers} depth has no metres"):
        measure_accuracy(session, rooms, None, "none")


def test_pixels_that_were_not_measured_and_outside_the_crop_do_not_count(recorded: type) -> None:
    image, truth = _room(2.5)
    truth[:, 30:] = 0
    truth[:10] = 9
    scores = measure_accuracy(recorded([]), [(image, truth)], (slice(10, 40), slice(0, 60)))
    assert scores.pooled.rmse == 0
    assert scores.mse > 0, "the paper's takes the whole frame"


def test_samples_are_read_one_by_one(recorded: type) -> None:
    session = recorded([])
    ahead: list[int] = []

    def samples() -> Iterator[Sample]:
        for index in range(6):
            ahead.append(index - len(session.log))
            yield _room(2.5)

    assert measure_accuracy(session, samples(), None).frames == 6
    assert max(ahead) <= 1


def test_nothing_to_measure_is_nan(recorded: type) -> None:
    scores = measure_accuracy(recorded([]), [], None)
    assert scores.frames == 0
    assert math.isnan(scores.mse)


FP32, SHIFT = 1.05, 1.10
"""How much too far the two answer, on frames that are not in the reference; there both answer what torch did."""


def _unseen(reference: Reference) -> SampleSet:
    """Frames whose first pixel differs from all of the reference's, with measured depth."""
    pairs = list(zip(reference.images + np.uint8(100), reference.depths, strict=True))
    return SampleSet("nyu", 4, 654, None, pairs)


def _factor(recorded: type, reference: Reference, factor: float) -> Session:
    def answer(frame: np.ndarray) -> np.ndarray:
        first = int(frame[0, 0, 0])
        depth: np.ndarray = reference.depths[first % 100]
        return depth if first < 100 else depth * np.float32(factor)

    session: Session = recorded([], answer=answer)
    return session


@pytest.mark.parametrize("first", ["torch", "onnxruntime"])
@pytest.mark.parametrize(
    ("precision", "factor", "failed"),
    [("int8", SHIFT, True), ("fp16", FP32 + 0.003, True), ("fp16", FP32 + 0.001, False), ("fp32", SHIFT, False)],
)
def test_accuracy_is_held_to_the_fp32_row_of_the_run(
    recorded: type, reference: Reference, first: str, precision: Precision, factor: float, failed: bool
) -> None:
    samples = _unseen(reference)
    good, bad = (partial(_factor, recorded, reference, each) for each in (FP32, factor))
    chosen = [
        Contender("e", "openvino", bad, precision, reference, 1, run="mine"),
        Contender("f", first, good, "fp32", reference, 1, run="mine"),
        Contender("g", "torch", partial(_factor, recorded, reference, 0.5), "fp32", reference, 1, run="another"),
    ]
    row, *others = run_suite(chosen, samples, QUICK)[0].rows
    assert [fault for fault in row.faults if "on 4 measured frames" in fault] == list(row.faults)
    assert any(fault.startswith("AbsRel") for fault in row.faults) == failed
    assert row.passed != failed
    assert all(other.passed for other in others)


def test_without_an_fp32_row_the_fp32_file_is_measured_and_without_one_there_is_a_note(
    recorded: type, reference: Reference
) -> None:
    samples = _unseen(reference)
    good, bad = (partial(_factor, recorded, reference, each) for each in (FP32, SHIFT))
    alone = Contender("e", "openvino", bad, "int8", reference, 1)
    (row,) = run_suite([replace(alone, fp32=good)], samples, QUICK)[0].rows
    assert "worse than FP32's" in row.faults[0]

    def gone() -> Session:
        raise UserError("the FP32 ONNX file is not there")

    for fp32, why in ((None, "no FP32 row of this run"), (gone, "the FP32 ONNX file is not there")):
        (row,) = run_suite([replace(alone, fp32=fp32)], samples, QUICK)[0].rows
        assert row.passed
        assert any(note.startswith("no accuracy gate: ") and why in note for note in row.notes)
