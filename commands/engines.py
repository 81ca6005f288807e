"""`depthkit engines`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import NumberType, json_option

if TYPE_CHECKING:
    from ..engines.manifest import Manifest


@click.group()
def engines() -> None:
    """List, inspect and prune the engines built on this machine.

    `depthkit export` keeps every engine in a store ($DEPTHKIT_STORE or ~/.cache/depthkit), and reuses it for the same
    ONNX file, backend, version, device and options.

    \b
    Examples:
      depthkit engines list
      depthkit engines inspect runs/compact/compact-96x128.fp16.ov.blob
      depthkit engines prune --unused-for 30
    """


@engines.command("list")
@json_option
def list_engines(as_json: bool) -> None:
    """Show every engine in the store, the last used first."""
    import json
    from datetime import datetime

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ..engines.store import Store
    from .console import out

    store = Store()
    entries = store.entries()
    if as_json:
        found = [
            {
                "key": e.key,
                "engine": str(e.engine),
                "bytes": e.file_bytes,
                "used": e.used,
                "backend": e.manifest.backend,
            }
            for e in entries
        ]
        click.echo(json.dumps(found, indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("key", "model", "engine", "version", "precision", "built for", "MiB", "used"):
        table.add_column(heading, justify="right" if heading == "MiB" else "left", no_wrap=heading != "built for")
    for entry in entries:
        manifest = entry.manifest
        table.add_row(
            entry.key[:8],
            _model(manifest),
            manifest.backend,
            manifest.backend_version,
            manifest.precision_found,
            _device(manifest),
            f"{entry.file_bytes / 2**20:.1f}",
            f"{datetime.fromtimestamp(entry.used):%Y-%m-%d}",
        )
    out.print(table)
    total = sum(entry.file_bytes for entry in entries) / 2**20
    out.print(Text(f"{len(entries)} engines, {total:.1f} MiB in {store.root}"))


@engines.command()
@click.argument("engine")
@json_option
def inspect(engine: str, as_json: bool) -> None:
    """Show an engine's properties and layers.

    ENGINE is a file with its manifest, or the first digits of a key in the store.

    \b
    Examples:
      depthkit engines inspect runs/compact/compact-96x128.fp16.ov.blob
      depthkit engines inspect 3f9a
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ..documents import to_json
    from ..engines.build import rebuild_command
    from ..engines.manifest import read_manifest, verify_file
    from ..engines.store import Store
    from .console import out

    path = Path(engine)
    is_key = path.name == engine and not path.suffix and not path.is_file()
    path = Store().named(engine).engine if is_key else path
    manifest = read_manifest(path)
    verify_file(path, manifest, rebuild_command(path, manifest))
    if as_json:
        click.echo(to_json(manifest), nl=False)
        return
    facts = Table(box=None, show_header=False, pad_edge=False)
    for what, value in _facts(manifest):
        facts.add_row(what, Text(value))
    out.print(facts)
    table = Table(
        title=_origin(manifest), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for heading in ("layer", "operator", "precision", "tactic"):
        table.add_column(heading, overflow="fold")
    for layer in manifest.layers:
        table.add_row(Text(layer.name), Text(layer.operator), layer.precision, Text(layer.tactic))
    out.print(table)


@engines.command()
@click.option("--unused-for", "days", type=NumberType(0, 36_500), help="Also remove engines unused for this many days.")
@click.option("--all", "everything", is_flag=True, help="Remove every engine.")
def prune(days: float | None, everything: bool) -> None:
    """Remove engines from the store; copies beside ONNX files stay.

    Without options it removes remains of killed builds, and engines of vendor versions that are no longer installed.

    \b
    Examples:
      depthkit engines prune
      depthkit engines prune --unused-for 30
    """
    from rich.text import Text

    from ..engines.build import is_outdated
    from ..engines.store import Store
    from .console import out

    store = Store()
    broken = store.remove_broken()
    doomed = {
        entry.key: entry
        for entry in store.entries()
        if everything or is_outdated(entry.manifest) or (days is not None and entry.unused_for(days))
    }
    freed = sum(entry.file_bytes for entry in doomed.values())
    for entry in doomed.values():
        store.remove(entry)
    out.print(Text(f"removed {len(doomed)} engines ({freed / 2**20:.1f} MiB) and {broken} unfinished or broken ones"))


def _model(manifest: Manifest) -> str:
    from ..names import file_name

    batch = manifest.model.input.describe().strip("(").partition(",")[0]
    sizes = manifest.model.describe_sizes()
    return f"{file_name(manifest.model.network)} {sizes}" + ("" if batch == "1" else f" x{batch}")


def _device(manifest: Manifest) -> str:
    """The device an engine was built for: GPU architectures, or the CPU."""
    return manifest.device.architecture if manifest.device.kind == "gpu" else manifest.device.name


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    return [
        ("model", f"{_model(manifest)}, {manifest.model.parameters / 1e6:.2f} M parameters"),
        ("camera", manifest.model.describe_camera()),
        ("backend", f"{manifest.backend} {manifest.backend_version}"),
        ("built for", manifest.device.describe()),
        ("precision", f"{manifest.precision_found} ({manifest.precision_asked} was asked for)"),
        ("options", " ".join(f"{key}={value}" for key, value in manifest.options.items()) or "none"),
        ("built", f"{manifest.created}, {manifest.build_seconds:.2f} s"),
        ("from", manifest.onnx),
        ("engine", f"SHA-256 {manifest.engine_sha256}"),
        ("ONNX file", f"SHA-256 {manifest.onnx_sha256}"),
        ("weights", f"SHA-256 {manifest.weights_sha256}"),
    ]


def _origin(manifest: Manifest) -> str:
    source = "the built engine" if manifest.layers_from == "engine" else "the strongly typed network, at least in part"
    return f"{len(manifest.layers)} layers, read from {source}"
