"""Engines of OpenVINO and a session, for every test in this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import onnx
import pytest

from depthkit.export.graph import Origin, build_graph
from depthkit.runtime.ov import OpenVinoSession
from depthkit.spec import Dim
from depthkit.train.bundle import read_bundle
from depthkit.train.networks import compact, describe_network

from .engines import STEM, Engine, build_engine, open_session


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="session")
def engine(pristine_exports: Path, folder: Path) -> Engine:
    return build_engine(pristine_exports / f"{STEM}.fp32.onnx", folder / "fp32")


@pytest.fixture(scope="session")
def throughput(pristine_exports: Path, folder: Path) -> Engine:
    return build_engine(pristine_exports / f"{STEM}.fp32.onnx", folder / "throughput", {"hint": "throughput"})


@pytest.fixture(scope="session")
def sized(pristine_exports: Path, folder: Path) -> Callable[[tuple[int, int], int | Dim], Engine]:
    """FP32 engines of the same network for another size and batch; each is built once."""

    @cache
    def build(size: tuple[int, int], batch: int | Dim) -> Engine:
        bundle = read_bundle(pristine_exports)
        spec = describe_network("compact", compact(), size).with_batch(batch)
        path = folder / "sized.fp32.onnx"
        onnx.save(build_graph(bundle.network, spec, "fp32", Origin(bundle.weights_sha256, "{}")), path)
        return build_engine(path, folder / f"sized-{size}-{batch}")

    return build


@pytest.fixture
def session(engine: Engine) -> Iterator[OpenVinoSession]:
    with open_session(engine) as opened:
        yield opened
