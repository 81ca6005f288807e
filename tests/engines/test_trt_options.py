"""What TensorRT and TensorRT-RTX are told, which devices and versions their engines are for, and where they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from depthkit.engines import gpu, trt, trt_vendor
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.gpu import Gpu
from depthkit.engines.trt import TENSORRT, TENSORRT_RTX, TensorRT, TensorRTOptions
from depthkit.errors import BackendError

rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'depthkit[tensorrt-rtx]'"
)
NO_GPU = "there is none in this test"
L4 = Gpu("NVIDIA L4", (8, 9), integrated=False, driver="13.0")

FindGpu = Callable[[Gpu | str], None]


@pytest.fixture(autouse=True)
def find_gpu(monkeypatch: pytest.MonkeyPatch) -> FindGpu:
    """Say which GPU is here; at first there is none, so that a machine with one does not make a difference."""

    def finds(found: Gpu | str) -> None:
        for module in (trt, gpu):
            monkeypatch.setattr(module, "find_gpu", lambda: found)

    finds(NO_GPU)
    return finds


@rtx
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"compute_capability": "90"}, r"no compute capability '90'; it has 75, 80, 86, 89, 120"),
        ({"compute_capability": "89,55,33"}, r"no compute capability '33', '55'"),
        ({"compute_capability": "8.9"}, r"no compute capability '8\.9'; .* written as in compute_capability=86,89"),
        ({"compute_capability": "sm_89"}, r"no compute capability 'sm_89'"),
        ({"compute_capability": "89,"}, r"no compute capability ''; it has 75, .* written as in"),
        ({"workspace_mib": "-1"}, "workspace_mib"),
        ({"tf32": "sometimes"}, "tf32"),
        ({"fp16": "true"}, r"fp16.*defaults.*tf32=False"),
        ({"optimization_level": "3"}, "optimization_level"),
    ],
)
def test_options_that_make_no_sense_are_refused(asked: dict[str, str], says: str) -> None:
    with pytest.raises(BackendError, match=says):
        TENSORRT_RTX.target(TENSORRT_RTX.parse_options(asked))


@pytest.mark.parametrize(
    "asked", [{"optimization_level": "6"}, {"hardware_compatibility": "volta+"}, {"compute_capability": "89"}]
)
def test_options_that_tensorrt_does_not_have_are_refused(asked: dict[str, str]) -> None:
    with pytest.raises(BackendError, match=next(iter(asked))):
        TENSORRT.parse_options(asked)


@rtx
def test_the_device_that_rtx_builds_for(find_gpu: FindGpu) -> None:
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
    with pytest.raises(BackendError, match="no compute capability '70'"):
        target()


def test_the_device_that_tensorrt_builds_for(find_gpu: FindGpu) -> None:
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
def test_versions_that_read_each_others_plans(
    monkeypatch: pytest.MonkeyPatch, built: str, here: str, compatible: bool, lean: bool, accepts: bool
) -> None:
    monkeypatch.setattr(trt, "lean_runtime", lambda _: Path("libnvinfer_lean.so") if lean else None)
    assert TENSORRT.accepts_version(built, here, TensorRTOptions(version_compatible=compatible)) is accepts


@rtx
def test_where_rtx_is_available(find_gpu: FindGpu, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Let `import tensorrt` run this source, of that version; the backend, which knows nothing of it yet."""

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
def test_a_library_that_does_not_start_on_the_gpu_is_not_available(
    install: Install, find_gpu: FindGpu, source: str, says: str
) -> None:
    find_gpu(L4)
    here = install(source, "10.13.3.9").availability()
    assert not here.usable
    assert re.search(says, here.reason)


