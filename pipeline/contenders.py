"""The contenders of a bench: engines and ONNX files, torch beside them, and raw vendor APIs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..bench.bisect import first_divergence
from ..bench.contender import Contender
from ..engines.build import given_options
from ..engines.manifest import read_manifest
from ..errors import EngineError, UserError
from ..files import sha256
from ..onnx_graph import describe_onnx
from ..reference import find_reference, onnx_stem, read_reference
from ..runtime.load import is_onnx_file, load
from ..runtime.profile import profile_layers
from ..runtime.runner import GRAPH_RUNNERS, open_peer
from ..spec import Dim
from ..train.document import MODEL, ORIGINAL, WEIGHTS
from .targets import folder_names, locate, open_torch

if TYPE_CHECKING:
    from ..precisions import Precision
    from ..session import Session
    from ..spec import ModelSpec
    from .tell import Tell

__all__ = ["contenders", "find_divergence", "open_at", "open_torch_peer", "peers"]

BISECTED: Final = 2
"""Number of reference frames for finding the layer where an engine diverges."""


def contenders(
    paths: list[Path], tell: Tell, *, with_torch: bool, batch: int | None = None, found: bool = False
) -> list[Contender]:
    """Make contenders of engines; torch, if wanted and possible, precedes the engines of each size and batch.

    Args:
        paths: engines and ONNX files.
        tell: called for each skipped one, with the reason.
        with_torch: whether to bench torch too.
        batch: frames per run; engines that do not take them are skipped. None: each engine's own.
        found: the paths were found by a search, so broken engines are skipped instead of raising an error.

    Raises:
        UserError: an engine is broken, or none is left.
    """
    looked_at = [
        (path.parent, _whole_contender(path, batch, tell) if found else _contender(path, batch, tell)) for path in paths
    ]
    made = [(folder, contender) for folder, contender in looked_at if contender is not None]
    if paths and not made and batch is None:
        raise UserError("all engines found were skipped; build them again with `depthkit export --rebuild`")
    if paths and not made:
        raise UserError(
            f"no engine takes {batch} frames per run; build one with `depthkit export --batch {batch}`, or one for "
            f"several batches with --batch 1,{batch},{batch}"
        )
    names = _run_names([_identity(folder, contender) for folder, contender in made])
    chosen: list[Contender] = []
    seen = set()
    for folder, nameless in made:
        contender = replace(nameless, run=names[_identity(folder, nameless)])
        if with_torch and contender.model not in seen and _can_run_torch(folder, contender):
            chosen.append(_torch_contender(folder, contender))
        seen.add(contender.model)
        chosen.append(contender)
    return chosen


def _whole_contender(path: Path, batch: int | None, tell: Tell) -> Contender | None:
    """Like `_contender`, but broken engines are reported and None."""
    try:
        return _contender(path, batch, tell)
    except (UserError, OSError) as error:
        tell("skipped", f"{path}: {error}")
        return None


def _identity(folder: Path, contender: Contender) -> tuple[Path, str]:
    """The run of a contender: its folder and weights. The folder's weights may have changed since."""
    return folder.resolve(), contender.reference.weights_sha256


def _run_names(runs: list[tuple[Path, str]]) -> dict[tuple[Path, str], str]:
    """A unique name for each folder and weights.

    See `folder_names`; followed by the first digits of the weights' hash if the folder has engines of several weights.
    """
    folders = folder_names(folder for folder, _ in runs)
    names = {}
    for folder, weights in dict.fromkeys(runs):
        several = len({other for at, other in runs if at == folder}) > 1
        names[folder, weights] = folders[folder] + (f" ({weights[:8]})" if several else "")
    return names


def _can_run_torch(folder: Path, beside: Contender) -> bool:
    """Whether torch is installed and the folder has the weights that the engine was made from."""
    weights = _weights(folder)
    here = find_spec("torch") is not None and (folder / MODEL).is_file() and weights.is_file()
    return here and sha256(weights) == beside.reference.weights_sha256


