"""Joules per frame, from NVML for a GPU or RAPL for a CPU package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, Final, TypeAlias

import numpy as np

from ..runtime.cuda import check, cudart
from ..session import Session
from .timing import allocate

__all__ = [
    "Energy",
    "Meter",
    "RaplMeter",
    "can_measure_energy",
    "find_nvml",
    "find_rapl",
    "measure_energy",
    "meter_energy",
]

Meter: TypeAlias = Callable[[], float]
"""Returns joules since an arbitrary moment; never decreases."""

POWERCAP: Final = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Energy:
    """Energy and power of a device.

    Attributes:
        frame_j: joules per frame, including the device's idle power.
        watts: while the session ran.
        idle_watts: for as long before.
    """

    frame_j: float
    watts: float
    idle_watts: float


class RaplMeter:
    """Energy of CPU packages by RAPL (Intel's running average power limit; on Linux AMD's counters too).

    A counter wraps around at `max_energy_range_uj`, a quarter of an hour at 300 W: call the meter more often.

    Args:
        zones: folders of the packages.

    Raises:
        OSError, ValueError: a counter cannot be read; since Linux 5.10 only root may.
    """

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = [(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in zones]
        self._last = [_microjoules(counter) for counter, _ in self._zones]
        self._total = 0

    def __call__(self) -> float:
        """Joules since the meter was created."""
        for index, (counter, modulus) in enumerate(self._zones):
            now = _microjoules(counter)
            self._total += (now - self._last[index]) % modulus
            self._last[index] = now
        return self._total / 1e6


def can_measure_energy() -> bool:
    """Whether this machine has a readable energy counter for its CPU or GPU."""
    return find_rapl() is not None or find_nvml() is not None


def measure_energy(session: Session, frames: np.ndarray, *, seconds: float = 2.0) -> float | None:
    """Joules per frame of the device that a session runs on. None: the device has no readable counter.

    The whole device is metered, so its idle power and other programs count too. For a GPU the host's share is missing,
    for a CPU that of its memory modules.

    Args:
        session: open; it is bound here.
        frames: N x H x W x 3 uint8 of its size, used in turn.
        seconds: how long to run; the idle device is metered for as long before.
    """
    meter = find_nvml() if session.device == "gpu" else find_rapl()
    found = None if meter is None else meter_energy(session, frames, meter, seconds=seconds)
    return None if found is None else found.frame_j


def meter_energy(session: Session, frames: np.ndarray, meter: Meter, *, seconds: float) -> Energy | None:
    """See `measure_energy`. None: the counter did not move, as in some virtual machines."""
    image, _ = allocate(session)
    session.run()
    idle, idle_seconds = _metered(meter, lambda: sleep(seconds))
    shown = 0

    def work() -> None:
        nonlocal shown
        end = perf_counter() + seconds
        while not shown or perf_counter() < end:
            np.take(frames, range(shown, shown + len(image)), axis=0, mode="wrap", out=image)
            session.run()
            shown += len(image)

    busy, busy_seconds = _metered(meter, work)
    return Energy(busy / shown, busy / busy_seconds, idle / idle_seconds) if busy > 0 else None


def find_rapl(root: Path = POWERCAP) -> RaplMeter | None:
    """A meter of all CPU packages; None: there are none, or this user may not read them.

    Args:
        root: folder of the zones "intel-rapl:0" and so on. Zones within a package ("intel-rapl:0:0") and the platform's
            ("psys") are ignored: they would count the same joules twice.
    """
    try:
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _is_package(zone)]
        return RaplMeter(zones) if zones else None
    except (OSError, ValueError):
        return None


def find_nvml() -> Meter | None:
    """A meter of the current CUDA device; None: no device, or no counter (before Volta, and on Jetson)."""
    for module, connect in (("cuda.bindings.nvml", _by_cuda_bindings), ("pynvml", _by_pynvml)):
        try:
            if find_spec(module) is None:
                continue
            meter = connect(_bus_id())
            meter()
        except Exception:  # noqa: BLE001, S112 - each library has its own errors for no driver, device or counter
            continue
        return meter
    return None


def _bus_id() -> str:
    """PCI bus id of the current CUDA device, which NVML numbers differently. Raises CudaError, BackendError."""
    runtime = cudart()
    found: Any = check(runtime.cudaDeviceGetPCIBusId, 32, check(runtime.cudaGetDevice))
    return str(found.split(b"\0")[0].decode())


def _by_cuda_bindings(bus_id: str) -> Meter:
    from cuda.bindings import nvml

    nvml.init_v2()
    device = nvml.device_get_handle_by_pci_bus_id_v2(bus_id)
    return lambda: float(nvml.device_get_total_energy_consumption(device)) / 1000


def _by_pynvml(bus_id: str) -> Meter:
    from importlib import import_module

    nvml = import_module("pynvml")
    nvml.nvmlInit()
    device = nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(device)) / 1000


def _metered(meter: Meter, work: Callable[[], None]) -> tuple[float, float]:
    """Joules and seconds of `work`."""
    before, start = meter(), perf_counter()
    work()
    return meter() - before, perf_counter() - start


def _is_package(zone: Path) -> bool:
    return zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")


def _microjoules(counter: Path) -> int:
    return int(counter.read_text())
