"""Two benches of the same engines, before and after a change: what became slower, wrong or larger.

The two were measured in processes of their own, so that nothing pairs their turns: the draws of the new one have
another seed. Times of the same file that are divided by each other (`relative_to`) are so round by round, see
`statistics`.

An interval knows the noise of the turns that it was drawn from. It does not know what differs from process to process
(where memory lies; `tests/perf_bench.py` prints how much) or from hour to hour (who else uses the machine), and nothing
here widens it for that: `fail_above` must cover the first; against the second there are `relative_to` and warnings.
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

__all__ = ["Change", "Comparison", "Verdict", "compare", "markdown", "yardstick"]

Verdict = Literal["slower", "faster", "same", "unsure"]
FAIL_ABOVE: Final = 0.05
TORCH: Final = "torch"
MOST_TIMES_LONGER: Final = 30
"""Where more turns than so many times those that there were would be needed, no bench is long enough."""
_STRICTEST: Final = min(limit for each in PRECISIONS.values() if (limit := each.tolerance.max_abs_rel_loss) is not None)


@dataclass(frozen=True)
class Change:
    """A row of both results.

    Attributes:
        old, new: the row before and after.
        ratio: new median latency over the old one, with its 95 % interval; None: it cannot be told.
        verdict: of the latency; "slower" and "faster" only where the whole interval is beyond the limit.
        faults: what became worse, in words; empty: no regression.
        notes: what else became different, and why a verdict is unsure.
    """

    old: Row
    new: Row
    ratio: Interval | None
    verdict: Verdict
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the row."""
        return self.new.name


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        changes: rows of both results, in the order of the new one.
        gone, added: names of rows that only the old or only the new result has.
        warnings: what was different around them.
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
        """Rows of which something became worse."""
        return [change for change in self.changes if change.faults]

    @property
    def regressions(self) -> list[str]:
        """What became worse, in words; empty: nothing."""
        return [f"{change.name}: {fault}" for change in self.regressed for fault in change.faults]

    @property
    def headline(self) -> str:
        """The verdict in a sentence."""
        worse, rows = len(self.regressed), len(self.changes)
        said = f"{worse} of {rows} rows regressed" if worse else f"no regression in {rows} rows"
        counts = ((word, sum(change.verdict == word for change in self.changes)) for word in ("faster", "unsure"))
        rest = "".join(f", {count} {word}" for word, count in counts if count)
        return f"{said}{rest}; limit {100 * self.fail_above:g} %"


def compare(
    old: BenchResult, new: BenchResult, *, fail_above: float = FAIL_ABOVE, relative_to: str | None = None
) -> Comparison:
    """Compare row by row, see `_pairs`.

    Args:
        old, new: before and after.
        fail_above: by which share of the old median latency the new one may be larger; a regression is what is
            larger by more with all of its 95 % interval.
        relative_to: backend of the row by whose latency those of its model are divided first, in each of the results
            for itself: a machine that is slower as a whole then makes no difference.

    Raises:
        UserError: the results have no row in common; they are of different machines, and nothing is given to which
            times are relative; or no row of both has that backend.
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


def yardstick(old: BenchResult, new: BenchResult) -> str | None:
    """What times can be relative to, where nobody says: a backend that is not ours and was timed beside every model.

    torch, else the first of the vendors' own calls; None: there is none in both results.
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
"""By what rows of two results are the same: run and weights; weights, in a folder that was renamed; or the run, which
was trained anew, or whose weights an old file does not tell. None: this row is not paired so."""


def _part(row: Row) -> tuple[object, ...]:
    return row.network, row.size, row.batch, row.backend, row.precision, row.kind


def _pairs(old: Sequence[Row], new: Sequence[Row]) -> dict[int, int]:
    """Positions of the new rows with those of the old: by the first of `_SAME` that pairs them, several in order."""
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
                f"{'; '.join(others)}, so the times say nothing about the change; bench both on one machine, "
                "or name a backend to which times are relative (--relative-to torch)"
            )
        return
    backends = [{row.backend for row in result.rows if row.wall_ms and row.model} for result in (old, new)]
    if relative_to not in backends[0] & backends[1]:
        both = ", ".join(sorted(backends[0] & backends[1])) or "none"
        raise UserError(
            f"no row of {relative_to!r} was timed in both results, and times cannot be relative to it; "
            f"these were: {both}"
        )


def _machine(old: Environment, new: Environment) -> list[tuple[str, str, str]]:
    """What makes another machine: the thing, and its value before and after."""
    return [
        ("CPU", old.cpu.name, new.cpu.name),
        ("CPU's instruction sets", " ".join(old.cpu.isa), " ".join(new.cpu.isa)),
        ("GPU", old.gpu, new.gpu),
    ]