def _torch_contender(folder: Path, beside: Contender) -> Contender:
    return replace(
        beside,
        target=str(folder),
        backend="torch",
        open=partial(open_torch, folder, beside.reference.network_size, beside.batch, beside.reference.size),
        precision="fp32",
        file_bytes=_weights(folder).stat().st_size,
        faults=(),
        macs_share=None,
        profile=None,
    )


def _weights(folder: Path) -> Path:
    return folder / WEIGHTS


def _contender(path: Path, batch: int | None, tell: Tell) -> Contender | None:
    """The contender of an ONNX file or engine, with faults that hashes reveal; None: it does not take this batch."""
    if locate(path).is_dir():
        raise EngineError(
            f"{path} is a run; build its engines with `depthkit export {path}`, and name these, or omit --engine to "
            "bench all"
        )
    made = _look_at(path)
    frames = made.model.opt_batch if batch is None else batch
    if not _takes(made.model, frames):
        tell("skipped", f"{path}: it does not take {frames} frames per run")
        return None
    faults = list(made.faults)
    weights = next((path.with_name(name) for name in (WEIGHTS, ORIGINAL) if path.with_name(name).is_file()), None)
    if weights is not None and sha256(weights) != made.weights_sha256:
        faults.append(f"made from other weights than {weights.name} beside it")
    reference = read_reference(made.reference)
    if reference.weights_sha256 != made.weights_sha256:
        faults.append(f"{made.reference.name} belongs to other weights")
    return Contender(
        target=str(path),
        backend=made.backend,
        open=partial(open_at, path, frames),
        precision=made.precision,
        reference=reference,
        batch=frames,
        file_bytes=path.stat().st_size,
        faults=tuple(faults),
        macs_share=made.share,
        network=made.model.network,
        onnx=made.onnx if made.onnx.is_file() else None,
        fp32=partial(_open_fp32, made.onnx, reference.weights_sha256),
        profile=partial(profile_layers, path),
    )


@dataclass(frozen=True)
class _Made:
    """Properties read from an ONNX file or a manifest."""

    model: ModelSpec
    backend: str
    precision: Precision
    weights_sha256: str
    reference: Path
    onnx: Path
    share: float | None
    faults: tuple[str, ...]


def _look_at(path: Path) -> _Made:
    if is_onnx_file(path):
        file = describe_onnx(path)
        faults = () if file.intact else (f"{path.name} was changed since its export",)
        reference = find_reference(path, file.weights_sha256, file.model)
        return _Made(file.model, "ONNX file", file.precision, file.weights_sha256, reference, path, None, faults)
    manifest = read_manifest(path)
    onnx, reference = path.with_name(manifest.onnx), path.with_name(manifest.reference)
    same = not onnx.is_file() or sha256(onnx) == manifest.onnx_sha256
    faults = () if same else (f"{onnx.name} is not the file that this engine was built from",)
    asked, weights = manifest.precision_asked, manifest.weights_sha256
    shown = ", ".join((manifest.backend, *given_options(manifest)))  # so engines with other options are other rows
    return _Made(manifest.model, shown, asked, weights, reference, onnx, manifest.share, faults)


def _takes(model: ModelSpec, frames: int) -> bool:
    return model.batch == frames if isinstance(model.batch, int) else model.batch.min <= frames <= model.batch.max


def open_at(path: Path, batch: int) -> Session:
    """Open an engine or ONNX file; a dynamic batch is set to `batch` frames per run."""
    session = load(path)
    dynamic = session.spec.batch
    if isinstance(dynamic, Dim):
        session.spec = session.spec.with_batch(replace(dynamic, opt=batch))
    return session


