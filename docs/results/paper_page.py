"""paper.md out of `paper/numbers.json`: tables here, sentences in `paper/page.md.j2`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import mean, median
from typing import Final

from jinja2 import Environment as Templates
from jinja2 import StrictUndefined
from paper_numbers import Frame, Group, Numbers, Run, Speed, Spread, Timing, group, in_words, spread

from depthkit.bench.environment import Environment
from depthkit.errors import UserError
from depthkit.metrics import DepthScores, Scores

__all__ = ["render_page"]

PAPER: Final = {
    "unet": {"mse": 0.04781, "ssim": 0.7549, "ms": 163.45, "fps": 6.1, "parameters": 17.26},
    "compact": {"mse": 0.04588, "ssim": 0.7779, "ms": 28.11, "fps": 35.5, "parameters": 1.22},
}
"""Tables 1 and 2 of the paper; NYU Depth v2, a Titan with the Pascal architecture."""

GOALS: Final = (("δ1", "delta1", "≥", 0.65), ("AbsRel", "abs_rel", "≤", 0.22), ("RMSE m", "rmse", "≤", 0.80))

_HEADINGS: Final = ("AbsRel", "RMSE m", "log10", "δ1", "δ2", "δ3")


def render_page(numbers: Numbers, folder: Path) -> str:
    """The whole page.

    Args:
        numbers: what was measured.
        folder: with the template, `page.md.j2`, and a sentence on each failure, `failures.json`.

    Raises:
        UserError: the comparison lacks a network, or a failure its sentence.
    """
    groups = group(numbers.runs)
    pairs = _pairs(groups)
    paper = next((pair for pair in pairs if pair[0].first.preset == "paper"), None)
    if paper is None:
        raise UserError(
            "the comparison needs a run of unet and one of compact with --preset paper and the same other options; "
            "measure them with `python docs/results/paper.py measure`"
        )
    test = numbers.test
    assert test is not None, "there are runs"
    templates = Templates(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701 - Markdown
    template = templates.from_string((folder / "page.md.j2").read_text(encoding="utf-8"))
    return template.render(
        test=test,
        paper=PAPER,
        sizes=sorted({run.size for run in numbers.runs if run.preset == "paper"}),
        epochs=sorted({run.epochs for run in numbers.runs if run.preset == "paper"}),
        trainings=[_training(run, test.data) for members in groups for run in members.runs],
        commands=_commands(numbers),
        machines=_machines(numbers),
        constant=test.constant,
        paper_rms_m=(10 * PAPER["compact"]["mse"] ** 0.5, 10 * test.constant.mse**0.5),
        table1=_table1(*paper),
        verdicts=_verdicts(paper),
        others=[(pair[1].first.preset, pair[1].first.epochs, _verdicts(pair)) for pair in pairs if pair is not paper],
        pooled=_accuracy(groups, lambda run: run.scores, lambda s: s.pooled, test.constant),
        per_image=_accuracy(groups, lambda run: run.scores, lambda s: s.per_image, test.constant),
        flipped=_accuracy(groups, lambda run: run.flipped, lambda s: s.pooled, None),
        each=_each(groups),
        goals=_goals([members for members in groups if members.first.network == "compact"]),
        table2=numbers.speed and _table2(numbers.speed),
        faster=numbers.speed and _faster(numbers.speed),
        ablation=numbers.ablation and _ablation(numbers),
        sheets=numbers.sheets and _sheets(numbers, folder),
    )


def _pairs(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """The baseline and compact, for every way in which both were trained."""
    return [
        (unet, compact)
        for unet in groups
        for compact in groups
        if (unet.first.network, compact.first.network) == ("unet", "compact") and unet.training == compact.training
    ]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Markdown, of which the first `words` columns are words and the others figures."""
    marks = ["---" if column < words else "---:" for column in range(len(headings))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, marks, *rows))


def _training(run: Run, data: str) -> str:
    accumulate = f" --accumulate {run.accumulate}" if run.accumulate > 1 else ""
    init = f" --init {run.init[:12]}" if run.init else ""
    return (
        f"depthkit train --network {run.network} --data {data} --size {in_words(run.size)} --epochs {run.epochs} "
        f"--batch {run.batch}{accumulate} --lr {run.learning_rate:g} --preset {run.preset} "
        f"--precision {run.precision} --seed {run.seed}{init} --out {run.name.partition('/')[0]}"
    )


