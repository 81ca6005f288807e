"""`depthkit doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import click

from .options import json_option


@dataclass(frozen=True)
class Finding:
    """One line: what was looked for, whether it is here, details, and the command that adds it."""

    what: str
    here: bool
    seen: str
    remedy: str = ""


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show what this machine can do, and how to add what is missing.

    \b
    Example:
      depthkit doctor
    """
    findings = examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    from rich.text import Text

    from .console import out, table

    shown = table("", "what", "seen", text={"", "what", "seen"})
    for finding in findings:
        mark = Text("yes", "green") if finding.here else Text("no", "yellow")
        shown.add_row(mark, finding.what, Text(finding.seen))  # Text: "[train]" is not markup
        if finding.remedy:  # on a separate line, so that the command is not cut
            shown.add_row("", "  to add it:", Text(finding.remedy, "yellow"))
    out.print(shown)


def examine() -> list[Finding]:
    """Examine Python, the extras, the backends and the processor without heavy imports."""
    import platform

    from .. import __version__
    from ..engines.build import backend
    from ..engines.fingerprint import cpu_fingerprint, describe_arithmetic, usable_cores
    from ..engines.gpu import find_gpu
    from ..names import BACKENDS

    cpu, gpu = cpu_fingerprint(), find_gpu()
    arithmetic = cpu.int8
    assert arithmetic is not None, "always set for a CPU"
    findings = [
        Finding("depthkit", here=True, seen=f"{__version__}, Python {platform.python_version()}"),
        Finding("processor", here=True, seen=f"{cpu.name}, {usable_cores()} cores, {' '.join(cpu.isa)}"),
        Finding("NVIDIA GPU", here=not isinstance(gpu, str), seen=gpu if isinstance(gpu, str) else gpu.describe()),
        Finding(
            "FP16 arithmetic",
            here=cpu.computes_half,
            seen="on this CPU" if cpu.computes_half else "not on this CPU: FP16 files are computed in FP32 (fp16→fp32)",
        ),
        Finding("INT8 arithmetic", here=arithmetic != "none", seen=describe_arithmetic(arithmetic)),
        _extra("train and evaluate runs", "train", ("torch", "lightning", "kornia", "safetensors")),
        _extra("export to ONNX", "train", ("torch", "onnx", "onnxscript", "polygraphy", "onnx-graphsurgeon")),
        _extra("adopt ONNX files", "adopt", ("onnx", "polygraphy", "onnx-graphsurgeon", "sympy")),
        _extra("read nyu_depth_v2_labeled.mat", "train", ("h5py",)),
    ]
    for name in BACKENDS:
        available = backend(name).availability()
        seen = f"{available.version}, {available.reason}" if available.usable else available.reason
        findings.append(Finding(f"backend {name}", available.usable, seen, available.remedy))
    return findings


def _extra(what: str, extra: str, packages: tuple[str, ...]) -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return Finding(
            what, here=False, seen=f"{', '.join(missing)} not installed", remedy=f"pip install 'depthkit[{extra}]'"
        )
    return Finding(what, here=True, seen=", ".join(found))
