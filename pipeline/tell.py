"""The callback type by which the pipeline reports its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["Mark", "Tell", "silent"]

Mark = Literal["pass", "FAIL", "wrote", "kept", "copied", "built", "found", "waits", "note", "read", "warns", "skipped"]
"""The kind of step; for `skipped` the text gives the reason."""

Tell = Callable[[Mark, str], None]
"""Called with every step and its description."""


def silent(_mark: Mark, _text: str) -> None:
    """Ignore all steps."""
