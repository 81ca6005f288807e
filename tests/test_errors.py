"""The error tree: exit codes, the tree that the docstring draws, and that nothing of ours stands outside it."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import depthkit
from depthkit import errors

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BaseException)]


def _drawn_tree() -> dict[str, str]:
    """Child to parent, read off the drawing in the module's docstring."""
    parents: dict[str, str] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^ {4}([ │├└─]*)(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            above[depth] = found[2]
            parents[found[2]] = above[depth - 1] if depth else "Exception"
    return parents


def test_docstring_draws_the_tree_as_it_is() -> None:
    assert _drawn_tree() == {kind.__name__: kind.__bases__[0].__name__ for kind in CLASSES}


def test_every_error_is_a_depthkit_error_and_public() -> None:
    assert all(issubclass(kind, errors.DepthkitError) for kind in CLASSES)
    assert sorted(errors.__all__) == sorted([*(kind.__name__ for kind in CLASSES), "first_line"])


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_exit_code_says_whose_fault_it_is(kind: type[errors.DepthkitError]) -> None:
    """Scripts tell `the request was wrong` from `the engine is wrong`: a GateError is no UserError."""
    codes = {errors.UserError: 2, errors.GateError: 3, errors.DepthkitError: 1}
    assert kind("why").exit_code == next(code for base, code in codes.items() if issubclass(kind, base))
    assert kind.__doc__


def test_no_exception_is_defined_outside_the_tree() -> None:
    root = Path(depthkit.__file__).parent
    builtin = {name for name, kind in vars(__import__("builtins")).items() if inspect.isclass(kind)}
    strays = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if relative.parts[0].startswith(".") or relative.parts[0] in {"tests", "build", "docs", "errors.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            bases = [base.id for base in getattr(node, "bases", []) if isinstance(base, ast.Name)]
            if isinstance(node, ast.ClassDef) and any(
                b in builtin and b.endswith(("Error", "Exception")) for b in bases
            ):
                strays.append(f"{relative}: {node.name}")
    assert not strays, f"derive these from an error in errors.py: {strays}"
