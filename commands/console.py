"""The consoles of the commands: results on stdout, progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..pipeline.tell import Mark

__all__ = ["clip_progress", "err", "out", "progress", "table", "tell"]

_WIDTH: Final = 140  # columns if the output is not a terminal


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, soft_wrap=True, width=_WIDTH)


def _on_one_screen() -> bool:
    """Whether both outputs are terminals: then one console writes to both, which keeps its progress bar at the end."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


out: Final = _console(stderr=False)
err: Final = out if _on_one_screen() else _console(stderr=True)


_STYLES: Final[dict[Mark, str]] = {
    "pass": "green",
    "FAIL": "red",
    "wrote": "green",
    "kept": "green",
    "built": "green",
    "found": "green",
    "waits": "yellow",
    "note": "yellow",
    "read": "cyan",
    "warns": "yellow",
}


def tell(mark: Mark, text: str) -> None:
    """Print a step of the pipeline; skipped ones to stderr."""
    if mark == "skipped":
        err.print(f"skipped {text}", style="yellow", markup=False)
    elif mark == "copied":
        out.print(text, markup=False)
    else:
        out.print(Text.assemble("  ", (f"{mark:<5}", _STYLES[mark]), " ", text))


def progress() -> Progress:
    """A progress bar that disappears when done; disabled if stderr is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def clip_progress() -> Progress:
    """Like `progress`, for frames: with their number, rate and what else the task's field `more` says."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} frames{task.fields[more]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def table(*headings: str, text: Collection[str], title: str | None = None) -> Table:
    """A table that fits in 80 columns: columns named in `text` wrap, figures do not."""
    made = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for heading in headings:
        if heading in text:
            made.add_column(heading, overflow="fold")
        else:
            made.add_column(heading, justify="right", no_wrap=True)
    return made
