"""Pictures a second by `depthkit predict`, without Ray and with one and two workers on it, in turns on one machine.

    python docs/results/scale.py ENGINE PICTURES [ROUNDS]

ENGINE computes with one thread (`-o threads=1`). The rate is that between the first and the last result: starting takes
seconds, which many pictures outweigh.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import click

VARIANTS = {
    "one process": (1, []),
    "--ray, 1 worker": (1, ["--ray=local"]),
    "--ray, 2 workers": (2, ["--ray=local"]),
}
"""Cores that the command may use, and its options."""


def rate(engine: str, pictures: str, cores: int, options: list[str]) -> float:
    """Pictures a second of one run."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "depthkit", "predict", engine, pictures, "--out", out, *options]
        pinned = ["taskset", "-c", ",".join(map(str, range(cores))), *command]
        subprocess.run(pinned, check=True, stdout=subprocess.DEVNULL)
        times = sorted(path.stat().st_mtime for path in Path(out).glob("*_depth.npy"))
    return (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    """Measure, and print a table."""
    engine, pictures, rounds = sys.argv[1], sys.argv[2], int((*sys.argv, "3")[3])
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, (cores, options) in VARIANTS.items():
            found[name].append(rate(engine, pictures, cores, options))
    click.echo("| | pictures a second | times one process |\n|---|---:|---:|")
    for name, rates in found.items():
        ratio = median(rate / first for rate, first in zip(rates, found["one process"], strict=True))
        click.echo(f"| {name} | {median(rates):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
