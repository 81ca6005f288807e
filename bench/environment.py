"""The machine and software of a bench."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil
from pydantic.dataclasses import dataclass

from .. import __version__
from ..documents import STRICT
from ..engines.fingerprint import Fingerprint, cpu_fingerprint, usable_cores
from ..engines.gpu import find_gpu

__all__ = ["Environment", "environment", "moved"]

_PACKAGES: Final = (
    "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "cuda-python", "torch",
)  # fmt: skip

OTHER_WORK: Final = 0.5
"""Load per core above which other programs disturb a bench."""
CLOCK_DRIFT: Final = 0.05


@dataclass(frozen=True, config=STRICT)
class Environment:
    """The machine and its software during a measurement.

    Attributes:
        cpu, cores, memory_gib: `cores` are those that this process may use; engines use as many threads.
        gpu: the current CUDA device and its driver; "" if there is none.
        omp_num_threads: the environment variable, which torch obeys; "": not set, and torch uses all cores.
        governor: frequency governor of the first core; "unknown" if the kernel does not report it (virtual machines).
        clock_mhz: current average of the cores; None: the kernel does not report it.
        load: runnable processes over the last minute, before the measurement began.
        packages: versions of the installed libraries.
        commit: of depthkit's checkout; "" if installed from a wheel.
        command: the command line.
        time: UTC, ISO 8601.
    """

    cpu: Fingerprint
    gpu: str
    cores: int
    omp_num_threads: str
    memory_gib: float
    system: str
    python: str
    governor: str
    clock_mhz: float | None
    load: float
    depthkit: str
    packages: dict[str, str]
    commit: str
    command: str
    time: str


def environment(command: str) -> Environment:
    """Read the environment now."""
    gpu = find_gpu()
    return Environment(
        cpu=cpu_fingerprint(),
        gpu="" if isinstance(gpu, str) else gpu.describe(),
        cores=usable_cores(),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS", ""),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        governor=_governor(),
        clock_mhz=_clock(),
        load=round(psutil.getloadavg()[0], 2),
        depthkit=__version__,
        packages={name: found for name in _PACKAGES if (found := _version(name))},
        commit=_commit(),
        command=command,
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def moved(before: Environment, after: Environment) -> tuple[str, ...]:
    """Reasons to doubt the figures: changes during the measurement, or a machine that was busy before."""
    found = []
    if before.load > OTHER_WORK * before.cores:
        found.append(f"the machine was busy before the bench: load {before.load} on {before.cores} cores")
    if before.governor != after.governor:
        found.append(f"the CPU governor changed from {before.governor} to {after.governor}")
    if before.clock_mhz and after.clock_mhz and abs(after.clock_mhz / before.clock_mhz - 1) > CLOCK_DRIFT:
        found.append(f"the CPU clock changed from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz")
    return tuple(found)


def _clock() -> float | None:
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return round(frequency.current, 1) if frequency else None


def _governor() -> str:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.is_file() else "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
