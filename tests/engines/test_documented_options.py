"""docs/engines.md lists every option of every backend with its real default."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from depthkit.engines.build import backend
from depthkit.names import BACKENDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "engines.md"


def test_table_of_options_is_complete() -> None:
    documented: dict[tuple[str, str], str] = {}
    name = ""
    for line in DOCUMENT.read_text(encoding="utf-8").partition("## Options")[2].splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")]
        if len(cells) == 6 and cells[2] not in {"option", "---"}:
            name = cells[1] or name
            documented[name, cells[2]] = cells[3]
    real = {(name, f.name): str(f.default) for name in BACKENDS for f in fields(backend(name).options)}
    assert documented == real


def test_table_of_backends_is_complete() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in BACKENDS:
        if name != "null":
            assert f"| `{name}` | `.{backend(name).extension}` |" in text
