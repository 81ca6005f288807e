"""Choose `nano`: train every candidate alike, for a short time; score on the validation split; time all engines.

    cd docs/results
    python choose_nano.py train --data path/to/nyu --out runs/nano
    python choose_nano.py time --data path/to/nyu --out runs/nano > nano.json
    python choose_nano.py table nano.json
    python choose_nano.py start --out runs/start
    python choose_nano.py ablate --data path/to/taught-nyu --start runs/start/nano --out runs/ablation

The tables are those of nano.md. `start` writes the run that nano's training starts from: compact's weights, widened.

A candidate that is trained already is kept, so the first command can be stopped and started again. The test split has
no say in a choice.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import nano_candidates
import numpy as np

from depthkit.bench.timing import Steady, time_steady
from depthkit.cores import usable_cores
from depthkit.data.images import resize_image
from depthkit.data.nyu import NyuCsv
from depthkit.data.sources import open_dataset
from depthkit.engines.fingerprint import cpu_fingerprint
from depthkit.errors import BackendError, GateError
from depthkit.export.recipe import ExportOptions
from depthkit.frames import predict_frames
from depthkit.metrics import aggregate, score_frame
from depthkit.names import NETWORKS
from depthkit.pipeline.calibration import read_calibration
from depthkit.pipeline.export import EngineOptions, export_run
from depthkit.pipeline.pictures import read_pictures
from depthkit.pipeline.targets import open_target, open_teacher
from depthkit.runtime.load import load
from depthkit.train.bundle import frames_of, read_bundle, write_bundle
from depthkit.train.document import MODEL
from depthkit.train.fit import fit
from depthkit.train.fit_options import TrainOptions
from depthkit.train.networks import build_network, describe_network, grow
from depthkit.train.presets import PRESETS, Stage
from depthkit.train.shipped import shipped_run

SIZE: Final = (240, 320)
BACKENDS: Final = ("openvino", "onnxruntime")
FACTORS: Final = tuple(percent / 100 for percent in range(97, 107))
SHORT: Final = replace(PRESETS["best"], stages=(Stage(0.8, scale=0.4), Stage(0.2)))
"""Without built-in scenes, whose rendering takes longer than a step of these networks."""


@click.group()
def main() -> None:
    """Choose `nano`."""


@main.command()
@click.option("--data", required=True, help="Data set whose training split is used.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/nano"), show_default=True)
@click.option("--epochs", default=15, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.argument("names", nargs=-1)
def train(data: str, out: Path, epochs: int, seed: int, names: tuple[str, ...]) -> None:
    """Train the candidates NAMES (all of them, if none is named)."""
    for name in nano_candidates.names(names):
        if not (out / name / "model.json").is_file():
            click.echo(name)
            network = name if name in NETWORKS else f"nano_candidates:{name}"
            fit(TrainOptions(network, data, SIZE, epochs=epochs, preset=SHORT, seed=seed, resume=True, out=out))


@main.command()
@click.option("--data", required=True, help="Data set whose training split calibrates INT8.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/nano"), show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Of timing, for each engine.")
@click.argument("names", nargs=-1)
def time(data: str, out: Path, seconds: float, names: tuple[str, ...]) -> None:
    """Build the engines of NAMES and of compact, time all of them in turns, and print JSON."""
    rows, sessions = [], []
    for name in ("compact", *nano_candidates.names(names)):
        if name == "compact" and not (out / name).exists():
            shutil.copytree(shipped_run(name), out / name)
        row = _describe(name, out / name)
        for precision, options in _exports(data):
            row[precision] = {}
            for backend in BACKENDS:
                try:
                    (engine,) = export_run(out / name, options, EngineOptions((backend,)), _tell)
                except (BackendError, GateError) as error:
                    row[precision][backend] = str(error)
                else:
                    sessions.append((row[precision], backend, load(engine)))
        rows.append(row)
    frames = np.stack([resize_image(image, SIZE) for image in read_pictures(data, "val", 8).images])
    times = time_steady([s for _, _, s in sessions], [frames] * len(sessions), Steady(duration_s=seconds))
    for (found, backend, session), samples in zip(sessions, times, strict=True):
        found[backend] = round(median(samples), 3)
        session.close()
    click.echo(json.dumps({"cpu": cpu_fingerprint().name, "threads": usable_cores(), "rows": rows}, indent=1))


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/start"), show_default=True)
def start(out: Path) -> None:
    """Write a run of nano with the weights of compact, see `train.networks.grow`."""
    grown = grow(read_bundle(shipped_run("compact")).network.state_dict())
    spec = describe_network("nano", build_network("nano"), SIZE, focal=NyuCsv.focal)
    network = build_network("nano")
    network.load_state_dict(grown)
    write_bundle(out / "nano", network.eval(), spec, None, frames_of(open_dataset("scenes", "val", size=SIZE)))


@main.command()
@click.option("--data", required=True, help="As for `depthkit train`.")
@click.option("--init", type=click.Path(path_type=Path), required=True, help="The run whose training this ends.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/end"), show_default=True)
@click.option("--epochs", default=12, show_default=True)
def finish(data: str, init: Path, out: Path, epochs: int) -> None:
    """Train nano on: at full size only, at half the rate, without a teacher."""
    refine = PRESETS["refine"]
    preset = replace(refine, stages=(Stage(1.0),), learning_rate=refine.learning_rate / 2)
    options = TrainOptions("nano", data, SIZE, epochs=epochs, preset=preset, init=init, precision="bf16-mixed")
    fit(replace(options, resume=True, out=out))


@main.command()
@click.option("--data", required=True, help="Data set whose validation split chooses.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/scaled"), show_default=True)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
def scale(data: str, out: Path, run: Path) -> None:
    """Multiply the depth of RUN by one factor: that with the highest δ1 on the validation split.

    Losses of log and absolute depth train a network to answer medians, which are nearer than means, and δ1 counts
    ratios. The head is linear, so its weights are multiplied.
    """
    frames, bundle = open_dataset(data, "val"), read_bundle(run)
    samples = [frames[index] for index in range(len(frames))]
    with open_target(run) as session:
        depths = [depth.copy() for depth in predict_frames(session, (sample.image for sample in samples))]
    found = {}
    click.echo("| factor | δ1 | AbsRel | RMSE m |")
    click.echo("|---:|---:|---:|---:|")
    for factor in FACTORS:
        pairs = zip(depths, samples, strict=True)
        scores = aggregate(score_frame(depth * np.float32(factor), s.depth, frames.crop) for depth, s in pairs).pooled
        found[factor] = scores.delta1
        click.echo(f"| {factor:.2f} | {scores.delta1:.4f} | {scores.abs_rel:.4f} | {scores.rmse:.4f} |")
    weights = bundle.network.state_dict()
    for name in ("head.0.weight", "head.0.bias"):
        weights[name] *= max(found, key=lambda factor: found[factor])
    write_bundle(out / "nano", bundle.network, bundle.spec, bundle.document.training, bundle.frames)


@main.command()
@click.option("--data", required=True, help="Made by `depthkit data prepare --teacher compact`.")
@click.option("--start", type=click.Path(path_type=Path), required=True, help="The run that `start` wrote.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
@click.option("--epochs", default=12, show_default=True)
def ablate(data: str, start: Path, out: Path, epochs: int) -> None:
    """Train nano with and without a teacher, from three seeds; print the validation figures in Markdown."""
    preset = replace(PRESETS["refine"], stages=(Stage(1.0),))
    click.echo("| teacher | seed | δ1 | AbsRel |")
    click.echo("|---|---:|---:|---:|")
    for seed in range(3):
        for teacher in (None, open_teacher(Path("compact"))):
            name = "compact" if teacher else "none"
            folder = out / f"{name}-{seed}"
            if not (folder / "nano" / MODEL).is_file():
                options = TrainOptions("nano", data, (144, 192), epochs=epochs, preset=preset, init=start, seed=seed)
                fit(replace(options, teacher=teacher, precision="bf16-mixed", resume=True, out=folder))
            click.echo(f"| {name} | {seed} | {' | '.join(f'{value:.3f}' for value in _validated(folder / 'nano'))} |")


def _validated(run: Path) -> tuple[float, float]:
    """δ1 and AbsRel after the last epoch."""
    with (run / "metrics.csv").open(encoding="utf-8") as stream:
        last = list(csv.DictReader(stream))[-1]
    return float(last["val_delta1"]), float(last["val_abs_rel"])


def _exports(data: str) -> Iterator[tuple[str, ExportOptions]]:
    yield "fp32", ExportOptions(size=SIZE)
    yield "int8", ExportOptions(precision="int8", size=SIZE, calibration=read_calibration(data, SIZE))


def _tell(step: str, detail: str) -> None:
    click.echo(f"{step}: {detail}", err=True)


def _describe(name: str, run: Path) -> dict[str, Any]:
    """Work and accuracy; compact, which was trained for longer and at another size, has no accuracy here."""
    spec = read_bundle(run).spec_at(SIZE)
    row: dict[str, Any] = {"name": name, "parameters": spec.parameters, "macs": spec.macs}
    with suppress(FileNotFoundError):
        row["delta1"], row["abs_rel"] = _validated(run)
    return row


@main.command()
@click.argument("result", type=click.Path(path_type=Path))
def table(result: Path) -> None:
    """Print the candidates as a table in Markdown."""
    click.echo(render(json.loads(result.read_text(encoding="utf-8"))["rows"]))


def render(rows: list[dict[str, Any]]) -> str:
    """The table, the most accurate candidate first."""
    lines = ["| network | parameters | GMAC | δ1 | AbsRel | FP32 ms | INT8 ms |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: -row.get("delta1", 0)):
        accuracy = f"{row['delta1']:.3f} | {row['abs_rel']:.3f}" if "delta1" in row else "|"
        times = " | ".join(" / ".join(_time(row[p][b]) for b in BACKENDS) for p in ("fp32", "int8"))
        lines.append(f"| {row['name']} | {row['parameters']:,} | {row['macs'] / 1e9:.2f} | {accuracy} | {times} |")
    return "\n".join(lines)


def _time(found: float | str) -> str:
    if isinstance(found, str):
        return "in part" if "compute in it" in found else "gate"
    return f"{found:.2f}"


if __name__ == "__main__":
    sys.exit(main())