def _environments(numbers: Numbers) -> list[Environment]:
    speed = [numbers.speed.environment] if numbers.speed else []
    return [run.environment for run in numbers.runs] + speed


def _commands(numbers: Numbers) -> list[str]:
    return list(dict.fromkeys(environment.command for environment in _environments(numbers)))


def _machines(numbers: Numbers) -> list[str]:
    return list(dict.fromkeys(_machine(environment) for environment in _environments(numbers)))


def _machine(e: Environment) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in e.packages.items())
    return (
        f"{e.gpu + ', ' if e.gpu else ''}{e.cpu.name}, {e.cores} core{'s' * (e.cores != 1)}, {e.memory_gib} GiB, "
        f"OMP_NUM_THREADS {e.omp_num_threads or 'not set'}; "
        f"{e.system}; Python {e.python}, {packages}; depthkit {e.depthkit} {e.commit}"
    )


def _table1(unet: Group, compact: Group) -> str:
    rows = [
        (
            f"{name} ({members.first.network})",
            f"{PAPER[members.first.network]['mse']:.5f}",
            members.spread(lambda run: run.scores.mse).text(5),
            f"{PAPER[members.first.network]['ssim']:.4f}",
            members.spread(lambda run: run.scores.ssim).text(4),
            str(len(members.runs)),
        )
        for name, members in (("baseline", unet), ("proposed", compact))
    ]
    return _table(("network", "MSE, paper", "MSE, here", "SSIM, paper", "SSIM, here", "seeds"), rows)


def _verdicts(pair: tuple[Group, Group]) -> list[str]:
    """Who is better in what the paper's Table 1 compares."""
    return [
        _verdict("MSE", *pair, lambda run: run.scores.mse, 5, higher_is_better=False),
        _verdict("SSIM", *pair, lambda run: run.scores.ssim, 4, higher_is_better=True),
    ]


def _verdict(
    name: str, unet: Group, compact: Group, figure: Callable[[Run], float], digits: int, *, higher_is_better: bool
) -> str:
    """Who is better, by how much, and whether that is more than another seed makes."""
    a, b = unet.spread(figure), compact.spread(figure)
    gain = (b.mean - a.mean) * (1 if higher_is_better else -1)
    better = "compact" if gain > 0 else "unet"
    known = [s.deviation for s in (a, b) if s.deviation is not None]
    if not known:
        against = "how much another seed changes is not known from one run each"
    else:
        against = f"{abs(gain) / max(known):.1f} times the standard deviation over seeds" if max(known) else "no spread"
    return f"{name}: {better} is better, by {abs(gain):.{digits}f} ({against})"


def _accuracy(
    groups: Sequence[Group],
    scores: Callable[[Run], DepthScores],
    part: Callable[[DepthScores], Scores],
    constant: DepthScores | None,
) -> str:
    def cells(spreads: Iterable[Spread]) -> list[str]:
        return [s.text(digits) for s, digits in zip(spreads, (5, 4, *[3] * 6), strict=True)]

    figures: list[Callable[[DepthScores], float]] = [lambda s: s.mse, lambda s: s.ssim]
    figures += [lambda s, name=f.name: getattr(part(s), name) for f in fields(Scores)]  # type: ignore[misc]
    rows = [
        [
            members.label,
            in_words(members.first.size),
            str(members.first.epochs),
            str(len(members.runs)),
            *cells(spread([figure(scores(run)) for run in members.runs]) for figure in figures),
        ]
        for members in groups
    ]
    if constant is not None:
        rows.append(["one depth everywhere", "", "", "", *cells(spread([figure(constant)]) for figure in figures)])
    return _table(("network, preset", "size", "epochs", "seeds", "MSE", "SSIM", *_HEADINGS), rows)


def _each(groups: Sequence[Group]) -> str:
    rows = [
        [
            f"`{run.name}`",
            members.label,
            f"`{run.weights_sha256[:12]}`",
            f"{run.seconds / 60:.0f}",
            ", ".join(f"{count} {stage}" for stage, count in run.stages),
            str(run.seed),
            f"{run.scores.mse:.5f}",
            f"{run.scores.ssim:.4f}",
            *(f"{getattr(run.scores.pooled, f.name):.3f}" for f in fields(Scores)),
        ]
        for members in groups
        for run in members.runs
    ]
    return _table(
        ("run", "network, preset", "weights", "trained min", "epochs", "seed", "MSE", "SSIM", *_HEADINGS), rows, 3
    )


