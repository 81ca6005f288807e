"""`depthkit bench --server`: a served model under load, beside the same engine in this process."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..documents import to_json
from ..errors import GateError
from ..files import write_text
from ..pipeline.served import ServerBench, ServerOptions, find_served, measure_server
from ..runtime.remote import RemoteModel
from .console import err, out, progress, table

if TYPE_CHECKING:
    from ..bench.contender import SampleSet
    from ..bench.load import Load

__all__ = ["OPTIONS", "bench_server"]

OPTIONS: Final = frozenset({
    "server", "model_name", "clients", "token_file", "engines", "data", "frames", "depth_units", "seconds", "json_file",
    "markdown_file", "runs", "gate",
})  # fmt: skip
"""Names of the parameters of `bench` that go with `--server`."""

_HEADINGS: Final = ("load", "answers/s", "p50 ms", "p99 ms", "503", "503 p99 ms", "failed", "steady")


def bench_server(
    url: str,
    name: str | None,
    token: str,
    engine: Path | None,
    options: ServerOptions,
    samples: SampleSet | None,
    *,
    runs: Path,
    gate: bool,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure a served model, and show and write what was found. Raises GateError: it fails."""
    model = RemoteModel.find(url, name, token)
    target = engine or find_served(model, runs)
    with progress() as bar:
        task = bar.add_task("", total=None)
        found = measure_server(model, target, options, samples, lambda what: bar.update(task, description=what))
    rows = _rows(found)
    title = f"model {model.name} {model.version} at {model.url}, and {target} in this process"
    shown = table(*_HEADINGS, text={"load"}, title=title)
    for row in rows:
        shown.add_row(*row)
    out.print(shown)
    lines = _sentences(found)
    for line in lines:
        out.print(line, markup=False)
    if found.same is False:
        err.print(f"the server serves another file than {target}: latency here is not its engine's", style="yellow")
    if json_file is not None:
        write_text(json_file, to_json(_document(found)))
    if markdown_file is not None:
        text = [f"| {' | '.join(_HEADINGS)} |", "|---" + "|---:" * (len(_HEADINGS) - 1) + "|"]
        text += [f"| {' | '.join(row)} |" for row in rows]
        write_text(markdown_file, "\n".join([*text, "", *(f"* {line}" for line in lines)]) + "\n")
    if gate and found.faults:
        raise GateError(f"model {model.name} of {model.url}: {'; '.join(found.faults)}")


def _rows(found: ServerBench) -> list[tuple[str, ...]]:
    """The engine here, then every load."""
    rows = [("in this process, 1 session", *_figures(found.here))]
    for load in found.loads:
        clients = f"{load.level:.0f} client{'s' if load.level > 1 else ''}"
        rows.append((clients if load.kind == "closed" else f"{load.level:.0f} requests/s", *_figures(load)))
    return rows


def _figures(load: Load) -> tuple[str, ...]:
    from numpy import percentile

    refused = f"{percentile(load.refusals, 99):.1f}" if load.refusals else "–"
    return (
        f"{load.rate:.1f}",
        f"{load.percentile(50):.2f}",
        f"{load.percentile(99):.2f}",
        str(len(load.refusals)),
        refused,
        str(sum(load.others.values()) + load.wrong),
        "yes" if load.steady else "no",
    )


def _sentences(found: ServerBench) -> list[str]:
    most = max(load.rate for load in found.loads if load.kind == "closed")
    lines = [
        f"the wire adds {found.overhead_ms:.2f} ms to the median; at most {most:.1f} answers/s, "
        f"{most / found.here.rate:.2f} times one session in this process",
        f"parity over the wire on {found.parity.frames} frames: max |Δ| {found.parity.difference}, worst SSIM "
        f"{found.parity.worst_ssim:.5f}",
    ]
    if found.accuracy is not None:
        wire, here = (scores.pooled for scores in found.accuracy)
        lines.append(
            f"accuracy over the wire: AbsRel {wire.abs_rel:.4f}, δ1 {wire.delta1:.4f}; "
            f"here: {here.abs_rel:.4f}, {here.delta1:.4f}"
        )
    return lines


def _document(found: ServerBench) -> dict[str, Any]:
    """All figures; what is not finite becomes null. Times are in milliseconds."""

    def load(each: Load) -> dict[str, Any]:
        samples = asdict(each) | {"others": {str(status): count for status, count in each.others.items()}}
        return samples | {"rate": each.rate, "p50": each.percentile(50), "p99": each.percentile(99)}

    return {
        "server": found.model.url,
        "model": found.model.name,
        "version": found.model.version,
        "metadata": found.model.metadata,
        "engine": found.target,
        "same_engine": found.same,
        "here": load(found.here),
        "loads": [load(each) for each in found.loads],
        "parity": asdict(found.parity),
        "accuracy": None if found.accuracy is None else [asdict(scores) for scores in found.accuracy],
        "faults": found.faults,
    }
