"""The console that commands print to."""

from __future__ import annotations

from typing import Final

from rich.console import Console

__all__ = ["err", "out"]

out: Final = Console(highlight=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)
