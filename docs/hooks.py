"""MkDocs hook: show mkdocstrings the package, and only the package.

The repository root is the package (docs/decisions/0001), so beside its modules lie .venv/, build/ and tests/, which
mkdocstrings would read for minutes. It gets a folder with a link to each module instead.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "build" / "api" / "depthkit"
_OTHERS = {"build", "demo", "dist", "docs", "runs", "tests"}


def on_startup(**_: Any) -> None:
    """Link the package's modules into build/api, where mkdocs.yml makes mkdocstrings look, before it looks."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    for module in modules():
        link = PACKAGE / module.relative_to(ROOT)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(module)


def modules() -> list[Path]:
    """Every module of the package, as it stands in the checkout."""
    folders = [path for path in ROOT.iterdir() if (path / "__init__.py").is_file() and path.name not in _OTHERS]
    return sorted([*ROOT.glob("*.py"), *(module for folder in folders for module in folder.rglob("*.py"))])
