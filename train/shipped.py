"""Weights that come with the package: finished runs in `weights/`, which may be read-only; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import UserError
from .document import MODEL

__all__ = ["SHIPPED", "shipped_names", "shipped_run"]

SHIPPED: Final = Path(__file__).resolve().parents[1] / "weights"
"""Folder of the shipped runs."""


def shipped_names() -> list[str]:
    """Names of the weights that are shipped."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MODEL}"))


def shipped_run(name: str) -> Path:
    """The run folder of shipped weights. Raises UserError, with the names there are, for any other name."""
    if name not in shipped_names():
        raise UserError(f"no weights {name!r} come with depthkit; choose one of {', '.join(shipped_names())}")
    return SHIPPED / name
