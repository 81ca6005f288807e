"""`paper/numbers.json`: every figure of paper.md that is not the paper's own, and the means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from pydantic.dataclasses import dataclass

from depthkit.bench.environment import Environment
from depthkit.documents import STRICT, from_json, to_json
from depthkit.files import write_text
from depthkit.metrics import DepthScores

__all__ = [
    "Ablated", "Epoch", "Frame", "Group", "Numbers", "Run", "Sheets", "Speed", "Spread", "TestSet", "Timing", "group",
    "in_words", "read_numbers", "spread", "write_numbers",
]  # fmt: skip


@dataclass(frozen=True, config=STRICT)
class TestSet:
    """What runs are judged on, and what one depth everywhere scores there.

    Attributes:
        data: name of the data set's folder.
        frames, available: test frames that were used, evenly spaced, of how many.
        training, validation: frames in these splits.
        median: metres; of all training pixels.
        constant: scores of that one depth.
    """

    data: str
    frames: int
    available: int
    training: int
    validation: int
    median: float
    constant: DepthScores


@dataclass(frozen=True, config=STRICT)
class Frame:
    """A test frame, where it stands in the split, and how a run did on it alone."""

    name: str
    position: int
    abs_rel: float
    rmse: float
    delta1: float


@dataclass(frozen=True, config=STRICT)
class Epoch:
    """A line of a run's `metrics.csv`."""

    epoch: int
    train_loss: float
    val_loss: float
    val_delta1: float


@dataclass(frozen=True, config=STRICT)
class Run:
    """A run on the test set.

    Attributes:
        name: the last two parts of its path.
        samples, size, epochs, batch, accumulate, learning_rate, precision, seed, seconds, init, stages: how it was
            trained, as its bundle says.
        scores: as `depthkit evaluate` gives them.
        flipped: of the mean of a frame's depth and its mirrored picture's depth, mirrored back.
        worst: the frames of the largest RMSE, worst first.
        environment: where it was judged.
    """

    name: str
    network: str
    preset: str
    seed: int
    samples: int
    size: tuple[int, int]
    epochs: int
    batch: int
    accumulate: int
    learning_rate: float
    precision: str
    seconds: float
    init: str | None
    stages: tuple[tuple[str, int], ...]
    weights_sha256: str
    scores: DepthScores
    flipped: DepthScores
    worst: tuple[Frame, ...]
    curve: tuple[Epoch, ...]
    environment: Environment


@dataclass(frozen=True, config=STRICT)
class Timing:
    """Milliseconds of every run that counted, by the paper's protocol and by the steady one."""

    network: str
    engine: str
    precision: str
    size: tuple[int, int]
    parameters: int
    macs: int
    paper_ms: tuple[float, ...]
    steady_ms: tuple[float, ...]


@dataclass(frozen=True, config=STRICT)
class Speed:
    """Everything that was timed, on one machine in one go."""

    rows: tuple[Timing, ...]
    environment: Environment


@dataclass(frozen=True, config=STRICT)
class Ablated:
    """One run of an ablation on the validation split: never on the test set, which chooses nothing."""

    label: str
    run: str
    size: tuple[int, int]
    epochs: int
    seed: int
    weights_sha256: str
    scores: DepthScores


@dataclass(frozen=True, config=STRICT)
class Sheets:
    """What the sheets of pictures show: weights of runs, in order; the failures are the last one's."""

    weights: tuple[str, ...]


@dataclass(frozen=True, config=STRICT)
class Numbers:
    """The whole document."""

    test: TestSet | None
    runs: tuple[Run, ...]
    sheets: Sheets | None
    speed: Speed | None
    ablation: tuple[Ablated, ...]
    schema_version: Literal[1] = 1


def read_numbers(folder: Path) -> Numbers:
    """What was measured so far, from `numbers.json`: nothing where there is no file. Raises SpecError."""
    path = folder / "numbers.json"
    if not path.is_file():
        return Numbers(test=None, runs=(), sheets=None, speed=None, ablation=())
    return from_json(Numbers, path.read_bytes(), source=str(path))


def write_numbers(folder: Path, numbers: Numbers) -> None:
    """Write `numbers.json`, whole or not at all. Raises OutputError."""
    write_text(folder / "numbers.json", to_json(numbers))


@plain(frozen=True)
class Spread:
    """Mean and sample standard deviation (None: of one value there is none)."""

    mean: float
    deviation: float | None

    def text(self, digits: int) -> str:
        """As a table shows it."""
        tail = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{tail}"


def spread(values: Sequence[float]) -> Spread:
    """Of the values of several seeds.

    >>> spread([1.0, 2.0, 3.0]).text(1), spread([2.0]).text(2)
    ('2.0 ± 1.0', '2.00')
    """
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


@plain(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run of the lowest seed."""
        return self.runs[0]

    @property
    def label(self) -> str:
        """Network and preset."""
        return f"{self.first.network}, {self.first.preset}"

    @property
    def name(self) -> str:
        """Network, preset and size."""
        return f"{self.label}, {in_words(self.first.size)}"

    @property
    def training(self) -> tuple[object, ...]:
        """How the runs were trained."""
        return _training(self.first)

    def spread(self, figure: Callable[[Run], float]) -> Spread:
        """Of a figure of the runs."""
        return spread([figure(run) for run in self.runs])


def in_words(size: tuple[int, int]) -> str:
    """Height and width as `--size` takes them."""
    return f"{size[0]}x{size[1]}"


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs by what they share; the paper's preset and the baseline first."""
    found: dict[object, list[Run]] = {}
    for run in sorted(runs, key=_rank):
        found.setdefault((run.network, _training(run)), []).append(run)
    return [Group(tuple(members)) for members in found.values()]


def _training(run: Run) -> tuple[object, ...]:
    how = run.preset, run.size, run.samples, run.epochs, run.batch, run.accumulate, run.learning_rate, run.precision
    return *how, run.init or "", run.stages


def _rank(run: Run) -> tuple[object, ...]:
    return run.preset != "paper", run.preset, run.network != "unet", run.network, _training(run), run.seed
