"""Results of a bench: raw samples, and the environment they were taken in.

Derived figures are written beside the samples for readers without depthkit. They are recomputed when a file is read, so
editing them has no effect.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from pydantic import computed_field
from pydantic.dataclasses import dataclass

from ..documents import STRICT, from_json
from ..errors import DataError
from ..metrics import DepthScores, Scores
from ..names import file_name
from ..parity import Parity
from ..session import LayerTime
from ..sizes import describe_sizes
from ..spec import Answers
from .environment import Environment
from .parts import Accuracy, MemoryUse, Peaks, Roofline, Throughput
from .statistics import (
    LEAST_TURNS,
    Interval,
    bootstrap_medians,
    bootstrap_ratios,
    coefficient_of_variation,
    interval,
    turn_medians,
)

__all__ = [
    "MAY_BE_NAN",
    "PHASES",
    "Accuracy",
    "BenchResult",
    "MemoryUse",
    "Peaks",
    "Phase",
    "Roofline",
    "Row",
    "Throughput",
    "read_result",
]

Phase = Literal["preprocess", "h2d", "device", "d2h", "postprocess", "enqueue"]
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
MAY_BE_NAN: Final = {
    kind.__name__: frozenset(field.name for field in fields(kind) if field.type == "float")
    for kind in (Parity, DepthScores, Scores)
}
"""By type, the figures that may be NaN for a broken engine; JSON has null for NaN."""
_GZIP: Final = b"\x1f\x8b"  # how such a file begins (RFC 1952)
_NAMELESS: Final = 4
"""The schema version in which rows have no `run` and `weights`."""
_UNRESIZED: Final = 5
"""The schema version in which rows have no `resized_to`."""
_METRIC: Final = 6
"""The schema version in which all depth is in metres."""
_NAN: Final = frozenset[str]().union(*MAY_BE_NAN.values())


@dataclass(frozen=True, config=STRICT)
class Row:
    """One session of the bench.

    Attributes:
        network, backend, target: what ran; target is the file, or the run folder for torch. `network` may be empty for
            a trtexec row.
        kind: "engine": a depthkit session; "peer": the raw vendor API; "trtexec": read from a file of trtexec.
        provider: what really computed, in the vendor's words.
        precision_asked, precision: as asked for, and as really computed.
        size, batch: height and width of frames; frames per run.
        parameters, macs: of the network; macs for one frame.
        file_bytes: size of the engine on disk.
        wall_ms: host time of each measured run, in order; empty only if `error` says why.
        turns: number of runs of each turn; their sum is the length of `wall_ms`.
        phases: milliseconds of each phase in some runs after `wall_ms`; phases that were not measured are missing.
            `preprocess`, `postprocess`: resizing on the host. `h2d`, `device`, `d2h`: on CUDA by events; on a CPU,
            `device` is the host time of the whole run and there are no copies. `enqueue`: host time to start a run on
            CUDA.
        throughput: None: not measured.
        memory: see `MemoryUse`; None: not measured.
        energy_j: joules per frame of the device (GPU: NVML; CPU package: RAPL); None: not available.
        macs_share: share of the work of layers with weights that runs in the precision asked for; None: unknown.
        roofline: None: not measured.
        layers: the slowest first; empty: not profiled.
        parity: with the reference, on its frames; None: not compared.
        diverges: the first layer that diverges from the FP32 graph; empty: not searched, or none.
        accuracy: against measured depth; None: no data were given.
        faults: why the gate fails; empty: it passes.
        notes: reasons to doubt its figures.
        error: why the bench of this row ended early; empty: it did not.
        run, weights: name of the run, unique per run and weights in a result; SHA-256 of the weights; empty: unknown.
        resized_to: the network's height and width, if the graph resizes frames to it; None: that of the frames.
        answers: what the model answers, see `ModelSpec`; None: unknown.
    """

    network: str
    backend: str
    target: str
    kind: Literal["engine", "peer", "trtexec"]
    provider: str
    precision_asked: str
    precision: str
    size: tuple[int, int] | None
    batch: int
    parameters: int | None
    macs: int | None
    file_bytes: int | None
    wall_ms: tuple[float, ...]
    turns: tuple[int, ...]
    phases: dict[Phase, tuple[float, ...]]
    throughput: Throughput | None
    memory: MemoryUse | None
    energy_j: float | None
    macs_share: float | None
    roofline: Roofline | None
    layers: tuple[LayerTime, ...]
    parity: Parity | None
    diverges: str
    accuracy: Accuracy | None
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    error: str
    run: str = ""
    weights: str = ""
    resized_to: tuple[int, int] | None = None
    answers: Answers | None = None

    def __post_init__(self) -> None:
        if not (self.wall_ms or self.error):
            raise ValueError("wall_ms is empty, but error is too")
        if sum(self.turns) != len(self.wall_ms):
            raise ValueError(f"turns has {sum(self.turns)} runs, but wall_ms {len(self.wall_ms)}")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def name(self) -> str:
        """A readable name: model, backend and precision."""
        return ", ".join(filter(None, (self.model, self.backend, self.precision)))

    @property
    def model(self) -> str:
        """Network, sizes, batch, and the run unless it is named like the network; empty: unknown."""
        if not self.network or self.size is None:
            return ""
        network = file_name(self.network)
        batch = f" x{self.batch}" if self.batch > 1 else ""
        run = f" of {self.run}" if self.run not in {"", network} else ""
        return f"{network} {describe_sizes(self.size, self.resized_to or self.size)}{batch}{run}"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether it ran and passes its gate."""
        return not (self.faults or self.error)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_ms(self) -> float | None:
        """Mean latency of a run; like the following figures, None if nothing ran."""
        return float(np.mean(self.wall_ms)) if self.wall_ms else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p50_ms(self) -> float | None:
        """Median latency of a run."""
        return self.percentile(50) if self.wall_ms else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p90_ms(self) -> float | None:
        """90th percentile of the latency."""
        return self.percentile(90) if self.wall_ms else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p95_ms(self) -> float | None:
        """95th percentile of the latency."""
        return self.percentile(95) if self.wall_ms else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p99_ms(self) -> float | None:
        """99th percentile of the latency."""
        return self.percentile(99) if self.wall_ms else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cv(self) -> float | None:
        """Coefficient of variation of the latency."""
        return coefficient_of_variation(self.wall_ms) if self.wall_ms else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fps(self) -> float | None:
        """Frames per second, one run after the other: frames over total latency."""
        return self.batch * len(self.wall_ms) / (sum(self.wall_ms) / 1000) if self.wall_ms else None

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def p50_interval(self) -> Interval | None:
        """95 % interval of the median; None: too few turns."""
        if len(self.turns) < LEAST_TURNS:
            return None
        return interval(bootstrap_medians(self.wall_ms, self.turns), self.percentile(50))

    @cached_property
    def medians(self) -> np.ndarray:
        """The median latency of every turn, see `statistics.turn_medians`."""
        return turn_medians(self.wall_ms, self.turns)

    def percentile(self, percent: float) -> float:
        """A percentile of the latency, interpolated between runs."""
        return float(np.percentile(self.wall_ms, percent))


