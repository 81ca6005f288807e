"""Every command explains itself, is documented, and costs nothing until it is used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from depthkit.cli import COMMANDS
from depthkit.cli import run as depthkit

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "lightning",
    "kornia",
    "matplotlib",
    "skimage",
    "scipy",
    "numpy",
    "pydantic",
    "rich",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert depthkit([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"depthkit {command}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_and_has_a_test(command: str) -> None:
    assert f"depthkit {command}" in (ROOT / "README.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert f'["{command}"' in tests or f'"{command}",' in tests


def test_the_command_line_reference_is_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "reference.py", "--check"], check=True)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["export", "--help"], ["bench", "--help"], ["engines", "list", "--help"]],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from depthkit.cli import run; code = run(sys.argv[1:]);"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules}); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert loaded
    assert not loaded & HEAVY


def test_the_readme_is_finished_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "@@" not in text
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
