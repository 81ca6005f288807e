"""The console that commands print to: results on stdout, progress on stderr."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["err", "out", "progress"]

_WIDTH: Final = 140  # columns where the output is no terminal: a log, a pipe


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, soft_wrap=True, width=_WIDTH)


out: Final = _console(stderr=False)
err: Final = _console(stderr=True)


def progress() -> Progress:
    """A progress bar on stderr that goes away when it is done; nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
