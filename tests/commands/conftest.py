"""Command lines and benches, for every test in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthkit.bench.results import read_result
from depthkit.cli import run as depthkit

from ..support import Bench, Cli, Printed, RunBench

QUICK = ("--duration", "0.02", "--no-memory", "--no-roofline")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `depthkit`, and requires this exit code."""

    def run(*arguments: object, code: int = 0) -> Printed:
        capsys.readouterr()
        found = depthkit([str(argument) for argument in arguments])
        printed = Printed(*capsys.readouterr())
        assert found == code, printed.err
        assert "Traceback" not in printed.err
        return printed

    return run


@pytest.fixture
def bench(cli: Cli, tmp_path: Path) -> RunBench:
    """Runs `depthkit bench` for the shortest time, and requires this exit code."""

    def run(*arguments: object, code: int = 0) -> Bench:
        report = tmp_path / "bench.json"
        printed = cli("bench", *QUICK, "--json", report, *arguments, code=code)
        return Bench(read_result(report), *printed)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
