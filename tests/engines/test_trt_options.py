"""TensorRT and TensorRT-RTX: options, target devices, versions, availability, timing caches."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from depthkit.engines import trt, trt_vendor
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.gpu import Gpu
from depthkit.engines.trt import TENSORRT, TENSORRT_RTX, TensorRT, TensorRTOptions
from depthkit.errors import BackendError

from ..support import L4, NO_GPU, FindGpu, needs_rtx, run_code

pytestmark = pytest.mark.usefixtures("find_gpu")

VERSION = "10.13.3.9"


@needs_rtx
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"compute_capability": "90"}, r"not support compute capability '90'; choose from 75, 80, 86, 89, 120"),
        ({"compute_capability": "89,55,33"}, r"not support compute capability '33', '55'"),
        ({"compute_capability": "8.9"}, r"not support compute capability '8\.9'; .* compute_capability=86,89"),
        ({"compute_capability": "sm_89"}, r"not support compute capability 'sm_89'"),
        ({"compute_capability": "89,"}, r"not support compute capability ''; choose from 75, .* for example"),
        ({"workspace_mib": "-1"}, "workspace_mib"),
        ({"tf32": "sometimes"}, "tf32"),
        ({"fp16": "true"}, r"fp16.*defaults.*tf32=False"),
        ({"optimization_level": "3"}, "optimization_level"),
    ],
)
def test_invalid_options_are_refused(asked: dict[str, str], says: str) -> None:
    with pytest.raises(BackendError, match=says):
        TENSORRT_RTX.target(TENSORRT_RTX.parse_options(asked))


@pytest.mark.parametrize(
    "asked", [{"optimization_level": "6"}, {"hardware_compatibility": "volta+"}, {"compute_capability": "89"}]
)
def test_invalid_options_of_tensorrt_are_refused(asked: dict[str, str]) -> None:
    with pytest.raises(BackendError, match=next(iter(asked))):
        TENSORRT.parse_options(asked)


@needs_rtx
def test_target_of_tensorrt_rtx(find_gpu: FindGpu) -> None:
    def target(**options: str) -> Fingerprint:
        return TENSORRT_RTX.target(TENSORRT_RTX.parse_options(options))

    assert target(compute_capability="120,89,89") == Fingerprint("gpu", "", "sm_89 sm_120")
    listed = TENSORRT_RTX.vendor().ComputeCapability.__members__
    names = sorted((name for name in listed if name.startswith("SM")), key=lambda name: int(name[2:]))
    assert target().architecture == " ".join(name.replace("SM", "sm_") for name in names if name != "SM75")
    find_gpu(L4)
    assert target() == Fingerprint("gpu", "", "sm_89")
    assert TENSORRT_RTX.here().accepts(target())
    find_gpu(replace(L4, compute_capability=(7, 0)))
    with pytest.raises(BackendError, match="not support compute capability '70'"):
        target()


def test_target_of_tensorrt(find_gpu: FindGpu) -> None:
    def target(compatibility: str) -> Fingerprint:
        return TENSORRT.target(TENSORRT.parse_options({"hardware_compatibility": compatibility}))

    with pytest.raises(BackendError, match=NO_GPU):
        target("ampere+")
    find_gpu(L4)
    assert target("none") == Fingerprint("gpu", "NVIDIA L4", "sm_89")
    assert target("same-compute-capability") == Fingerprint("gpu", "", "sm_89")
    assert target("ampere+") == Fingerprint("gpu", "", "sm_80+")
    assert all(TENSORRT.here().accepts(target(each)) for each in ("none", "same-compute-capability", "ampere+"))


@pytest.mark.parametrize(
    ("built", "here", "compatible", "lean", "accepts"),
    [
        ("10.13.3.9", "10.13.3.9", False, False, True),
        ("10.13.3.9", "10.16.1.11", False, True, False),
        ("10.13.3.9", "10.16.1.11", True, True, True),
        ("10.13.3.9", "10.16.1.11", True, False, False),
        ("10.16.1.11", "10.13.3.9", True, True, False),
        ("10.16.1.11", "11.4.0.106", True, True, False),
        ("10.9.0.1", "10.13.0.1", True, True, True),
    ],
)
def test_version_compatibility(
    monkeypatch: pytest.MonkeyPatch, built: str, here: str, compatible: bool, lean: bool, accepts: bool
) -> None:
    monkeypatch.setattr(trt, "lean_runtime", lambda _: Path("libnvinfer_lean.so") if lean else None)
    assert TENSORRT.accepts_version(built, here, TensorRTOptions(version_compatible=compatible)) is accepts


@needs_rtx
def test_availability_of_tensorrt_rtx(find_gpu: FindGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    here = TENSORRT_RTX.availability()
    assert here.usable
    assert not here.runnable
    assert NO_GPU in here.reason
    find_gpu(L4)
    assert TENSORRT_RTX.availability().runnable
    find_gpu(replace(L4, name="NVIDIA H200", compute_capability=(9, 0)))
    unlisted = TENSORRT_RTX.availability()
    assert (unlisted.usable, unlisted.runnable) == (True, False)
    assert "90" in unlisted.reason
    monkeypatch.setattr(trt_vendor, "version", lambda _: "1.1.0.26")
    old = TENSORRT_RTX.availability()
    assert not old.usable
    assert "1.1.0.26" in old.reason
    assert old.remedy == "pip install --upgrade 'depthkit[tensorrt-rtx]'"


STARTS = """
class ILogger:
    INTERNAL_ERROR = ERROR = WARNING = "error"

