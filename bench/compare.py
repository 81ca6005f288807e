"""Compare two benches of the same engines, before and after a change.

The two ran in separate processes, so their turns are independent: the new one's draws have another seed. Within a file,
times are divided by the peer's (`relative_to`) round by round, see `statistics`.

An interval covers only the noise between turns. It does not cover variation between processes (memory layout;
`tests/perf_bench.py` prints it) or between hours (other users of the machine). `fail_above` must cover the former;
`relative_to` and warnings help against the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Final, Literal

import numpy as np

from ..errors import UserError
from ..metrics import number
from ..precisions import PRECISIONS
from .environment import Environment
from .results import Accuracy, BenchResult, Row
from .statistics import LEAST_TURNS, Interval, bootstrap_medians, bootstrap_ratios, interval

__all__ = ["Change", "Comparison", "Verdict", "common_peer", "compare", "markdown"]

Verdict = Literal["slower", "faster", "same", "unsure"]
FAIL_ABOVE: Final = 0.05
TORCH: Final = "torch"
MOST_TIMES_LONGER: Final = 30
"""If more than this many times the turns were needed, no longer bench is suggested."""
_STRICTEST: Final = min(limit for each in PRECISIONS.values() if (limit := each.tolerance.max_abs_rel_loss) is not None)


@dataclass(frozen=True)
class Change:
    """A row of both results.

    Attributes:
        old, new: the row before and after.
        ratio: new median latency over the old one, with its 95 % interval; None: unknown.
        verdict: on the latency; "slower" and "faster" only if the whole interval is beyond the limit.
        faults: the regressions, in words; empty: none.
        notes: other changes, and why a verdict is unsure.
    """

    old: Row
    new: Row
    ratio: Interval | None
    verdict: Verdict
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The row's name."""
        return self.new.name


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        changes: rows of both results, in the order of the new one.
        gone, added: names of rows that only the old or only the new result has.
        warnings: differences of machine, software and protocol.
        fail_above, relative_to: see `compare`.
    """

    changes: tuple[Change, ...]
    gone: tuple[str, ...]
    added: tuple[str, ...]
    warnings: tuple[str, ...]
    fail_above: float
    relative_to: str | None

    @property
    def regressed(self) -> list[Change]:
        """Rows with a regression."""
        return [change for change in self.changes if change.faults]

    @property
    def regressions(self) -> list[str]:
        """All regressions, in words."""
        return [f"{change.name}: {fault}" for change in self.regressed for fault in change.faults]

    @property
    def headline(self) -> str:
        """The verdict in a sentence."""
        worse, rows = len(self.regressed), len(self.changes)
        verdict = f"{worse} of {rows} rows regressed" if worse else f"no regression in {rows} rows"
        counts = ((word, sum(change.verdict == word for change in self.changes)) for word in ("faster", "unsure"))
        rest = "".join(f", {count} {word}" for word, count in counts if count)
        return f"{verdict}{rest}; limit {100 * self.fail_above:g} %"


def compare(
    old: BenchResult, new: BenchResult, *, fail_above: float = FAIL_ABOVE, relative_to: str | None = None
) -> Comparison:
    """Compare row by row, see `_pairs`.

    Args:
        old, new: before and after.
        fail_above: allowed increase of the median latency, as a share of the old one. A row regresses if its whole 95 %
            interval is above.
        relative_to: a backend. In each result, the latency of every row is divided by that of this backend's row for
            the same model, so that an overall slower machine makes no difference.

    Raises:
        UserError: the results have no row in common; they are of different machines and `relative_to` is None; or they
            do not both have a row of that backend.
    """
    _require_comparable(old, new, relative_to)
    pairs = _pairs(old.rows, new.rows)
    if not pairs:
        raise UserError(
            f"the two results have no row in common: {_names(old.rows)} before, {_names(new.rows)} after; "
            "bench the same engines"
        )
    return Comparison(
        changes=tuple(
            _change((old, old.rows[pairs[index]]), (new, row), fail_above, relative_to)
            for index, row in enumerate(new.rows)
            if index in pairs
        ),
        gone=tuple(row.name for index, row in enumerate(old.rows) if index not in pairs.values()),
        added=tuple(row.name for index, row in enumerate(new.rows) if index not in pairs),
        warnings=tuple(_warnings(old, new)),
        fail_above=fail_above,
        relative_to=relative_to,
    )


def common_peer(old: BenchResult, new: BenchResult) -> str | None:
    """The default of `relative_to`: torch or else a raw vendor API that was timed for every model of both results.

    None: there is none.
    """
    for backend in dict.fromkeys(row.backend for row in new.rows if row.kind == "peer" or row.backend == TORCH):
        if all(_timed(result) == _timed_beside(result, backend) for result in (old, new)):
            return backend
    return None


def _timed(result: BenchResult) -> set[str]:
    return {row.model for row in result.rows if row.wall_ms and row.model}


def _timed_beside(result: BenchResult, backend: str) -> set[str]:
    return {row.model for row in result.rows if row.backend == backend and len(row.turns) >= LEAST_TURNS}


def _names(rows: tuple[Row, ...]) -> str:
    return "; ".join(dict.fromkeys(row.name for row in rows)) or "none"


_Key = Callable[[Row], tuple[object, ...] | None]
_SAME: Final[tuple[_Key, ...]] = (
    lambda row: (row.name, row.kind, row.weights),
    lambda row: (*_part(row), row.weights) if row.weights else None,
    lambda row: (row.name, row.kind),
)
"""Keys by which rows of two results are paired, in this order: run and weights; weights (the folder was renamed); run
(it was retrained, or an old file lacks the weights). None: the row cannot be paired by this key."""


def _part(row: Row) -> tuple[object, ...]:
    return row.network, row.size, row.resized_to, row.batch, row.backend, row.precision, row.kind


def _pairs(old: Sequence[Row], new: Sequence[Row]) -> dict[int, int]:
    """Positions of new rows -> of old rows, by the first key of `_SAME` that pairs them; equal ones in order."""
    found: dict[int, int] = {}
    for key in _SAME:
        left = [index for index in range(len(old)) if index not in found.values()]
        for index, row in enumerate(new):
            wanted = key(row)
            same = next((at for at in left if wanted is not None and key(old[at]) == wanted), None)
            if index not in found and same is not None:
                found[index] = same
                left.remove(same)
    return found


def _require_comparable(old: BenchResult, new: BenchResult, relative_to: str | None) -> None:
    if relative_to is None:
        others = [
            f"the {what} was {before or 'none'} and is {after or 'none'}"
            for what, before, after in _machine(old.environment, new.environment)
            if before != after
        ]
        if others:
            raise UserError(
                f"{'; '.join(others)}, so the times cannot be compared; bench both on one machine, "
                "or make times relative to a backend (--relative-to torch)"
            )
        return
    backends = [{row.backend for row in result.rows if row.wall_ms and row.model} for result in (old, new)]
    if relative_to not in backends[0] & backends[1]:
        both = ", ".join(sorted(backends[0] & backends[1])) or "none"
        raise UserError(
            f"no row of {relative_to!r} was timed in both results, so times cannot be relative to it; choose of: {both}"
        )


def _machine(old: Environment, new: Environment) -> list[tuple[str, str, str]]:
    """Properties that identify a machine: name, and value before and after."""
    return [
        ("CPU", old.cpu.name, new.cpu.name),
        ("CPU's instruction sets", " ".join(old.cpu.isa), " ".join(new.cpu.isa)),
        ("GPU", old.gpu, new.gpu),
    ]


def _change(
    old: tuple[BenchResult, Row], new: tuple[BenchResult, Row], fail_above: float, relative_to: str | None
) -> Change:
    """Judge a row; each is given with its result."""
    change = Change(old[1], new[1], None, "unsure")
    change = _judge_time(change, _ratio(old, new, relative_to), fail_above)
    faults = [*_gate_faults(change), *_accuracy_faults(change), *change.faults]
    notes = [*change.notes, *_fixed(change), *_memory_notes(change, fail_above)]
    if old[1].weights and new[1].weights and old[1].weights != new[1].weights:
        notes.append("weights changed")
    if new[1].backend == relative_to:
        notes.append("the others are relative to this row")
    return replace(change, faults=tuple(faults), notes=tuple(notes))


def _ratio(old: tuple[BenchResult, Row], new: tuple[BenchResult, Row], relative_to: str | None) -> Interval | str:
    """New latency over old; or why it is unknown."""
    draws, middles = [], []
    for (result, row), seed, when in ((old, 0, "old"), (new, 1, "new")):
        peer = None if relative_to is None else _peer(result, row, relative_to)
        if relative_to is not None and peer is None:
            return f"the {when} result has no {relative_to} row of {row.model or 'this model'}"
        for each in filter(None, (row, peer)):
            if not each.wall_ms:
                return f"the {when} row has no times"
            if len(each.turns) < LEAST_TURNS:
                return f"the {when} row has {len(each.turns)} turns, but an interval needs {LEAST_TURNS}; bench longer"
        if peer is None:
            drawn, middle = bootstrap_medians(row.wall_ms, row.turns, seed=seed), row.percentile(50)
        else:
            drawn, middle = bootstrap_ratios(row.medians, peer.medians, seed=seed)
        draws.append(drawn)
        middles.append(middle)
    return interval(draws[1] / draws[0], middles[1] / middles[0])


def _peer(result: BenchResult, row: Row, backend: str) -> Row | None:
    """The row of a backend for the same model; may be the row itself."""
    if row.backend == backend:
        return row
    peers = (each for each in result.rows if each.model == row.model and each.backend == backend and each.wall_ms)
    return next(peers, None) if row.model else None


def _judge_time(change: Change, ratio: Interval | str, fail_above: float) -> Change:
    if isinstance(ratio, str):
        return replace(change, notes=(ratio,))
    low, high = 1 - fail_above, 1 + fail_above
    if ratio.low > high:
        fault = f"slower: {_percent(ratio.middle)}, at least {_percent(ratio.low)}"
        return replace(change, ratio=ratio, verdict="slower", faults=(fault,))
    if ratio.high < low:
        return replace(change, ratio=ratio, verdict="faster")
    if low <= ratio.low and ratio.high <= high:
        return replace(change, ratio=ratio, verdict="same")
    return replace(change, ratio=ratio, verdict="unsure", notes=(_more_turns(ratio, low, high),))


def _more_turns(ratio: Interval, low: float, high: float) -> str:
    """How many times longer to bench for a verdict: an interval narrows with the square root of the number of turns."""
    factor = 1.0
    for limit in (low, high):
        if ratio.low <= limit <= ratio.high:
            reach = ratio.middle - ratio.low if limit < ratio.middle else ratio.high - ratio.middle
            distance = abs(ratio.middle - limit)
            factor = max(factor, (reach / distance) ** 2 if distance else np.inf)
    if factor > MOST_TIMES_LONGER:
        return "too noisy, or too near the limit, for a longer bench to decide"
    return f"needs about {np.ceil(factor * 2) / 2:g} times as many turns; raise --duration in both"


def _percent(ratio: float) -> str:
    """A ratio as a change.

    >>> _percent(1.1), _percent(0.9)
    ('+10.0 %', '-10.0 %')
    """
    return f"{number(100 * (ratio - 1), '+.1f')} %"


def _gate_faults(change: Change) -> Iterator[str]:
    if change.old.passed and change.new.error:
        yield f"no longer runs: {change.new.error}"
    elif change.old.passed and change.new.faults:
        yield f"fails its gate, which it passed before: {'; '.join(change.new.faults)}"


def _fixed(change: Change) -> Iterator[str]:
    if change.new.passed and not change.old.passed:
        yield "passes its gate, which it failed before" if change.old.faults else "runs, which it did not before"


def _accuracy_faults(change: Change) -> Iterator[str]:
    """AbsRel against measured depth; a precision without its own limit gets the strictest of all."""
    old, new = change.old.accuracy, change.new.accuracy
    if old is None or new is None or _test_set(old) != _test_set(new):
        return
    before, after = old.scores.pooled.abs_rel, new.scores.pooled.abs_rel
    own = [each.tolerance.max_abs_rel_loss for name, each in PRECISIONS.items() if name == change.new.precision_asked]
    limit = own[0] if own and own[0] is not None else _STRICTEST
    if not isnan(before) and not after - before <= limit:
        yield f"AbsRel {before:.4f} → {after:.4f}, more than {limit:g} worse"


def _test_set(accuracy: Accuracy) -> tuple[str, int, int, str]:
    return Path(accuracy.data).name, accuracy.frames, accuracy.available, accuracy.alignment


def _memory_notes(change: Change, most: float) -> Iterator[str]:
    old, new = change.old.memory, change.new.memory
    if old is None or new is None:
        return
    for what, before, after in (
        ("load", old.load_bytes, new.load_bytes),
        ("steady", old.steady_bytes, new.steady_bytes),
        ("GPU", old.device_bytes, new.device_bytes),
    ):
        if before and after and before > 0 and after > (1 + most) * before:
            yield f"{what} memory {before / 2**20:.1f} → {after / 2**20:.1f} MiB"


def _warnings(old: BenchResult, new: BenchResult) -> Iterator[str]:
    for what, before, after in chain(
        _machine(old.environment, new.environment), _software(old.environment, new.environment)
    ):
        if before != after:
            yield f"{what}: {before or 'none'} → {after or 'none'}"
    if old.protocol != new.protocol:
        yield f"protocol: {old.protocol} → {new.protocol}"
    for when, result in (("old", old), ("new", new)):
        if not result.complete:
            yield f"the {when} bench was interrupted"
        yield from (f"{when}: {note}" for note in result.notes)
    sets = [sorted({_test_set(row.accuracy) for row in result.rows if row.accuracy}) for result in (old, new)]
    if sets[0] and sets[1] and sets[0] != sets[1]:
        yield "accuracy was measured on different test frames or aligned otherwise, and is not compared"


def _software(old: Environment, new: Environment) -> Iterator[tuple[str, str, str]]:
    """Other properties that affect latency: name, and value before and after."""
    yield "cores", str(old.cores), str(new.cores)
    yield "OMP_NUM_THREADS", old.omp_num_threads, new.omp_num_threads
    yield "CPU governor", old.governor, new.governor
    yield "system", old.system, new.system
    yield "Python", old.python, new.python
    yield "depthkit", old.depthkit, new.depthkit
    for name in sorted({*old.packages, *new.packages}):
        yield name, old.packages.get(name, ""), new.packages.get(name, "")


def markdown(comparison: Comparison) -> str:
    """A comment for a pull request: verdict, table and warnings."""
    mark = "❌" if comparison.regressions else "✅"
    change = f"change, relative to {comparison.relative_to}" if comparison.relative_to else "change"
    lines = [
        f"**{mark} depthkit bench: {comparison.headline}**",
        "",
        f"| row | p50 ms before | after | {change} | 95 % | verdict | why |",
        "|---|---:|---:|---:|---:|---|---|",
        *map(_line, comparison.changes),
    ]
    lists = (("Only before", comparison.gone), ("Only after", comparison.added), ("Warnings", comparison.warnings))
    for title, entries in lists:
        if entries:
            lines += ["", f"{title}:", "", *(f"- {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def _line(change: Change) -> str:
    ratio = change.ratio
    cells = (
        change.name,
        *("" if row.p50_ms is None else f"{row.p50_ms:.2f}" for row in (change.old, change.new)),
        "" if ratio is None else _percent(ratio.middle),
        "" if ratio is None else f"{_percent(ratio.low)} … {_percent(ratio.high)}",
        f"**{change.verdict}**" if change.verdict == "slower" else change.verdict,
        "; ".join((*change.faults, *change.notes)),
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
