"""docs/ci.md: its workflow is one, and every command line in it is one that depthkit takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from depthkit.cli import cli

TEXT = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
(_WORKFLOW,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def _workflow() -> Any:
    return yaml.load(_WORKFLOW, Loader=yaml.BaseLoader)  # of strings only: elsewhere `on` is True


def _steps() -> list[dict[str, Any]]:
    (job,) = _workflow()["jobs"].values()
    steps: list[dict[str, Any]] = job["steps"]
    return steps


def _lines() -> list[str]:
    """Commands of the workflow and of the console sessions."""
    scripts = [step["run"] for step in _steps() if "run" in step]
    consoles = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for script in (*scripts, *consoles) for line in script.splitlines()]
    return [line for line in lines if line.startswith("depthkit ")]


LINES = _lines()


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_is_valid(line: str) -> None:
    group = cli.make_context("depthkit", shlex.split(line)[1:])
    name, command, arguments = cli.resolve_command(group, [*group._protected_args, *group.args])
    assert command is not None
    command.make_context(name, arguments, parent=group)


def test_main_commands_are_there() -> None:
    assert len(LINES) == 6
    for part in ("export", "bench --until 1% --json new.json", "bench --compare old.json new.json"):
        assert any(part in line for line in LINES)


def test_workflow_runs_on_pull_requests_and_makes_the_base_on_the_default_branch() -> None:
    workflow = _workflow()
    assert set(workflow["on"]) == {"pull_request", "push"}
    assert workflow["permissions"]["pull-requests"] == "write"
    restored, saved = (
        next(step for step in _steps() if step.get("uses", "").startswith(f"actions/cache/{what}"))
        for what in ("restore", "save")
    )
    assert restored["with"]["path"] == saved["with"]["path"] == "old.json"
    assert saved["with"]["key"].startswith(restored["with"]["restore-keys"])
    assert "push" in saved["if"]


def test_regression_is_reported_and_fails() -> None:
    """The comparison's exit code is not swallowed, and the comment comes all the same."""
    compared, commented = (
        next(step for step in _steps() if step.get("name") == name) for name in ("Compare", "Comment")
    )
    assert "continue-on-error" not in compared
    assert "||" not in compared["run"]
    assert "!cancelled()" in commented["if"], "without a status function a step is left out after one that failed"
    assert "comment.md" in compared["run"]
    assert "--body-file comment.md" in commented["run"]
