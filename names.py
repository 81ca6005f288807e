"""Names and defaults that `--help` shows, in one file that imports nothing."""

from __future__ import annotations

from typing import Final

__all__ = ["DEPTH_UNITS"]

DEPTH_UNITS: Final = 1000.0
"""Units of stored depth per metre where neither the user nor a run says otherwise: millimetres."""
