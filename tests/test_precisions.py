"""Precisions: a new one is missing nowhere."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import click
import pytest

from depthkit.commands.export import export
from depthkit.precisions import PRECISIONS, WIDENED, Precision, computed_in

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "commands", "data", "engines", "export", "pipeline", "report", "runtime", "train")
FILES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]


def _incomplete(source: str) -> list[str]:
    """Dictionary displays that have some precisions as keys, but not all; by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if len(keys & set(PRECISIONS)) > 1 and not keys >= set(PRECISIONS):
                found.append(f"line {node.lineno} lacks {sorted(set(PRECISIONS) - keys)}")
    return found


def test_the_type_names_the_precisions_of_the_table() -> None:
    assert get_args(Precision) == tuple(PRECISIONS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_table_by_precision_has_all(path: Path) -> None:
    assert _incomplete(path.read_text(encoding="utf-8")) == []


def test_a_table_that_lacks_a_precision_is_found() -> None:
    assert _incomplete('HINTS = {"fp32": "f32", "fp16": "f16", "int8": "f32"}') == ["line 1 lacks ['bf16']"]


def test_export_has_a_flag_for_each_but_the_default() -> None:
    flags = {name for each in export.params if isinstance(each, click.Option) for name in each.opts}
    assert {f"--{name}" for name in PRECISIONS if name != "fp32"} <= flags


def test_an_engine_tells_what_it_multiplies_in() -> None:
    assert {name: computed_in(name) for name in PRECISIONS} == {name: name for name in PRECISIONS}
    assert computed_in(WIDENED) == "fp32"
    assert computed_in("unknown") is None