@dataclass(frozen=True, config=STRICT)
class BenchResult:
    """A whole bench. `to_json` writes the raw samples and the derived figures.

    Attributes:
        complete: False: the bench was interrupted, and the result has what was measured until then.
        notes: reasons to doubt all its figures: clock, governor or load.
    """

    environment: Environment
    protocol: Literal["steady", "paper"]
    rows: tuple[Row, ...]
    complete: bool = True
    notes: tuple[str, ...] = ()
    schema_version: Literal[7] = 7

    @property
    def failed(self) -> list[Row]:
        """Rows that could not be benched or fail their gate."""
        return [row for row in self.rows if not row.passed]

    @property
    def groups(self) -> list[list[Row]]:
        """Rows that may be compared with each other: of the same run and weights, sizes and batch."""
        models = dict.fromkeys(row.model for row in self.rows)
        return [[row for row in self.rows if row.model == model] for model in models]

    def baseline(self, row: Row) -> Row | None:
        """The row that a row is compared with: the first of its group that ran, which is torch if it was benched."""
        if not row.model:
            return None
        return next((other for other in self.rows if other.model == row.model and other.wall_ms), None)

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def speedups(self) -> dict[str, Interval]:
        """By a row's name: how many times as fast it is as its baseline, round by round, see `speedup`."""
        found = {}
        for row in self.rows:
            base = self.baseline(row)
            if row.wall_ms and base is not None and base is not row and (times := speedup(row, base)) is not None:
                found[row.name] = times
        return found


def speedup(row: Row, base: Row) -> Interval | None:
    """How many times as fast `row` is as `base`: the median over rounds; None: too few rounds for an interval."""
    if min(len(row.turns), len(base.turns)) < LEAST_TURNS:
        return None
    return interval(*bootstrap_ratios(base.medians, row.medians))


def read_result(path: Path) -> BenchResult:
    """Read `bench.json`, also one that gzip compressed.

    Raises:
        DataError: missing or unreadable.
        SpecError: not such a file.
        SchemaVersionError: written by another depthkit.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"cannot read {path}: {reason}; write one with `depthkit bench --json FILE`") from error
    return from_json(BenchResult, _without_figures(content), source=str(path))


def _without_figures(content: bytes) -> bytes:
    """The document without derived figures, and with NaN instead of JSON's null."""
    try:
        document = json.loads(content)
        if document["schema_version"] == _NAMELESS:
            _name_runs(document)
        if document["schema_version"] == _UNRESIZED:
            document.update(schema_version=_METRIC, rows=[{**row, "resized_to": None} for row in document["rows"]])
        if document["schema_version"] == _METRIC:
            _state_metres(document)
        for row in document["rows"]:
            for part, kind in ((row, Row), (row["throughput"], Throughput)):
                _drop_computed(part, kind)
            for scores in _scores(row):
                scores.update({key: math.nan for key, value in scores.items() if value is None and key in _NAN})
        _drop_computed(document, BenchResult)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return content  # not such a document; `from_json` reports that
    return json.dumps(document).encode()


def _name_runs(document: Any) -> None:
    """Upgrade a document from schema version 4 to 5: the run is taken from `target`, the weights are unknown."""
    for row in document["rows"]:
        target = Path(row["target"])
        folder = target if row["backend"].startswith("torch") else target.parent
        row.update(run="" if row["kind"] == "trtexec" else folder.name, weights="")
    document["schema_version"] = _UNRESIZED


def _state_metres(document: Any) -> None:
    """Upgrade a document from schema version 6 to 7, in which depth may have no metres, and scores may be aligned."""
    for row in document["rows"]:
        row["answers"] = None
        if row["parity"] is not None:
            row["parity"].update(is_metric=True, max_abs_percent=None)
        if row["accuracy"] is not None:
            row["accuracy"]["alignment"] = "none"
    document["schema_version"] = 7


def _drop_computed(part: Any, kind: Any) -> None:
    for key in kind.__pydantic_decorators__.computed_fields if part is not None else ():
        part.pop(key, None)


def _scores(row: Any) -> Iterator[Any]:
    if row["parity"] is not None:
        yield row["parity"]
    if row["accuracy"] is not None:
        scores = row["accuracy"]["scores"]
        yield from (scores, scores["pooled"], scores["per_image"])