class Runtime:
    made = 0

    def __init__(self, logger):
        Runtime.made += 1
"""
FAILS = f"""
{STARTS}
        logger.log("error", "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")
"""

Install = Callable[[str, str], TensorRT[TensorRTOptions]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Install]:
    """Let `import tensorrt` run this source, of that version; a new backend."""

    def installed(source: str, version: str) -> TensorRT[TensorRTOptions]:
        (tmp_path / "tensorrt.py").write_text(source)
        monkeypatch.setattr(trt_vendor, "version", lambda _: version)
        return TensorRT("tensorrt", "plan", TensorRTOptions, oldest="10.12", cross_builds=False)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    del sys.modules["tensorrt"]
    trt_vendor._logger.cache_clear()
    yield installed
    trt_vendor._logger.cache_clear()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open')", r"libnvinfer\.so\.10: cannot open.*; pip install"),
        ("import numpy; numpy.no_longer_there", "cannot be imported .*no_longer_there"),
        (FAILS, "cannot start: CUDA initialization failure with error: 35; factory"),
    ],
    ids=["libraries", "import", "driver"],
)
def test_library_that_cannot_start_is_missing(install: Install, find_gpu: FindGpu, source: str, says: str) -> None:
    find_gpu(L4)
    here = install(source, VERSION).availability()
    assert not here.usable
    assert re.search(says, here.reason)


def test_library_is_started_once(install: Install, find_gpu: FindGpu) -> None:
    backend = install(STARTS, VERSION)
    assert not backend.availability().usable
    assert "tensorrt" not in sys.modules  # without a GPU
    find_gpu(L4)
    assert backend.availability().runnable
    assert backend.availability().runnable
    assert sys.modules["tensorrt"].Runtime.made == 1


@pytest.mark.parametrize(
    ("installed", "found", "usable", "says"),
    [
        (None, L4, False, "not installed"),
        ("10.11.0.33", L4, False, "10.12 or later is needed"),
        ("10.12.0.36", L4, True, "NVIDIA L4"),
        ("11.4.0.106", L4, True, "NVIDIA L4"),
        ("11.4.0.106", NO_GPU, False, NO_GPU),
    ],
)
def test_availability_of_tensorrt(
    install: Install,
    find_gpu: FindGpu,
    monkeypatch: pytest.MonkeyPatch,
    installed: str | None,
    found: Gpu | str,
    usable: bool,
    says: str,
) -> None:
    find_gpu(found)
    backend = install(STARTS, installed or "")
    if installed is None:
        monkeypatch.setattr(trt_vendor, "find_spec", lambda _: None)
    here = backend.availability()
    assert (here.usable, here.runnable) == (usable, usable)
    assert says in here.reason
    assert usable or "pip install" in here.remedy


def test_availability_does_not_import_the_library() -> None:
    code = (
        "import sys\n"
        "from depthkit.engines.trt import TENSORRT, TENSORRT_RTX\n"
        "print(TENSORRT.availability(), TENSORRT_RTX.availability())\n"
        "print([name for name in sys.modules if name.startswith('tensorrt')])\n"
    )
    assert run_code(code, CUDA_VISIBLE_DEVICES="").splitlines()[-1] == "[]"


@needs_rtx
@pytest.mark.parametrize("tf32", [False, True])
def test_options_configure_the_builder(tf32: bool) -> None:
    """TensorRT-RTX takes TensorRT's options, except hardware compatibility."""
    vendor = TENSORRT_RTX.vendor()
    with TENSORRT_RTX.listening("cannot"):
        builder = vendor.Builder(TENSORRT_RTX.logger())
        config = builder.create_builder_config()
        unlimited = config.get_memory_pool_limit(vendor.MemoryPoolType.WORKSPACE)
        TensorRTOptions(tf32=tf32).configure(vendor, config)
        assert config.get_memory_pool_limit(vendor.MemoryPoolType.WORKSPACE) == unlimited
        assert not config.get_flag(vendor.BuilderFlag.VERSION_COMPATIBLE)
        TensorRTOptions(tf32=tf32, workspace_mib=3, optimization_level=5, version_compatible=True).configure(
            vendor, config
        )
    assert config.get_flag(vendor.BuilderFlag.TF32) is tf32
    assert config.get_memory_pool_limit(vendor.MemoryPoolType.WORKSPACE) == 3 << 20
    assert config.builder_optimization_level == 5
    assert config.profiling_verbosity == vendor.ProfilingVerbosity.DETAILED
    assert config.get_flag(vendor.BuilderFlag.VERSION_COMPATIBLE)
    assert config.get_flag(vendor.BuilderFlag.EXCLUDE_LEAN_RUNTIME)  # else the plan carries host code