def peers(beside: list[Contender], names: list[str], tell: Tell) -> list[Contender]:
    """The raw vendor APIs on the FP32 models of these engines: each one for every run, size and batch.

    An adopted ONNX file has no network in torch: that is told, unless no other model is there to compare.

    Raises:
        UserError: the run or FP32 ONNX file that they read is missing or has other weights.
    """
    engines = [contender for contender in reversed(beside) if contender.onnx and Path(contender.target).is_file()]
    models = {engine.model: engine for engine in engines}
    if not models:
        raise UserError("--vs needs the ONNX file beside an engine, but there is none; run `depthkit export`")
    found = []
    for folder, engine in ((Path(engine.target).parent, engine) for engine in models.values()):
        for name in names:
            if name not in GRAPH_RUNNERS and (folder / ORIGINAL).is_file() and len(models) > 1:
                tell("skipped", f"--vs {name} of {folder}: it is an ONNX file, which torch does not compute")
            else:
                found.append(_peer(name, folder, engine))
    return found


def _peer(name: str, folder: Path, beside: Contender) -> Contender:
    common = replace(
        beside, backend=f"{name} (vendor)", kind="peer", precision="fp32", faults=(), macs_share=None, profile=None
    )
    reference = beside.reference
    if name not in GRAPH_RUNNERS:
        if not _can_run_torch(folder, beside):
            raise UserError(
                f"--vs {name} needs torch, and in {folder} the run that {beside.target} was made from; leave it out"
            )
        compiled = name == "torch-compile"
        return replace(
            common,
            target=str(folder),
            open=partial(
                open_torch_peer, folder, reference.network_size, beside.batch, compiled, camera=reference.size
            ),
            file_bytes=_weights(folder).stat().st_size,
        )
    assert beside.onnx is not None
    onnx = _fp32_onnx(beside.onnx, reference.weights_sha256)
    return replace(
        common, target=str(onnx), open=partial(open_peer, name, onnx), file_bytes=onnx.stat().st_size, onnx=onnx
    )


def open_torch_peer(
    folder: Path, size: tuple[int, int], batch: int, compiled: bool, camera: tuple[int, int]
) -> Session:
    """See `train.peers`; unlike that, it can be pickled without torch."""
    from ..train import peers as torch_peers

    return torch_peers.open_torch_peer(folder, size, batch=batch, compiled=compiled, camera=camera)


def find_divergence(contender: Contender) -> str:
    """Describe where an engine or ONNX file diverges from the FP32 graph, see `bench.bisect`.

    Raises UserError, BackendError, EngineError.
    """
    path = Path(contender.target)
    if contender.onnx is None:
        raise UserError(f"the ONNX file of {path} is missing; export it again")
    backend, options = (
        ("onnxruntime", None) if is_onnx_file(path) else ((manifest := read_manifest(path)).backend, manifest.options)
    )
    images, fp32 = contender.reference.images[:BISECTED], _beside(contender.onnx)
    found = first_divergence(contender.onnx, fp32, backend, contender.precision, images, options)
    sentence = found.describe() if found else "no layer exceeds the limit of its precision"
    if fp32.is_file():
        return sentence
    return f"{sentence}, but {fp32.name} is missing, so faults of the ONNX file itself are not seen"


def _beside(onnx: Path) -> Path:
    """The path of the same model's FP32 ONNX file, which may not exist."""
    is_fp32 = onnx.is_file() and describe_onnx(onnx).precision == "fp32"  # it may have been renamed
    return onnx if is_fp32 else onnx.with_name(f"{onnx_stem(onnx)}.fp32.onnx")


def _fp32_onnx(onnx: Path, weights: str) -> Path:
    """The FP32 ONNX file of the same model. Raises UserError if it is missing or has other weights."""
    path = _beside(onnx)
    if not path.is_file():
        raise UserError(f"the FP32 ONNX file {path} is missing; write it with `depthkit export`")
    file = describe_onnx(path)
    if not file.intact or file.weights_sha256 != weights:
        raise UserError(f"{path} and {onnx.name} have different weights; export both again")
    return path


def _open_fp32(onnx: Path, weights: str) -> Session:
    return load(_fp32_onnx(onnx, weights))
