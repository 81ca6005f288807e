"""The documentation is true where a program can tell: names in docs/extending.md, links, extras, and the public API."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

import depthkit

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

_REFERENCE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml|yml)|(?:[\w-]+/)+)(?::([\w.]+))?`")


def references(page: str) -> list[tuple[str, str]]:
    """Path and symbol ("" for none) of each `path` and `path:symbol` on a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return list(dict.fromkeys((path, symbol or "") for path, symbol in _REFERENCE.findall(text)))


@cache
def symbols(path: str) -> frozenset[str]:
    """Names that a module defines, and `Class.member` for what its classes define."""
    return frozenset(_names(ast.parse((ROOT / path).read_text(encoding="utf-8"))))


def _names(node: ast.Module | ast.ClassDef, before: str = "") -> Iterator[str]:
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield f"{before}{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _names(child, f"{before}{child.name}.")
        targets = child.targets if isinstance(child, ast.Assign) else getattr(child, "target", None)
        for target in targets if isinstance(targets, list) else [targets]:
            if isinstance(target, ast.Name):
                yield f"{before}{target.id}"


@pytest.mark.parametrize(("path", "symbol"), references("extending.md"))
def test_what_extending_names_exists(path: str, symbol: str) -> None:
    assert (ROOT / path).exists()
    assert not symbol or symbol in symbols(path)


def test_extending_has_the_changes_that_people_make() -> None:
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    for section in ("A backend", "A precision", "A metric", "A data source", "A command"):
        assert f"\n## {section}\n" in text
    assert len(references("extending.md")) > 40


@pytest.mark.parametrize("path", references("files.md"), ids=lambda found: found[0])
def test_what_the_source_map_names_exists(path: tuple[str, str]) -> None:
    assert path[0] in {"depth/", "runs/"} or (ROOT / path[0]).exists()


def test_the_source_map_has_every_folder_and_every_file_of_the_ground_floor() -> None:
    named = {path for path, _ in references("files.md")}
    folders = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    files = {path.name for path in ROOT.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert folders | files <= named


def test_the_api_page_shows_every_public_name() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    from depthkit import testing

    assert shown >= {name for name in (*depthkit.__all__, *testing.__all__) if not name.startswith("__")}


def test_the_table_of_extras_has_every_extra() -> None:
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^([\w-]+) = \[", table.partition("\n[")[0], re.MULTILINE))
    page = (DOCS / "index.md").read_text(encoding="utf-8").partition("### Which extra?")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == extras


def test_every_page_is_in_the_navigation() -> None:
    """MkDocs checks it too; here it is checked without MkDocs. Decisions have an index of their own."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    listed = set(_leaves(yaml.safe_load(text)["nav"]))
    index = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    listed |= {f"decisions/{name}" for name in re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index)}
    assert pages == listed


def _leaves(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list):
        for each in tree:
            yield from _leaves(each)
    elif isinstance(tree, dict):
        yield from _leaves(list(tree.values()))


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith("http")]
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize(
    "path", [*sorted(DOCS.rglob("*.md")), *ROOT.glob("*.md")], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_placeholder_is_left(path: Path) -> None:
    """`@@NAME@@` stands for figures that are still to be measured."""
    assert re.findall(r"@@\w*@@", path.read_text(encoding="utf-8")) == []


def test_the_documented_line_for_nginx_lets_the_page_ask() -> None:
    """nginx sends its own name for the server as `Host` otherwise, and the guard takes the page for another site's."""
    guard = pytest.importorskip("depthkit.serve.guard", reason="pip install 'depthkit[serve]'")
    assert "`proxy_set_header Host $http_host;`" in (DOCS / "serve.md").read_text(encoding="utf-8")
    assert guard.refusal("depth.example", "https://depth.example", None) is None  # with a token: any name
    assert guard.refusal("127.0.0.1:8000", "https://depth.example", None) is not None
    assert guard.refusal("depth.example", "https://depth.example", "127.0.0.1") is not None


def test_the_site_shows_mkdocstrings_the_package_and_nothing_else() -> None:
    """By the hook's own rule; it must find what pyproject.toml ships."""
    code = (DOCS / "hooks.py").read_text(encoding="utf-8")
    scope: dict[str, object] = {"__file__": str(DOCS / "hooks.py"), "__name__": "hooks"}
    exec(compile(code, "hooks.py", "exec"), scope)
    modules = scope["modules"]()  # type: ignore[operator]
    shipped = re.findall(r'^    "(depthkit(?:\.\w+)*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    folders = {".".join(("depthkit", *path.relative_to(ROOT).parent.parts)) for path in modules}
    assert folders == set(shipped)
