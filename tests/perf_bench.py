"""`make perf`: what the bench costs, whether it says the same again, and whether it finds a planted slowdown.

Every bench is made in a process of its own, as two commands would; `--pause SECONDS` lies between the two whose ratios
must agree, five minutes unless it is told otherwise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import numpy as np

from depthkit.bench.compare import common_peer, compare
from depthkit.bench.contender import Contender
from depthkit.bench.results import BenchResult, speedup
from depthkit.bench.statistics import bootstrap_medians, interval
from depthkit.bench.suite import SuiteOptions, run_suite
from depthkit.bench.timing import Steady, Times, allocate, time_steady
from depthkit.engines.build import BuildOptions, build
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.pipeline.runs import open_source
from depthkit.reference import read_reference
from depthkit.runtime.load import load
from depthkit.session import Session, SessionBase
from depthkit.tests.perf import FAILED, VENDORS, noise, report, workspace
from depthkit.train.shipped import shipped_run
from depthkit.train.torch_session import TorchSession

SIZE = (96, 128)
TURN, ROUNDS = 0.2, 40
REPEATS = 10
SLOWDOWN = 0.1


class Slowed(SessionBase):
    """A session whose runs take a tenth longer: after each it waits, busy, for as long."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner
        self.spec, self.provider, self.precision = inner.spec, inner.provider, inner.precision

    def bind(self, *, image: np.ndarray, depth: np.ndarray) -> None:
        super().bind(image=image, depth=depth)
        self.inner.bind(image=image, depth=depth)

    def run(self) -> None:
        start = perf_counter()
        self.inner.run()
        end = perf_counter() + SLOWDOWN * (perf_counter() - start)
        while perf_counter() < end:
            pass

    def close(self) -> None:
        super().close()
        self.inner.close()


def open_slowed(path: Path) -> Session:
    """Can be pickled."""
    return Slowed(load(path))


@dataclass(frozen=True)
class Made:
    """Weights, and what was made of them."""

    run: Path
    onnx: Path
    engines: dict[str, Path]


def make(folder: Path) -> Made:
    """The shipped weights of compact, their ONNX file, and an engine of each backend."""
    run = Path(shutil.copytree(shipped_run("compact"), folder / "compact"))
    onnx = export_onnx(open_source(run), ExportOptions(size=SIZE)).path
    return Made(run, onnx, {name: build(onnx, BuildOptions(name)).path for name in ("onnxruntime", "openvino")})


def bare_turn(call: Callable[[], object]) -> list[float]:
    """A loop around a call, and nothing else; like the bench it does not count the first."""
    call()
    times, end = [], perf_counter() + TURN
    while perf_counter() < end:
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1000)
    return times


def bench_turn(session: Session) -> list[float]:
    """A turn as the bench makes it."""
    return time_steady([session], [noise(SIZE)], Steady(warm_up_s=0.0, duration_s=TURN, min_runs=1))[0]


def perf_overhead(made: Made) -> None:
    """The median that the bench reports, over that of a bare loop around the same call; turn by turn."""
    for backend, vendor in VENDORS.items():
        with load(made.engines[backend]) as session, vendor(made.onnx) as theirs:
            memory = allocate(theirs)  # OpenVINO reads and writes it, and does not keep it
            call = theirs.prepare(*memory)
            times = {name: Times() for name in ("call", "session", "bare")}
            takes: dict[str, Callable[[], list[float]]] = {
                "call": partial(bench_turn, theirs),
                "session": partial(bench_turn, session),
                "bare": partial(bare_turn, call),
            }
            for _ in range(ROUNDS):
                for name in random.sample(list(takes), len(takes)):
                    sleep(0.1)  # the threads of ONNX Runtime keep the cores busy for 40 ms
                    taken = takes[name]()
                    times[name] += taken
                    times[name].turns.append(len(taken))
        draws = {name: bootstrap_medians(samples, samples.turns) for name, samples in times.items()}
        for name, what in (("call", "its own call"), ("session", "our session")):
            ratio = median(times[name]) / median(times["bare"])
            found = interval(draws[name] / draws["bare"], ratio)
            words = f"bench of {what} over a bare loop, {backend}, ±{found.width:.1%}"
            report(words, ratio, "", "<= 1.01", holds=ratio <= 1.01)