class Timings:
    """A timing cache: a letter for each kernel; "?" is damage, "w" is from another GPU."""

    def __init__(self, stored: bytes) -> None:
        self.timed = set(stored.decode())

    def combine(self, other: Timings, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timed |= other.timed
        return True

    def serialize(self) -> bytes:
        return "".join(sorted(self.timed)).encode()


class Config:
    """The part of an `IBuilderConfig` that timing caches need; TensorRT-RTX has none."""

    cache: Timings

    def create_timing_cache(self, stored: bytes) -> Timings | None:
        return None if b"?" in stored else Timings(stored)

    def set_timing_cache(self, cache: Timings, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return "w" not in cache.timed


@pytest.fixture
def timing_cache(find_gpu: FindGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where timings of an L4 are kept, in an empty store."""
    monkeypatch.setenv("DEPTHKIT_STORE", str(tmp_path))
    find_gpu(L4)
    path = tmp_path / "timing" / f"tensorrt-{VERSION}-NVIDIA-L4.cache"
    path.parent.mkdir()
    return path


@pytest.mark.parametrize(("stored", "known"), [(None, ""), (b"", ""), (b"ab", "ab"), (b"?ab", ""), (b"w", "")], ids=str)
def test_timings_are_kept_for_the_next_build(timing_cache: Path, stored: bytes | None, known: str) -> None:
    config = Config()
    if stored is not None:
        timing_cache.write_bytes(stored)
    with TensorRTOptions().timings(config, VERSION):
        assert config.cache.timed == set(known)
        config.cache.timed.add("n")  # by this build
        timing_cache.write_bytes(b"o")  # by another one, meanwhile
    assert timing_cache.read_bytes().decode() == "".join(sorted({*known, "n", "o"}))


@pytest.mark.parametrize("in_the_way", ["timing", "timing/{}.lock/folder", "timing/{}/folder"])
def test_unwritable_timings_are_a_warning(timing_cache: Path, tmp_path: Path, in_the_way: str) -> None:
    timing_cache.parent.rmdir()
    blocked = tmp_path / in_the_way.format(timing_cache.name)
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.touch()
    config = Config()
    with (
        pytest.warns(UserWarning, match=r"time its kernels again: cannot write .*"),
        TensorRTOptions().timings(config, VERSION),
    ):
        config.cache.timed.add("n")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == [blocked]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that can be opened and not read")
def test_unreadable_timings_are_replaced(timing_cache: Path) -> None:
    config = Config()
    timing_cache.symlink_to("/proc/self/mem")
    with TensorRTOptions().timings(config, VERSION):
        config.cache.timed.add("n")
    assert timing_cache.read_bytes() == b"n"


@pytest.mark.usefixtures("timing_cache")
def test_timings_are_not_kept_when_the_build_fails_or_the_cache_is_off(tmp_path: Path) -> None:
    with TensorRTOptions(timing_cache=False).timings(Config(), VERSION):
        pass
    with pytest.raises(BackendError), TensorRTOptions().timings(Config(), VERSION):
        raise BackendError("no")
    assert list(tmp_path.rglob("*.cache")) == []
