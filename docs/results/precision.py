"""One table of what each precision costs and is worth, out of a bench.

depthkit bench --data path/to/nyu --frames 654 --json bench.json
python docs/results/precision.py bench.json > docs/results/precision.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

COLUMNS = "engine | computes in | of the MACs | p50 ms | p95 ms | SSIM | worst frame | AbsRel | δ1 | AbsRel | δ1 | gate"


@click.command()
@click.argument("bench", type=click.Path(path_type=Path))
def main(bench: Path) -> None:
    """Print the page."""
    result = json.loads(bench.read_text(encoding="utf-8"))
    environment = result["environment"]
    rows = sorted(result["rows"], key=lambda row: (row["backend"] != "torch", row["p50_ms"]))
    data = rows[0]["accuracy"]
    network, (height, width) = rows[0]["network"], rows[0]["size"]
    click.echo("# Precision by backend\n")
    click.echo("```console")
    for flags in ("", "--fp16 ", "--bf16 ", "--int8 --calibrate ../shared/data/nyu "):
        click.echo(f"$ depthkit export runs/{network} {flags}--backend all")
    click.echo(f"$ {environment['command']}")
    click.echo(f"$ python docs/results/precision.py {bench}\n```\n")
    click.echo(
        f"{network} at {height}x{width} on {environment['cpu']['name']}, {environment['cores']} cores, in turns. "
        f"SSIM (on depth / 10 m) and the next two: against torch in FP32 on {rows[0]['parity']['frames']} frames, "
        f"which the gate judges. The last two: against measured depth, {data['frames']} test frames of NYU Depth v2. "
        "FP16 on this CPU is stored as FP16 and computed in FP32, and is no candidate for speed. "
        "ONNX Runtime has no BF16 on a CPU.\n"
    )
    click.echo(f"| {COLUMNS} |")
    click.echo("|---|---|" + "---:|" * 9 + "---|")
    for row in rows:
        click.echo(f"| {' | '.join(_cells(row))} |")
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    click.echo(f"\n{versions}; depthkit {environment['depthkit']} {environment['commit']}; {environment['time']}.")


def _cells(row: dict[str, Any]) -> list[str]:
    parity, scores = row["parity"], row["accuracy"]["scores"]["pooled"]
    share = row["macs_share"]
    return [
        row["backend"],
        row["precision"],
        "" if share is None else f"{share:.1%}",
        f"{row['p50_ms']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{parity['ssim']:.4f}",
        f"{parity['worst_ssim']:.4f}",
        f"{parity['abs_rel_loss']:+.4f}",
        f"{0 - parity['delta1_loss']:+.4f}",
        f"{scores['abs_rel']:.4f}",
        f"{scores['delta1']:.4f}",
        "holds" if row["passed"] else "; ".join(row["faults"]),
    ]


if __name__ == "__main__":
    main()
