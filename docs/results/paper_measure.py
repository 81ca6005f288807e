"""What paper.md needs of runs: accuracy, latency, pictures. Each step adds its part to `paper/numbers.json`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from paper_numbers import (
    Ablated,
    Epoch,
    Frame,
    Numbers,
    Run,
    Sheets,
    Speed,
    TestSet,
    Timing,
    group,
    in_words,
    read_numbers,
    write_numbers,
)
from paper_pictures import SheetRow, draw_sheet

from depthkit.bench.accuracy import measure_accuracy
from depthkit.bench.environment import environment
from depthkit.bench.timing import Steady, time_paper, time_steady
from depthkit.commands.console import err, progress
from depthkit.data.dataset import RGBDDataset, evenly_spaced
from depthkit.data.images import resize_image
from depthkit.data.sources import open_dataset
from depthkit.errors import BundleError, GateError, UserError
from depthkit.frames import predict_frames
from depthkit.metrics import DepthScores, FrameScore, aggregate, score_frame, valid_pixels
from depthkit.runtime.load import load
from depthkit.runtime.null import NullSession
from depthkit.session import Session
from depthkit.spec import ModelSpec
from depthkit.train.bundle import read_bundle
from depthkit.train.document import BundleDocument, TrainingRecord, read_document
from depthkit.train.torch_session import TorchSession

__all__ = ["ablate_runs", "measure_runs", "time_targets"]

_SHOWN: Final = 6  # frames on a sheet
_TENTHS: Final = 10_000  # of a millimetre in a metre: the steps in which the median depth is found

_Item = TypeVar("_Item")


def measure_runs(folder: Path, runs: Sequence[Path], data: str, frames: int | None, *, again: bool) -> None:
    """Score runs on the test split, or evenly spaced `frames` of it, and draw the sheets.

    Raises:
        UserError: no such data or run, or the numbers so far are of other test frames.
        GateError: depth that is not finite.
    """
    numbers = read_numbers(folder)
    documents = {run: _read(run) for run in runs}
    test = open_dataset(data, "test")
    chosen = evenly_spaced(test, frames or len(test))
    test_set = numbers.test or _test_set(data, test, chosen, documents[runs[0]][0].model)
    if (test_set.data, test_set.frames, test_set.available) != (_last(data), len(chosen), len(test)):
        raise UserError(
            f"{folder}/numbers.json is of {test_set.frames} of {test_set.available} test frames of {test_set.data}; "
            "ask for the same, or remove it to start anew"
        )
    numbers = replace(numbers, test=test_set)
    options = ["--data", _last(data), *(["--frames", str(frames)] if frames else [])]
    command = _command("measure", *options, *map(_name, runs))
    for run, (document, training) in documents.items():
        weights = document.weights_sha256
        if not again and weights in {known.weights_sha256 for known in numbers.runs}:
            err.print(f"{run}: these weights met the test set before; their scores are kept", markup=False)
            continue
        others = [known for known in numbers.runs if known.weights_sha256 != weights]
        numbers = replace(numbers, runs=(*others, _measure(run, document, training, test, chosen, command)))
        write_numbers(folder, numbers)  # after each one: a test set that was met must not be forgotten
    at_hand = {document.weights_sha256: run for run, (document, _) in documents.items()}
    sheets = _draw_sheets(folder, numbers, at_hand, test)
    write_numbers(folder, replace(numbers, sheets=sheets))


def time_targets(folder: Path, targets: Sequence[Path], size: tuple[int, int], seconds: float) -> None:
    """Time runs by torch, at their own size and at `size` (height, width), and engines that stand in run folders.

    Raises:
        UserError: what cannot be opened.
    """
    numbers = read_numbers(folder)
    surroundings = environment(_command("time", *map(_name, targets)))
    with ExitStack() as stack:
        sessions: list[Session] = []
        frames: list[np.ndarray] = []
        for target in targets:
            bundle = read_bundle(target if target.is_dir() else target.parent)
            sizes = dict.fromkeys((bundle.spec.size, size))
            opened = [TorchSession(bundle, each) for each in sizes] if target.is_dir() else [load(target)]
            for session in opened:
                sessions.append(stack.enter_context(session))
                frames.append(np.stack([resize_image(image, session.spec.size) for image in bundle.frames.images]))
        by_paper = [time_paper(session) for session in _watched(sessions, "the paper's protocol")]
        steady = time_steady(sessions, frames, Steady(duration_s=seconds))
        rows = [_timing(*row) for row in zip(sessions, by_paper, steady, strict=True)]
    write_numbers(folder, replace(numbers, speed=Speed(tuple(rows), surroundings)))


def ablate_runs(folder: Path, rows: Sequence[tuple[str, Path]], data: str) -> None:
    """Score labelled runs on the validation split.

    Raises:
        UserError: no such data or run.
        GateError: depth that is not finite.
    """
    numbers = read_numbers(folder)
    validation = open_dataset(data, "val")
    found = []
    for label, run in rows:
        document, training = _read(run)
        with TorchSession(run) as session:
            scores = measure_accuracy(session, _pairs(validation, range(len(validation)), str(run)), validation.crop)
        found.append(
            Ablated(
                label=label,
                run=_name(run),
                size=training.size,
                epochs=training.epochs,
                seed=training.seed,
                weights_sha256=document.weights_sha256,
                scores=_finite(scores, run),
            )
        )
    write_numbers(folder, replace(numbers, ablation=tuple(found)))


def _test_set(data: str, test: RGBDDataset, chosen: Sequence[int], spec: ModelSpec) -> TestSet:
    train = open_dataset(data, "train")
    counts = np.zeros(10 * _TENTHS + 1, np.int64)  # a list of every pixel would not fit into memory
    for _, depth in _pairs(train, range(len(train)), "median depth"):
        measured = depth[valid_pixels(depth)]
        counts += np.bincount(np.rint(measured * _TENTHS).astype(int), minlength=len(counts))
    median = float(np.searchsorted(counts.cumsum(), counts.sum() / 2)) / _TENTHS
    with NullSession(spec, median) as session:
        scores = measure_accuracy(session, _pairs(test, chosen, "one depth everywhere"), test.crop)
    validation = len(open_dataset(data, "val"))
    return TestSet(_last(data), len(chosen), len(test), len(train), validation, median, scores)


def _read(run: Path) -> tuple[BundleDocument, TrainingRecord]:
    document = read_document(run)
    if document.training is None:
        raise BundleError(f"{run} does not say how it was trained; name a run that `depthkit train` left")
    return document, document.training


def _measure(
    run: Path,
    document: BundleDocument,
    training: TrainingRecord,
    test: RGBDDataset,
    chosen: Sequence[int],
    command: str,
) -> Run:
    surroundings = environment(command)
    plain: list[FrameScore] = []
    flipped: list[FrameScore] = []
    with TorchSession(run) as session:
        for image, truth in _pairs(test, chosen, str(run)):
            depth, mirrored = predict_frames(session, (image, image[:, ::-1]))
            plain.append(score_frame(depth, truth, test.crop))
            flipped.append(score_frame((depth + mirrored[:, ::-1]) / 2, truth, test.crop))
    return Run(
        name=_name(run),
        network=document.model.network,
        preset=training.preset,
        seed=training.seed,
        samples=training.samples,
        size=training.size,
        epochs=training.epochs,
        batch=training.batch,
        accumulate=training.accumulate,
        learning_rate=training.learning_rate,
        precision=training.precision,
        seconds=training.seconds,
        init=training.init,
        stages=training.stages,
        weights_sha256=document.weights_sha256,
        scores=_finite(aggregate(plain), run),
        flipped=_finite(aggregate(flipped), run),
        worst=_worst(_frame(test, index, score) for index, score in zip(chosen, plain, strict=True)),
        curve=_curve(run / "metrics.csv"),
        environment=surroundings,
    )


def _frame(test: RGBDDataset, index: int, score: FrameScore) -> Frame:
    alone = score.sums.scores()
    return Frame(_frame_name(test, index), index, alone.abs_rel, alone.rmse, alone.delta1)


def _worst(frames: Iterable[Frame]) -> tuple[Frame, ...]:
    measured = [frame for frame in frames if isfinite(frame.rmse)]
    return tuple(sorted(measured, key=lambda frame: -frame.rmse)[:_SHOWN])


def _finite(scores: DepthScores, run: Path) -> DepthScores:
    if not (isfinite(scores.mse) and isfinite(scores.pooled.rmse)):
        raise GateError(f"NaN or Inf in the depth of {run}, or no valid pixel in the data")
    return scores


def _curve(path: Path) -> tuple[Epoch, ...]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return tuple(
                Epoch(int(row["epoch"]), *(float(row[key]) for key in ("train_loss", "val_loss", "val_delta1")))
                for row in csv.DictReader(stream)
            )
    except (OSError, KeyError, ValueError) as error:
        raise BundleError(f"{path} is not the curve of a run ({error}); train again") from error


def _draw_sheets(folder: Path, numbers: Numbers, at_hand: Mapping[str, Path], test: RGBDDataset) -> Sheets | None:
    """Draw the first run of each group that is at hand (folders by their weights).

    Without runs of both networks the sheets stay as they are.
    """
    firsts = [members.first for members in group([run for run in numbers.runs if run.weights_sha256 in at_hand])]
    compacts = [run for run in firsts if run.network == "compact"]
    if not compacts or len(compacts) == len(firsts):
        err.print("the sheets of pictures stay as they are: they are drawn of runs of both networks")
        return numbers.sheets
    shown = [run for run in firsts if run is not compacts[-1]] + compacts[-1:]
    names = [f"{run.network}, {run.preset}\n{in_words(run.size)}, {run.epochs} epochs" for run in shown]
    positions = evenly_spaced(test, _SHOWN)
    with ExitStack() as stack:
        sessions = [stack.enter_context(TorchSession(at_hand[run.weights_sha256])) for run in shown]
        examples = [_row(test, p, _frame_name(test, p), sessions) for p in positions]
        failures = [_row(test, f.position, f"{f.name}\nRMSE {f.rmse:.2f} m", sessions[-1:]) for f in shown[-1].worst]
    draw_sheet(folder / "qualitative.png", examples, names)
    draw_sheet(folder / "failures.png", failures, names[-1:])
    return Sheets(tuple(run.weights_sha256 for run in shown))


def _row(test: RGBDDataset, position: int, label: str, sessions: Sequence[Session]) -> SheetRow:
    image, truth, _ = test[position]
    depths = [depth for session in sessions for depth in predict_frames(session, [image])]
    return SheetRow(label, image, truth, tuple(depths))


def _timing(session: Session, by_paper: Sequence[float], steady: Sequence[float]) -> Timing:
    spec = session.spec
    return Timing(
        network=spec.network,
        engine=session.provider,
        precision=session.precision,
        size=spec.size,
        parameters=spec.parameters,
        macs=spec.macs,
        paper_ms=tuple(round(t, 4) for t in by_paper),
        steady_ms=tuple(round(t, 4) for t in steady),
    )


def _pairs(data: RGBDDataset, indices: Sequence[int], what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for index in _watched(indices, what):
        image, depth, _ = data[index]
        yield image, depth


def _watched(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    with progress() as bar:
        yield from bar.track(items, description=what)


def _frame_name(data: RGBDDataset, index: int) -> str:
    return Path(data.source(index)).stem


def _name(path: Path) -> str:
    """The last two parts of a path: what a run is called wherever it lies."""
    return "/".join(path.resolve().parts[-2:])


def _last(data: str) -> str:
    return Path(data).resolve().name


def _command(*words: str) -> str:
    return " ".join(["python docs/results/paper.py", *words])
