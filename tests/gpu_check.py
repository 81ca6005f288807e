"""`make gpu-check`: the tests that need a GPU, and a bench of all that is installed there, into `docs/results/`.

torch eager and compiled, ONNX Runtime CUDA, TensorRT; batch 1 and 16, FP32 and FP16, transfer modes side by side.
What this machine lacks is named and left out. ONNX files are exported from the runs, or taken as they stand beside them
where the exporter is not installed.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Final, get_args

from depthkit.bench.suite import Contender, SuiteOptions, run_suite
from depthkit.bench.table import markdown
from depthkit.bench.timing import Steady
from depthkit.engines.build import BACKENDS, BuildOptions, backend, build
from depthkit.engines.gpu import Gpu, find_gpu
from depthkit.errors import DepthkitError
from depthkit.export.recipe import ExportOptions, onnx_path
from depthkit.files import write_text
from depthkit.reference import read_reference, reference_path
from depthkit.runtime.load import load
from depthkit.runtime.options import Transfer
from depthkit.spec import to_json
from depthkit.tolerances import Precision
from depthkit.train.document import read_document
from depthkit.train.session import TorchSession

BATCHES: Final = (1, 16)
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16")
ON_GPU: Final = [name for name in BACKENDS if name.startswith("tensorrt") or name.endswith(("-cuda", "-tensorrt"))]
RESULTS: Final = Path(__file__).parents[1] / "docs" / "results"


def main() -> int:
    """Test, bench, write."""
    options = _arguments()
    gpu = find_gpu()
    if isinstance(gpu, str):
        print(f"nothing to check: {gpu}")
        return 2
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-q"], text=True, capture_output=True, check=False
    )
    print(tests.stdout[-6000:])
    skipped: list[str] = []
    contenders = [each for run in options.runs for each in _contenders(run, options.size, gpu, skipped)]
    command = shlex.join(["python", *sys.argv])
    result, _ = run_suite(
        contenders, None, SuiteOptions(steady=Steady(duration_s=options.seconds), memory=False, command=command)
    )
    name = f"{re.sub(r'[^a-z0-9]+', '-', gpu.name.lower())}-{datetime.now(timezone.utc):%Y-%m-%d}"
    write_text(options.out / f"{name}.json", to_json(result))
    summary = tests.stdout.strip().splitlines()[-1] if tests.stdout else "pytest did not start"
    left_out = "".join(f"- {line}\n" for line in skipped)
    tables = markdown(result)
    head = f"# {gpu.describe()}\n\n`pytest -m gpu`: {summary}\n\n"
    write_text(options.out / f"{name}.md", f"{head}{tables}\nLeft out:\n\n{left_out or '- nothing'}\n")
    print(tables)
    return 1 if tests.returncode or result.failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("runs/compact"), Path("runs/unet")])
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(240, 320))
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _contenders(run: Path, size: tuple[int, int], gpu: Gpu, skipped: list[str]) -> list[Contender]:
    """Torch and every backend in every variant; `skipped` is told what is left out and why."""
    found: list[Contender] = []
    for batch in BATCHES:
        onnx = {}
        for precision in PRECISIONS:
            try:
                onnx[precision] = _onnx(run, ExportOptions(precision, size, batch))
            except (DepthkitError, ModuleNotFoundError) as error:
                skipped.append(f"{run} {precision}, batch {batch}: {error}")
        for precision, path in onnx.items():
            found += _torch(run, size, batch, precision, path)
            for name in ON_GPU:
                try:
                    found += _engines(path, name, precision, batch, gpu)
                except DepthkitError as error:
                    skipped.append(f"{name}, {path.name}: {error}")
    return found


def _onnx(run: Path, options: ExportOptions) -> Path:
    path = onnx_path(run, read_document(run), options)
    if not path.is_file():
        from depthkit.export.onnx_file import export_onnx
        from depthkit.train.bundle import read_bundle

        export_onnx(read_bundle(run), options)
    return path


def _torch(run: Path, size: tuple[int, int], batch: int, precision: Precision, onnx: Path) -> list[Contender]:
    return [
        Contender(
            target=str(run),
            backend="torch compile" if compiled else "torch",
            open=partial(TorchSession, run, size, batch=batch, device="cuda", precision=precision, compiled=compiled),
            precision=precision,
            reference=read_reference(reference_path(onnx)),
            file_bytes=(run / "model.safetensors").stat().st_size,
            batch=batch,
        )
        for compiled in (False, True)
    ]


def _engines(onnx: Path, name: str, precision: Precision, batch: int, gpu: Gpu) -> list[Contender]:
    if not backend(name).availability().runnable:
        raise DepthkitError(backend(name).availability().reason)
    engine = build(onnx, BuildOptions(name)).path
    first = Contender(
        target=str(engine),
        backend=name,
        open=partial(load, engine),
        precision=precision,
        reference=read_reference(reference_path(onnx)),
        file_bytes=engine.stat().st_size,
        batch=batch,
    )
    modes: list[Transfer] = [mode for mode in get_args(Transfer) if mode != "auto"]
    variants = [replace(first, backend=f"{name} {mode}", open=partial(load, engine, transfer=mode)) for mode in modes]
    without = replace(first, backend=f"{name} no graph", open=partial(load, engine, cuda_graph=False))
    return [*variants, without]


if __name__ == "__main__":
    sys.exit(main())
