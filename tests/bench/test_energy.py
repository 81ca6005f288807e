"""Joules: counters that overflow, zones that would count twice, and missing meters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthkit.bench import energy
from depthkit.bench.energy import RaplMeter, can_measure_energy, find_nvml, find_rapl, measure_energy, meter_energy

from ..runtime.cudart import installed

RANGE = 262_143_328_850
"""Microjoules at which the counter of a real package overflows."""


def zone(root: Path, folder: str, name: str, energy_uj: int = 0, modulus: int = RANGE) -> Path:
    """A zone as Linux shows it."""
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    for file, content in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", modulus)):
        (path / file).write_text(f"{content}\n")
    return path


def count(zone: Path, joules: float) -> None:
    """Let a zone consume energy; its counter overflows at the end of its range."""
    modulus = int((zone / "max_energy_range_uj").read_text())
    counter = zone / "energy_uj"
    counter.write_text(f"{(int(counter.read_text()) + round(joules * 1e6)) % modulus}\n")


def require(meter: RaplMeter | None) -> RaplMeter:
    assert meter is not None
    return meter


def test_packages_are_summed_and_what_lies_within_or_around_them_is_not(tmp_path: Path) -> None:
    packages = [zone(tmp_path, f"intel-rapl:{n}", f"package-{n}", 5_000_000) for n in range(2)]
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core"),
        zone(tmp_path, "intel-rapl:0:1", "dram"),
        zone(tmp_path, "intel-rapl:2", "psys"),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0"),
    ]
    (tmp_path / "intel-rapl").mkdir()
    meter = require(find_rapl(tmp_path))
    assert meter() == 0
    for each in (*packages, *others):
        count(each, 1.5)
    assert meter() == 3.0
    count(packages[1], 0.25)
    assert meter() == 3.25


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, 999_999_999),
    steps=st.lists(st.integers(0, 999_999_999), min_size=1, max_size=8),
)
def test_a_counter_that_overflows_loses_nothing(tmp_path: Path, start: int, steps: list[int]) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", start, modulus=1_000_000_000)
    meter = require(find_rapl(tmp_path))
    told = []
    for step in steps:
        count(package, step / 1e6)
        told.append(meter())
    assert told == pytest.approx([total / 1e6 for total in accumulate(steps)])


@pytest.mark.parametrize("damage", ["none", "unreadable", "not a number", "no range"])
def test_counters_that_cannot_be_read_are_no_meter(tmp_path: Path, damage: str) -> None:
    if damage != "none":
        package = zone(tmp_path, "intel-rapl:0", "package-0")
        if damage == "unreadable":  # as for any user but root; a folder in its place is unreadable to root as well
            (package / "energy_uj").unlink()
            (package / "energy_uj").mkdir()
        elif damage == "not a number":
            (package / "energy_uj").write_text("")
        else:
            (package / "max_energy_range_uj").unlink()
    assert find_rapl(tmp_path) is None


@pytest.fixture
def zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the RAPL zones of a machine without NVML."""
    monkeypatch.setattr(energy, "find_rapl", lambda: find_rapl(tmp_path))
    monkeypatch.setattr(energy, "find_nvml", lambda: None)
    return tmp_path


