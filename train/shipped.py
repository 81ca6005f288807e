"""Built-in weights: finished runs in `weights/`, which may be read-only. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import UserError
from .document import MODEL

__all__ = ["SHIPPED", "shipped_names", "shipped_run"]

SHIPPED: Final = Path(__file__).resolve().parents[1] / "weights"
"""Folder of the built-in runs."""


def shipped_names() -> list[str]:
    """Names of the built-in weights."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MODEL}"))


def shipped_run(name: str) -> Path:
    """The run folder of built-in weights. Raises UserError, with the known names, for an unknown name."""
    if name not in shipped_names():
        raise UserError(f"there are no built-in weights {name!r}; choose one of {', '.join(shipped_names())}")
    return SHIPPED / name
