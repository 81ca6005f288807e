"""NVIDIA's libraries: their log messages and errors become BackendErrors."""

from __future__ import annotations

from pathlib import Path

import pytest

from depthkit.engines import trt_vendor
from depthkit.engines.trt import TENSORRT_RTX
from depthkit.errors import BackendError

from ..support import needs_rtx


def test_lean_runtime_must_match_the_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert trt_vendor.lean_runtime("10.13.3.9") is None
    package = tmp_path / "tensorrt_lean_libs"
    package.mkdir()
    (package / "__init__.py").touch()
    library = package / "libnvinfer_lean.so.10"
    library.touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trt_vendor, "version", lambda name: {"tensorrt-lean": "10.13.3.9"}[name])
    assert trt_vendor.lean_runtime("10.13.3.9") == library
    assert trt_vendor.lean_runtime("10.14.0.1") is None


def test_missing_library_has_a_remedy() -> None:
    with pytest.raises(BackendError, match=r"pip install --upgrade 'depthkit\[imaginary\]'"):
        trt_vendor.Vendor("imaginary").vendor()


@needs_rtx
def test_unreadable_plan_has_a_reason() -> None:
    with pytest.raises(BackendError, match=r"cannot read the engine: \S"):
        TENSORRT_RTX.inspect_plan(b"no plan")
    with pytest.raises(BackendError, match=r"lean runtime 1\.0\.0\.1; pip install tensorrt-lean==1\.0\.0\.1"):
        TENSORRT_RTX.deserialize(b"no plan", built="1.0.0.1")


@needs_rtx
def test_log_messages_reach_every_listener() -> None:
    logger = TENSORRT_RTX.logger()
    severity = TENSORRT_RTX.vendor().ILogger
    with TENSORRT_RTX.listening("cannot") as first, TENSORRT_RTX.listening("cannot") as second:
        logger.log(severity.ERROR, "an error")
        logger.log(severity.INFO, "no news")
    with TENSORRT_RTX.listening("cannot") as later:
        pass
    assert (first, second, later) == (["an error"], ["an error"], [])
    assert logger.listeners == {}
    with (
        pytest.raises(BackendError, match="tensorrt-rtx cannot count: one; two") as refused,
        TENSORRT_RTX.listening("cannot count"),
    ):
        logger.log(severity.WARNING, "one")
        raise RuntimeError("two")
    assert isinstance(refused.value.__cause__, RuntimeError)


class Runtime:
    """A runtime that allows host code by default."""

    loaded: str | None = None

    def __init__(self, logger: object) -> None:
        assert logger is TENSORRT_RTX.logger()
        self.engine_host_code_allowed = True

    def load_runtime(self, path: str) -> Runtime:
        lean = Runtime(TENSORRT_RTX.logger())
        lean.loaded = path
        return lean

    def deserialize_cuda_engine(self, plan: bytes) -> tuple[bytes, bool, str | None]:
        return plan, self.engine_host_code_allowed, self.loaded


@needs_rtx
def test_no_plan_may_run_host_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TENSORRT_RTX.vendor(), "Runtime", Runtime)
    monkeypatch.setattr(trt_vendor, "lean_runtime", lambda built: Path(f"lean-{built}"))
    trt_vendor._loader.cache_clear()
    try:
        assert TENSORRT_RTX.deserialize(b"plan") == (b"plan", False, None)
        assert TENSORRT_RTX.deserialize(b"plan", TENSORRT_RTX.installed()) == (b"plan", False, None)
        assert TENSORRT_RTX.deserialize(b"plan", "1.2.0.1") == (b"plan", False, "lean-1.2.0.1")
    finally:
        trt_vendor._loader.cache_clear()