class Device:
    """What takes 30 W, and 2 J more for every run of a session, by a clock of its own."""

    def __init__(self, recorded: Any, batch: int) -> None:
        self.now = self.extra = 0.0
        self.session = recorded([], batch=batch, answer=self.answer)
        self.runs = 0

    def answer(self, frame: np.ndarray) -> np.ndarray:
        self.extra += 2.0 / self.session.spec.opt_batch
        self.now += 0.1 / self.session.spec.opt_batch
        return frame[..., 0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def meter(self) -> float:
        return 30.0 * self.now + self.extra


@pytest.fixture
def device(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Device]:
    def make(batch: int = 1) -> Device:
        made = Device(recorded, batch)
        monkeypatch.setattr(energy, "sleep", made.sleep)
        monkeypatch.setattr(energy, "perf_counter", lambda: made.now)
        return made

    return make


@pytest.mark.parametrize("batch", [1, 4])
def test_joules_a_frame_are_gross_and_count_every_frame_of_a_batch(device: Any, reference: Any, batch: int) -> None:
    on = device(batch)
    found = meter_energy(on.session, reference.images, on.meter, seconds=2.0)
    assert found is not None
    assert found.frame_j == pytest.approx((30 * 0.1 + 2.0) / batch)
    assert found.idle_watts == pytest.approx(30.0)
    assert found.watts == pytest.approx(50.0)
    assert len(on.session.seen) == pytest.approx(1 + 20, abs=1), "one that warms up, and those of two seconds"
    shown = np.concatenate(on.session.seen[1:])
    assert (shown == np.arange(len(shown)) % 4).all(), "the frames are shown in turn"


def test_a_counter_that_does_not_move_is_no_measurement(device: Any, reference: Any) -> None:
    on = device(1)
    assert meter_energy(on.session, reference.images, lambda: 7.0, seconds=2.0) is None


def test_a_session_on_the_cpu_is_metered_by_rapl(
    device: Any, reference: Any, zones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = device(1)
    package = zone(zones, "intel-rapl:0", "package-0", RANGE - 1)
    run = on.session.run

    def taking() -> None:
        run()
        count(package, 5.0)

    monkeypatch.setattr(on.session, "run", taking)
    assert can_measure_energy()
    assert measure_energy(on.session, reference.images) == pytest.approx(5.0)


@pytest.mark.usefixtures("zones")
def test_a_machine_without_meters_has_no_energy(device: Any, reference: Any) -> None:
    assert not can_measure_energy()
    assert measure_energy(device(1).session, reference.images) is None


class Nvml:
    """The two calls of both NVML modules, on a GPU that has taken 1,500 mJ."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def module(self, name: str, *functions: str) -> ModuleType:
        module = ModuleType(name)
        start, handle, consumed = functions
        vars(module).update({start: lambda: None, handle: self.handle, consumed: lambda device: 1500 + device})
        return module

    def handle(self, bus_id: str) -> int:
        self.asked.append(bus_id)
        return 500


BINDINGS = ("init_v2", "device_get_handle_by_pci_bus_id_v2", "device_get_total_energy_consumption")
PYNVML = ("nvmlInit", "nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetTotalEnergyConsumption")


@pytest.fixture(params=["cuda.bindings.nvml", "pynvml"])
def nvml(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nvml]:
    """A GPU that one of the two modules reports."""
    fake = Nvml()
    names = {"cuda.bindings.nvml": BINDINGS, "pynvml": PYNVML}
    module = fake.module(request.param, *names[request.param])
    monkeypatch.setattr(energy, "find_spec", lambda name: module if name == request.param else None)
    monkeypatch.setitem(sys.modules, request.param, module)
    if request.param != "pynvml":
        import cuda.bindings

        monkeypatch.setattr(cuda.bindings, "nvml", module, raising=False)
    with installed() as cudart:
        success = cudart.cudaGetDevice()[0]
        monkeypatch.setattr(
            type(cudart), "cudaDeviceGetPCIBusId", lambda *_: (success, b"0000:1b:00.0\0"), raising=False
        )
        yield fake


def test_a_gpu_is_metered_by_nvml_at_its_bus(nvml: Nvml) -> None:
    meter = find_nvml()
    assert meter is not None
    assert meter() == 2.0
    assert nvml.asked == ["0000:1b:00.0"]


@pytest.mark.usefixtures("zones")
def test_a_session_on_a_gpu_is_not_metered_by_the_processor(
    device: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = device(1)
    on.session.device = "gpu"
    monkeypatch.setattr(energy, "find_rapl", lambda: on.meter)
    assert measure_energy(on.session, reference.images) is None


def test_the_installed_bindings_have_what_is_called() -> None:
    nvml = pytest.importorskip("cuda.bindings.nvml", reason="cuda-bindings with NVML are not installed")
    assert all(callable(getattr(nvml, name)) for name in BINDINGS)


def test_without_a_driver_there_is_no_meter() -> None:
    from depthkit.engines.gpu import find_gpu

    if not isinstance(find_gpu(), str):
        pytest.skip("there is a GPU here")
    assert find_nvml() is None
