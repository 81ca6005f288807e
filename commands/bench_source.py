"""`depthkit bench --source`: engines on a clip, from file to video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ..files import write_text
from ..pipeline.end_to_end import STAGES, EndToEnd, measure_source
from .console import out, progress, table

__all__ = ["OPTIONS", "bench_source"]

OPTIONS: Final = frozenset({"source", "engines", "seconds", "json_file", "markdown_file", "runs"})
"""Names of the parameters of `bench` that go with `--source`."""


def bench_source(
    place: str, engines: Sequence[Path], seconds: float, *, json_file: Path | None, markdown_file: Path | None
) -> None:
    """Measure engines one after the other, and show and write what was found."""
    with progress() as bar:
        tracked = bar.track(engines, description="file to video")
        found = [measure_source(place, engine, seconds) for engine in tracked]
    height, width = found[0].size
    rows = _rows(found)
    names = [Path(each.engine).name for each in found]
    shown = table("", *names, text={"", *names}, title=f"{Path(place).name}, {height}x{width}")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)
    if json_file is not None:
        write_text(json_file, json.dumps({"rows": [asdict(each) for each in found]}, indent=1) + "\n")
    if markdown_file is not None:
        lines = [f"| | {' | '.join(names)} |", "|---" + "|---:" * len(found) + "|"]
        write_text(markdown_file, "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n")


def _rows(found: Sequence[EndToEnd]) -> list[tuple[str, ...]]:
    """A line for each figure, a column for each engine."""
    figures: list[tuple[str, list[str]]] = [
        ("precision", [each.precision for each in found]),
        *((f"{stage}, ms", [f"{each.stages[stage]:.2f}" for each in found]) for stage in STAGES),
        ("engine alone, fps", [f"{each.alone:.1f}" for each in found]),
        ("file to color-video, fps", [f"{each.rate:.1f}" for each in found]),
        ("of the engine's own rate", [f"{each.share:.0%}" for each in found]),
        ("cores in use", [f"{each.cpu:.0%}" for each in found]),
        ("as a camera, fps", [f"{each.paced_rate:.1f}" for each in found]),
        ("frame age p50 / p99, ms", [f"{each.age_p50:.0f} / {each.age_p99:.0f}" for each in found]),
        ("answered + dropped", [f"{each.answered} + {each.dropped}" for each in found]),
    ]
    return [(what, *values) for what, values in figures]