def bench(made: Made, slowed: tuple[str, ...], seconds: float) -> BenchResult:
    """One bench of torch and both engines, some of which are slowed."""
    reference = read_reference(made.onnx.with_name("compact-96x128.reference.npz"))
    chosen = [Contender("compact", "torch", partial(TorchSession, made.run, SIZE), "fp32", reference, None)]
    for name, path in made.engines.items():
        how = open_slowed if name in slowed else load
        chosen.append(Contender(path.name, name, partial(how, path), "fp32", reference, None))
    steady = Steady(duration_s=seconds)
    return run_suite(chosen, None, SuiteOptions(steady=steady, phases=False, memory=False, roofline=False))[0]


def apart(made: Made, slowed: tuple[str, ...] = (), seconds: float = 6.0) -> BenchResult:
    """A bench in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(bench, made, slowed, seconds).result()


def perf_repeatability(made: Made, pause: float) -> None:
    """Two benches, some minutes apart: every ratio's intervals overlap."""
    one = apart(made, seconds=10)
    sleep(pause)
    two = apart(made, seconds=10)
    for a, b in combinations(range(len(one.rows)), 2):
        first, second = (speedup(each.rows[a], each.rows[b]) for each in (one, two))
        assert first is not None
        assert second is not None
        what = f"{one.rows[a].backend} over {one.rows[b].backend}"
        print(f"      {what}: {first.middle:.3f} ±{first.width:.1%}, then {second.middle:.3f} ±{second.width:.1%}")
        away = second.middle / first.middle
        report(
            f"{what}, {pause:g} s later",
            away,
            "times",
            "overlapping intervals",
            holds=first.low <= second.high and second.low <= first.high,
        )


def perf_compare(made: Made) -> None:
    """Unchanged repeats give no alarm and a planted slowdown does, relative to torch, as `--compare` has it."""
    repeats = [apart(made) for _ in range(REPEATS + 1)]
    for row in range(len(repeats[0].rows)):
        p50 = [median(each.rows[row].wall_ms) for each in repeats]
        spread = np.std(p50, ddof=1) / np.mean(p50)
        print(f"      {repeats[0].rows[row].backend}: p50 {median(p50):.2f} ms, {spread:.2%} between processes")
    planted = apart(made, slowed=("openvino",))
    relative_to = common_peer(repeats[0], planted)
    alarms = [fault for pair in pairwise(repeats) for fault in compare(*pair, relative_to=relative_to).regressions]
    report(f"false alarms of {REPEATS} repeats, relative to {relative_to}", len(alarms), "", "0", holds=not alarms)
    found = compare(repeats[-1], planted, relative_to=relative_to)
    for change in found.changes:
        print(f"      {change.name}: {change.verdict} {change.ratio} {'; '.join((*change.faults, *change.notes))}")
    slower = [change.new.backend for change in found.regressed]
    change = next(change for change in found.changes if change.new.backend == "openvino")
    assert change.ratio is not None
    what = f"planted slowdown of {SLOWDOWN:.0%}, relative to {relative_to}"
    report(what, change.ratio.middle, "times", "found, alone", holds=slower == ["openvino"])
    absolute = [fault for pair in pairwise(repeats) for fault in compare(*pair).regressions]
    print(f"      in absolute times {len(absolute)} of {REPEATS} repeats are alarms: {'; '.join(absolute) or 'none'}")


def main() -> int:
    """Run all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pause", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("parts", nargs="*", default=["overhead", "repeatability", "compare"])
    options = parser.parse_args()
    with workspace() as folder:
        made = make(folder)
        if "overhead" in options.parts:
            perf_overhead(made)
        if "repeatability" in options.parts:
            perf_repeatability(made, options.pause)
        if "compare" in options.parts:
            perf_compare(made)
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