def _change(
    old: tuple[BenchResult, Row], new: tuple[BenchResult, Row], fail_above: float, relative_to: str | None
) -> Change:
    """Judge a row, each given with the result that it is in."""
    change = Change(old[1], new[1], None, "unsure")
    change = _judge_time(change, _ratio(old, new, relative_to), fail_above)
    faults = [*_gate_faults(change), *_accuracy_faults(change), *change.faults]
    notes = [*change.notes, *_mended(change), *_memory_notes(change, fail_above)]
    if old[1].weights and new[1].weights and old[1].weights != new[1].weights:
        notes.append("other weights than before")
    if new[1].backend == relative_to:
        notes.append("to which the others are relative")
    return replace(change, faults=tuple(faults), notes=tuple(notes))


def _ratio(old: tuple[BenchResult, Row], new: tuple[BenchResult, Row], relative_to: str | None) -> Interval | str:
    """New latency over old; or why there is none."""
    draws, middles = [], []
    for (result, row), seed, when in ((old, 0, "old"), (new, 1, "new")):
        peer = None if relative_to is None else _peer(result, row, relative_to)
        if relative_to is not None and peer is None:
            return f"the {when} result has no {relative_to} of {row.model or 'this model'} to which it is relative"
        for each in filter(None, (row, peer)):
            if not each.wall_ms:
                return f"the {when} one has no times"
            if len(each.turns) < LEAST_TURNS:
                return f"the {when} one has {len(each.turns)} turns, and an interval needs {LEAST_TURNS}; bench longer"
        if peer is None:
            drawn, middle = bootstrap_medians(row.wall_ms, row.turns, seed=seed), row.percentile(50)
        else:
            drawn, middle = bootstrap_ratios(row.medians, peer.medians, seed=seed)
        draws.append(drawn)
        middles.append(middle)
    return interval(draws[1] / draws[0], middles[1] / middles[0])


def _peer(result: BenchResult, row: Row, backend: str) -> Row | None:
    """The row of a backend that ran the same model; itself, if it is one."""
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
    """How many times as long a bench would tell: an interval narrows with the root of the number of turns."""
    factor = 1.0
    for limit in (low, high):
        if ratio.low <= limit <= ratio.high:
            reach = ratio.middle - ratio.low if limit < ratio.middle else ratio.high - ratio.middle
            distance = abs(ratio.middle - limit)
            factor = max(factor, (reach / distance) ** 2 if distance else np.inf)
    if factor > MOST_TIMES_LONGER:
        return "too noisy, or too near the limit, for a longer bench to tell"
    return f"about {np.ceil(factor * 2) / 2:g} times as many turns would tell; raise --duration in both"


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
        yield f"fails its gate, which it passed: {'; '.join(change.new.faults)}"


def _mended(change: Change) -> Iterator[str]:
    if change.new.passed and not change.old.passed:
        yield "passes its gate, which it failed" if change.old.faults else "runs, which it did not"


def _accuracy_faults(change: Change) -> Iterator[str]:
    """AbsRel against measured depth; where its precision has no limit of its own, the strictest of all holds."""
    old, new = change.old.accuracy, change.new.accuracy
    if old is None or new is None or _test_set(old) != _test_set(new):
        return
    before, after = old.scores.pooled.abs_rel, new.scores.pooled.abs_rel
    own = [each.tolerance.max_abs_rel_loss for name, each in PRECISIONS.items() if name == change.new.precision_asked]
    limit = own[0] if own and own[0] is not None else _STRICTEST
    if not isnan(before) and not after - before <= limit:
        yield f"AbsRel {before:.4f} → {after:.4f}, more than {limit:g} worse"


def _test_set(accuracy: Accuracy) -> tuple[str, int, int]:
    return Path(accuracy.data).name, accuracy.frames, accuracy.available


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
        yield "accuracy was measured on other test frames, and is not compared"


def _software(old: Environment, new: Environment) -> Iterator[tuple[str, str, str]]:
    """What else decides about latency: the thing, and its value before and after."""
    yield "cores", str(old.cores), str(new.cores)
    yield "OMP_NUM_THREADS", old.omp_num_threads, new.omp_num_threads
    yield "clock's governor", old.governor, new.governor
    yield "system", old.system, new.system
    yield "Python", old.python, new.python
    yield "depthkit", old.depthkit, new.depthkit
    for name in sorted({*old.packages, *new.packages}):
        yield name, old.packages.get(name, ""), new.packages.get(name, "")


def markdown(comparison: Comparison) -> str:
    """A comment for a pull request: the verdict, a table, and what to beware of."""
    mark = "❌" if comparison.regressions else "✅"
    change = f"change, relative to {comparison.relative_to}" if comparison.relative_to else "change"
    lines = [
        f"**{mark} depthkit bench: {comparison.headline}**",
        "",
        f"| row | p50 ms before | after | {change} | 95 % | verdict | why |",
        "|---|---:|---:|---:|---:|---|---|",
        *map(_line, comparison.changes),
    ]
    lists = (("Only before", comparison.gone), ("Only after", comparison.added), ("Beware", comparison.warnings))
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
