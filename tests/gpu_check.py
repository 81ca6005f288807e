"""`make gpu-check`: the tests that need a GPU, and a bench of all that is installed there, into `docs/results/`.

torch eager and compiled, ONNX Runtime and TensorRT; batch 1 and 16, FP32 and FP16, transfer modes side by side. What
this machine lacks, and what fails, is named and left out. ONNX files are taken as they stand beside the runs; those
that are missing are exported, where the exporter is installed.
"""

from __future__ import annotations

import argparse
import gc
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import numpy as np

from depthkit.bench.contender import Contender
from depthkit.bench.environment import environment
from depthkit.bench.results import BenchResult, Row
from depthkit.bench.suite import SuiteOptions, run_suite
from depthkit.bench.timing import Steady
from depthkit.documents import to_json
from depthkit.engines.build import BuildOptions, build, require
from depthkit.engines.gpu import find_gpu
from depthkit.errors import DepthkitError, UserError
from depthkit.export.recipe import ExportOptions, onnx_path
from depthkit.files import write_text
from depthkit.names import BACKENDS
from depthkit.pipeline.runs import open_source
from depthkit.precisions import Precision
from depthkit.reference import read_reference, reference_path
from depthkit.report.tables import markdown
from depthkit.runtime.load import load
from depthkit.runtime.run_options import Transfer
from depthkit.session import RunPhase, Session, SessionBase
from depthkit.train.document import WEIGHTS, read_document

ROOT: Final = Path(__file__).resolve().parents[1]
BATCHES: Final = (1, 16)
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16")
ON_GPU: Final = [name for name in BACKENDS if name.startswith("tensorrt") or name.endswith(("-cuda", "-tensorrt"))]
COMPILED: Final = "torch compile"
TESTS: Final = (("-m", "gpu", "tests"), ("tests/parity",))

LeaveOut: TypeAlias = Callable[[str, Exception], None]
"""Told what is left out, and why."""


def main() -> int:
    """Test, bench, write. 0: all is well; 1: a test or a gate failed, or nothing was measured; 2: no GPU."""
    options = _arguments()
    gpu = find_gpu()
    if isinstance(gpu, str):
        print(f"nothing to check: {gpu}")
        return 2
    how = SuiteOptions(
        steady=Steady(duration_s=options.seconds), memory=False, command=shlex.join(["python", *sys.argv])
    )
    name = f"{re.sub(r'[^a-z0-9]+', '-', gpu.name.lower()).strip('-')}-{datetime.now(timezone.utc):%Y-%m-%d}"
    report = Report(options.out, name, gpu.describe(), BenchResult(environment(how.command), how.protocol, ()))
    for arguments in () if options.no_tests else TESTS:
        report.tests.append(run_pytest(*arguments))
        report.write()
    check(options.runs, options.size, ON_GPU, how, report, compiled=not options.no_compile)
    print(f"\n{report.text}\nwrote {report.folder / name}.md and .json")
    return report.exit_code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs/compact"), Path("runs/unet")])
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(240, 320))
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each row")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes a row")
    parser.add_argument("--no-tests", action="store_true", help="bench only")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    return parser.parse_args()


def check(
    runs: Sequence[Path],
    size: tuple[int, int],
    backends: Sequence[str],
    how: SuiteOptions,
    report: Report,
    *,
    compiled: bool = True,
) -> None:
    """Bench every run in every variant, a batch and precision at a time: all at once would fill the GPU's memory."""
    for run, batch, precision in product(runs, BATCHES, PRECISIONS):
        contenders = find_contenders(run, size, batch, precision, backends, report.leave_out)
        contenders = [contender for contender in contenders if compiled or contender.backend != COMPILED]
        report.add(bench(contenders, how, report.leave_out))
        report.write()


@dataclass(frozen=True)
class PytestRun:
    """What pytest said: its last line, and a line for everything that was skipped or failed."""

    command: str
    passed: bool
    summary: str
    details: tuple[str, ...]


