"""How the pipeline says what it does, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["Mark", "Tell", "silent"]

Mark = Literal["pass", "FAIL", "wrote", "kept", "copied", "built", "found", "waits", "note", "skipped"]
"""What kind of step was done; `skipped`: something was left out, and the text says why."""

Tell = Callable[[Mark, str], None]
"""Told each step in words, as it is done."""


def silent(_mark: Mark, _text: str) -> None:
    """Listen to nothing."""