def test_whether_a_library_starts_is_found_out_once(install: Install, find_gpu: FindGpu) -> None:
    backend = install(STARTS, "10.13.3.9")
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
def test_where_tensorrt_is_available(
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


def test_looking_for_the_library_does_not_import_it() -> None:
    code = (
        "import sys\n"
        "from depthkit.engines.trt import TENSORRT, TENSORRT_RTX\n"
        "print(TENSORRT.availability(), TENSORRT_RTX.availability())\n"
        "print([name for name in sys.modules if name.startswith('tensorrt')])\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"


@rtx
@pytest.mark.parametrize("tf32", [False, True])
def test_what_tensorrt_is_told(tf32: bool) -> None:
    """With TensorRT-RTX in TensorRT's place, whose options it takes; it leaves hardware compatibility out."""
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
    """A timing cache of what was timed, one letter each; "?" is damage, and "w" was timed on another GPU."""

    def __init__(self, stored: bytes) -> None:
        self.timed = set(stored.decode())

    def combine(self, other: Timings, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timed |= other.timed
        return True

    def serialize(self) -> bytes:
        return "".join(sorted(self.timed)).encode()


class Config:
    """As much of an `IBuilderConfig` as timing caches need: TensorRT-RTX has none, and TensorRT is not here."""

    cache: Timings

    def create_timing_cache(self, stored: bytes) -> Timings | None:
        return None if b"?" in stored else Timings(stored)

    def set_timing_cache(self, cache: Timings, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return "w" not in cache.timed


@pytest.mark.parametrize(("stored", "known"), [(None, ""), (b"", ""), (b"ab", "ab"), (b"?ab", ""), (b"w", "")], ids=str)
def test_timings_are_kept_for_the_next_build(
    find_gpu: FindGpu,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stored: bytes | None,
    known: str,
) -> None:
    monkeypatch.setenv("DEPTHKIT_STORE", str(tmp_path))
    find_gpu(L4)
    path, config = tmp_path / "timing" / "tensorrt-10.13.3.9-NVIDIA-L4.cache", Config()
    path.parent.mkdir()
    if stored is not None:
        path.write_bytes(stored)
    with TensorRTOptions().timings(config, "10.13.3.9"):
        assert config.cache.timed == set(known)
        config.cache.timed.add("n")  # by this build
        path.write_bytes(b"o")  # by another one, meanwhile
    assert path.read_bytes().decode() == "".join(sorted({*known, "n", "o"}))


@pytest.mark.parametrize("in_the_way", ["timing", "timing/{}.lock/folder", "timing/{}/folder"])
def test_a_build_whose_timings_cannot_be_kept_is_kept(
    find_gpu: FindGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_the_way: str
) -> None:
    monkeypatch.setenv("DEPTHKIT_STORE", str(tmp_path))
    find_gpu(L4)
    blocked = tmp_path / in_the_way.format("tensorrt-10.13.3.9-NVIDIA-L4.cache")
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.touch()
    config = Config()
    with (
        pytest.warns(UserWarning, match=r"time its kernels again: cannot write .*"),
        TensorRTOptions().timings(config, "10.13.3.9"),
    ):
        config.cache.timed.add("n")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == [blocked]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that can be opened and not read")
def test_timings_that_cannot_be_read_are_begun_anew(
    find_gpu: FindGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEPTHKIT_STORE", str(tmp_path))
    find_gpu(L4)
    path, config = tmp_path / "timing" / "tensorrt-10.13.3.9-NVIDIA-L4.cache", Config()
    path.parent.mkdir()
    path.symlink_to("/proc/self/mem")
    with TensorRTOptions().timings(config, "10.13.3.9"):
        config.cache.timed.add("n")
    assert path.read_bytes() == b"n"


def test_timings_of_a_build_that_fails_or_keeps_none_are_not_kept(
    find_gpu: FindGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEPTHKIT_STORE", str(tmp_path))
    find_gpu(L4)
    with TensorRTOptions(timing_cache=False).timings(Config(), "10.13.3.9"):
        pass
    with pytest.raises(BackendError), TensorRTOptions().timings(Config(), "10.13.3.9"):
        raise BackendError("no")
    assert list(tmp_path.rglob("*.cache")) == []