def _goals(groups: Sequence[Group]) -> str:
    rows = []
    for name, field, relation, wanted in GOALS:
        cells = []
        for members in groups:
            found = members.spread(lambda run, field=field: getattr(run.scores.pooled, field))  # type: ignore[misc]
            reached = found.mean >= wanted if relation == "≥" else found.mean <= wanted
            cells.append(f"{found.text(3)}, {'reached' if reached else 'not reached'}")
        rows.append([name, f"{relation} {wanted:.2f}", *cells])
    headings = [f"{members.name}, {members.first.epochs} epochs" for members in groups]
    return _table(("", "goal", *headings), rows)


def _table2(speed: Speed) -> str:
    rows = [
        [network, "the paper's, Titan Pascal", "", "", f"{row['ms']:.2f}", f"{row['fps']:.1f}", "", "",
         f"{row['parameters']:.2f}", ""]
        for network, row in PAPER.items()
    ]  # fmt: skip
    rows += [
        [
            row.network,
            row.engine,
            row.precision,
            in_words(row.size),
            f"{mean(row.paper_ms):.2f}",
            f"{1000 / mean(row.paper_ms):.1f}",
            f"{median(row.steady_ms):.2f}",
            f"{1000 / mean(row.steady_ms):.1f}",
            f"{row.parameters / 1e6:.2f}",
            f"{row.macs / 1e9:.2f}",
        ]
        for row in sorted(speed.rows, key=lambda row: (row.size, row.engine, row.precision, row.network != "unet"))
    ]
    headings = (
        "network", "engine", "precision", "size", "mean ms", "FPS", "steady p50 ms", "FPS", "params M", "GMAC",
    )  # fmt: skip
    return _table(headings, rows, 4)


def _faster(speed: Speed) -> list[str]:
    """How many times faster compact is than unet, for each engine and size that timed both."""
    timed: dict[tuple[object, ...], dict[str, Timing]] = {}
    for row in speed.rows:
        timed.setdefault((row.size, row.engine, row.precision), {})[row.network] = row
    return [
        f"{mean(pair['unet'].paper_ms) / mean(pair['compact'].paper_ms):.1f} times at {in_words(pair['unet'].size)} "
        f"({pair['unet'].engine}, {pair['unet'].precision})"
        for pair in timed.values()
        if {"unet", "compact"} <= set(pair)
    ]


def _ablation(numbers: Numbers) -> str:
    labels = dict.fromkeys(row.label for row in numbers.ablation)
    rows = []
    for label in labels:
        of = [row for row in numbers.ablation if row.label == label]
        figures = [spread([getattr(row.scores.pooled, f) for row in of]).text(3) for f in ("delta1", "abs_rel", "rmse")]
        epochs = ", ".join(str(count) for count in dict.fromkeys(row.epochs for row in of))
        sizes = ", ".join(dict.fromkeys(in_words(row.size) for row in of))
        rows.append([label, sizes, epochs, str(len(of)), *figures])
    return _table(("trained with", "size", "epochs", "seeds", "δ1", "AbsRel", "RMSE m"), rows)


def _sheets(numbers: Numbers, folder: Path) -> dict[str, object]:
    """Which runs and frames the pictures show, and each failure with its sentence. Raises UserError."""
    assert numbers.sheets is not None
    by_weights = {run.weights_sha256: run for run in numbers.runs}
    shown = [by_weights[weights] for weights in numbers.sheets.weights]
    said = folder / "failures.json"
    sentences: dict[str, str] = json.loads(said.read_text(encoding="utf-8")) if said.is_file() else {}
    worst = shown[-1].worst
    unsaid = [frame.name for frame in worst if frame.name not in sentences]
    if unsaid:
        raise UserError(
            f"{said} has no sentence on {', '.join(unsaid)}; look at {folder / 'failures.png'} and "
            "write what went wrong in each"
        )
    return {
        "runs": [f"`{run.name}` ({run.network}, {run.preset}, seed {run.seed})" for run in shown],
        "failures": _failures(worst, sentences),
    }


def _failures(worst: Sequence[Frame], sentences: dict[str, str]) -> str:
    rows = [(f.name, sentences[f.name], f"{f.rmse:.2f}", f"{f.abs_rel:.2f}", f"{f.delta1:.2f}") for f in worst]
    return _table(("frame", "what went wrong", "RMSE m", "AbsRel", "δ1"), rows, 2)
