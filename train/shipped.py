"""Built-in weights: finished runs in `weights/`, which may be read-only. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from ..errors import UserError
from .document import MODEL

__all__ = ["EVALUATION", "SHIPPED", "best_shipped", "shipped_names", "shipped_run"]

SHIPPED: Final = Path(__file__).resolve().parents[1] / "weights"
"""Folder of the built-in runs."""

EVALUATION: Final = "evaluation.json"
"""Scores of built-in weights on the test split, as `depthkit evaluate --json` prints them."""


def shipped_names() -> list[str]:
    """Names of the built-in weights."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MODEL}"))


def shipped_run(name: str) -> Path:
    """The run folder of built-in weights. Raises UserError, with the known names, for an unknown name."""
    if name not in shipped_names():
        raise UserError(f"there are no built-in weights {name!r}; choose one of {', '.join(shipped_names())}")
    return SHIPPED / name


def best_shipped() -> tuple[str, float]:
    """The name of the most accurate built-in weights, and their δ1 on the test frames of NYU Depth v2."""
    scores = {name: json.loads((SHIPPED / name / EVALUATION).read_bytes())[name] for name in shipped_names()}
    best = max(scores, key=lambda name: scores[name]["pooled"]["delta1"])
    return best, scores[best]["pooled"]["delta1"]
