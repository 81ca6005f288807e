"""Engines of OpenVINO and a session, for every test in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from depthkit.runtime.ov import OpenVinoSession

from ...support import STEM
from .engines import Engine, build_engine, open_session


@pytest.fixture(scope="session")
def engine(pristine_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build_engine(pristine_exports / f"{STEM}.fp32.onnx", tmp_path_factory.mktemp("ov") / "latency")


@pytest.fixture(scope="session")
def throughput(pristine_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("ov") / "throughput"
    return build_engine(pristine_exports / f"{STEM}.fp32.onnx", folder, hint="throughput")


@pytest.fixture
def session(engine: Engine) -> Iterator[OpenVinoSession]:
    with open_session(engine) as opened:
        yield opened