def run_pytest(*arguments: str) -> PytestRun:
    """Run tests in a process of their own; what it cannot import, or pytest itself missing, is in the summary."""
    command = ["-m", "pytest", "-q", "--continue-on-collection-errors", *arguments]
    print(f"python {shlex.join(command)}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, text=True, capture_output=True, check=False)
    last = re.findall(r"^=*\s*(\d+ .* in [\d.]+s.*?)[\s=]*$", done.stdout, re.MULTILINE)[-1:]
    said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
    summary = last[0] if last else f"did not finish (exit status {done.returncode}): {said[-1].strip()}"
    details = re.findall(r"^(?:SKIPPED|FAILED|ERROR) .*$", done.stdout, re.MULTILINE)
    print(summary, flush=True)
    return PytestRun(shlex.join(["python", *command]), done.returncode == 0, summary, tuple(details))


@dataclass
class Report:
    """All that is known so far. Written after every step: an abort in a vendor's library takes nothing with it."""

    folder: Path
    name: str
    title: str
    result: BenchResult
    tests: list[PytestRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, rows: Sequence[Row]) -> None:
        self.result = replace(self.result, rows=(*self.result.rows, *rows))

    def leave_out(self, what: str, error: Exception) -> None:
        kind = "" if isinstance(error, DepthkitError) else f"{type(error).__name__}: "
        line = f"{what}: {kind}{' '.join(str(error).split())[:500]}"
        print(f"left out: {line}", flush=True)
        self.left_out.append(line)

    @property
    def exit_code(self) -> int:
        well = self.result.rows and not self.result.failed and all(run.passed for run in self.tests)
        return 0 if well else 1

    @property
    def text(self) -> str:
        tests = "".join(
            f"- `{run.command}`: {run.summary}\n" + "".join(f"  - {line}\n" for line in run.details)
            for run in self.tests
        )
        tables = markdown(self.result) if self.result.rows else "Nothing was measured.\n"
        left_out = "".join(f"- {line}\n" for line in self.left_out) or "- nothing\n"
        return f"# {self.title}\n\n{tests}\n{tables}\nLeft out:\n\n{left_out}"

    def write(self) -> None:
        """Write `<name>.json` and `<name>.md`. Raises OutputError."""
        write_text(self.folder / f"{self.name}.json", to_json(self.result))
        write_text(self.folder / f"{self.name}.md", self.text)


def bench(contenders: Sequence[Contender], how: SuiteOptions, leave_out: LeaveOut) -> tuple[Row, ...]:
    """Time them in turns; what fails there is tried alone, since all together may not fit into the GPU's memory."""
    rows = _rows(contenders, how) if contenders else ()
    found = []
    for contender, row in zip(contenders, rows, strict=True):
        if row.error:
            (alone,) = _rows([contender], how)
            what = f"{contender.backend}, {contender.precision}, batch {contender.batch}, {contender.target}"
            leave_out(what if alone.error else f"{what}, taking turns (it was timed alone)", UserError(row.error))
            found += [] if alone.error else [alone]
        else:
            found.append(row)
    return tuple(found)


def _rows(contenders: Sequence[Contender], how: SuiteOptions) -> tuple[Row, ...]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()  # what its allocator keeps of closed sessions, the other libraries cannot have
    result, _ = run_suite(contenders, None, how)
    if not result.complete:
        raise KeyboardInterrupt
    return result.rows


def find_contenders(
    run: Path, size: tuple[int, int], batch: int, precision: Precision, backends: Sequence[str], leave_out: LeaveOut
) -> list[Contender]:
    """Torch eager and compiled, and every backend in every variant, of one run in one batch and precision."""
    try:
        onnx = _onnx(run, ExportOptions(precision, size, batch))
        reference = read_reference(reference_path(onnx))
    except Exception as error:  # noqa: BLE001 - a vendor may raise anything
        leave_out(f"{run}, {precision}, batch {batch}", error)
        return []
    contender = partial(Contender, precision=precision, reference=reference, batch=batch, onnx=onnx)
    weights = (run / WEIGHTS).stat().st_size
    found = [
        contender(
            str(run), label, partial(_open_torch, run, size, batch, precision, compiled=compiled), file_bytes=weights
        )
        for label, compiled in (("torch", False), (COMPILED, True))
    ]
    for name in backends:
        try:
            require(name, to_run=True)
            engine = build(onnx, BuildOptions(name)).path
        except Exception as error:  # noqa: BLE001 - a vendor may raise anything
            leave_out(f"{name}, {onnx.name}", error)
        else:
            found += [
                contender(str(engine), label, opened, file_bytes=engine.stat().st_size)
                for label, opened in _variants(name, engine).items()
            ]
    return found


def _onnx(run: Path, options: ExportOptions) -> Path:
    path = onnx_path(run, read_document(run), options)
    if not path.is_file():
        try:
            from depthkit.export.onnx_file import export_onnx

            source = open_source(run)
        except (ImportError, UserError) as error:
            raise UserError(
                f"there is no {path}, and it cannot be exported here ({error}); copy it there with its reference"
            ) from error
        export_onnx(source, options)
    return path


def _open_torch(run: Path, size: tuple[int, int], batch: int, precision: Precision, *, compiled: bool) -> Session:
    import torch

    from depthkit.train.torch_session import TorchSession

    torch.backends.cudnn.allow_tf32 = False  # FP32 is FP32, as it is in the engines
    if compiled:
        torch.compiler.reset()  # or another batch would make the shape dynamic, and the ninth variant run uncompiled
    return TorchSession(run, size, batch=batch, device="cuda", precision=precision, compiled=compiled)


def _variants(name: str, engine: Path) -> dict[str, Callable[[], Session]]:
    modes: list[Transfer] = [mode for mode in get_args(Transfer) if mode != "auto"]
    return {
        **{f"{name}, {mode}": partial(load, engine, transfer=mode) for mode in modes},
        f"{name}, arrays on the GPU": partial(OnGpu, partial(load, engine)),
        f"{name}, no CUDA graph": partial(load, engine, cuda_graph=False),
    }


class OnGpu(SessionBase):
    """A session whose image and depth are torch tensors on the GPU, bound once: `run` copies nothing.

    What `bind` is given is only checked: a run reads the frames of the last call, and leaves its depth on the GPU.

    Args:
        open_session: makes the session that takes such tensors.
        device: of torch, where they lie.
    """

    def __init__(self, open_session: Callable[[], Any], device: str = "cuda") -> None:
        import torch

        with ExitStack() as stack:
            self._session = stack.enter_context(open_session())
            self.spec = self._session.spec
            self.precision = self._session.precision
            self.provider = f"{self._session.provider}, arrays on the GPU"
            height, width = self.spec.size
            self._image = torch.zeros((self.spec.opt_batch, height, width, 3), dtype=torch.uint8, device=device)
            self._depth = torch.zeros((self.spec.opt_batch, height, width), device=device)
            self._session.bind(image=self._image, depth=self._depth)
            self._resources = stack.pop_all()

    def run(self) -> None:
        self._buffers()
        self._session.run()

    def run_phases(self) -> dict[RunPhase, float]:
        """See `Session.run_phases`: nothing is copied."""
        self._buffers()
        phases: dict[RunPhase, float] = self._session.run_phases()
        return phases

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """See `Session.__call__`, for N x H x W x 3 frames of just the engine's batch."""
        import torch

        self.spec.input.check_buffer(frames, written=False)
        self._image.copy_(torch.from_numpy(frames))
        self._session.run()
        return np.array(self._depth.cpu())

    def close(self) -> None:
        super().close()
        self._resources.close()


if __name__ == "__main__":
    sys.exit(main())
