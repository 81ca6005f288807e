"""Every command has help, documentation and a test; help imports nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from depthkit.cli import COMMANDS
from depthkit.cli import cli as cli_group
from depthkit.commands.options import SectionedCommand

from ..support import Cli, run_cli_alone

ROOT = Path(__file__).parents[2]
LEARNING = {"torch", "onnx", "onnxruntime", "lightning", "kornia"}
HEAVY = LEARNING | {"matplotlib", "skimage", "scipy", "numpy", "pydantic", "rich"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, cli: Cli) -> None:
    text = cli(command, "--help").out
    assert "Example" in text
    assert f"depthkit {command}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_and_has_a_test(command: str) -> None:
    assert f"depthkit {command}" in (ROOT / "README.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert f'["{command}"' in tests or f'"{command}",' in tests


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_stands_under_one_heading(command: str) -> None:
    found = cli_group.get_command(click.Context(cli_group), command)
    if not isinstance(found, SectionedCommand):
        pytest.skip("has no headings")
    placed = [name for names in found.sections.values() for name in names]
    options = [each for each in found.params if isinstance(each, click.Option)]
    assert [sum(name in placed for name in each.opts) for each in options] == [1] * len(options)
    assert len(placed) == len(options)


def test_command_line_reference_is_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "reference.py", "--check"], check=True)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["export", "--help"], ["bench", "--help"], ["engines", "list", "--help"]],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    _, loaded = run_cli_alone(*arguments)
    assert loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("document", ["README.md", "docs/ci.md"])
def test_document_is_finished_and_its_links_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert "@@" not in text
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []
