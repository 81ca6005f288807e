"""OpenVINO sessions: memory, precision and provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from depthkit.precisions import Precision
from depthkit.reference import Reference
from depthkit.runtime.ov import OpenVinoSession
from depthkit.testing import assert_parity

from ...support import STEM
from .engines import Engine, build_engine, needs_bf16, open_session


def test_memory_is_freed_when_sessions_are_closed(engine: Engine, reference: Reference) -> None:
    process, closed = psutil.Process(), list[OpenVinoSession]()

    def use() -> None:
        with open_session(engine) as opened:
            opened(reference.images[:1])
            list(opened.stream(reference.images[:2, None]))
        closed.append(opened)

    for _ in range(5):
        use()
    before = process.memory_info().rss
    for _ in range(10):
        use()
    assert process.memory_info().rss - before < 10 * engine[0].stat().st_size // 4


@pytest.mark.parametrize(
    ("stored", "hint", "executed"),
    [("fp16", "", {"f16", "f32"}), pytest.param("fp32", "bf16", {"bf16"}, marks=needs_bf16)],
)
def test_half_precision_agrees_with_torch(
    pristine_exports: Path, tmp_path: Path, reference: Reference, stored: Precision, hint: str, executed: set[str]
) -> None:
    path = pristine_exports / f"{STEM}.{stored}.onnx"
    half = build_engine(path, tmp_path / "engine", inference_precision=hint)
    with open_session(half) as opened:
        assert opened.precision == half[1].precision_found
        assert opened.provider.split(", ")[1] in executed
        assert_parity(opened, reference, precision=half[1].precision_asked)


@needs_bf16
def test_opened_engine_keeps_its_precision(engine: Engine) -> None:
    """OpenVINO compiles a blob again when it imports it, and would choose BF16."""
    with open_session(engine) as opened:
        assert (opened.precision, opened.provider.split(", ")[1]) == ("fp32", "f32")


@pytest.mark.parametrize(
    ("options", "provider"),
    [
        ({"threads": 1}, "OpenVINO CPU, f32, 1 thread, latency"),
        ({"threads": 1, "hint": "throughput", "pinning": True}, "OpenVINO CPU, f32, 1 thread, throughput"),
    ],
)
def test_provider_is_read_from_the_opened_engine(
    pristine_exports: Path, tmp_path: Path, options: dict[str, Any], provider: str
) -> None:
    with open_session(build_engine(pristine_exports / f"{STEM}.fp32.onnx", tmp_path / "engine", **options)) as opened:
        assert opened.provider == provider
