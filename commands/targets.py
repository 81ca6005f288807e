"""From what a user names (a run, an ONNX file, an engine) to sessions and contenders."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EngineError, UserError

if TYPE_CHECKING:
    from ..bench.suite import Contender, SampleSet
    from ..session import Session

__all__ = ["contenders", "find_engines", "find_runs", "open_target", "open_torch", "sample_set"]


def find_runs(folder: Path) -> list[Path]:
    """Run folders below `folder`. Raises UserError when there is none."""
    runs = sorted(path.parent for path in folder.glob("*/model.json"))
    if not runs:
        raise UserError(f"there is no finished run in {folder}/; train one with `depthkit train --out {folder}`")
    return runs


def find_engines(folder: Path) -> list[Path]:
    """Engines in the runs below `folder`: files that have a manifest. Raises UserError when there is none."""
    engines = sorted(
        path.with_suffix("")
        for path in folder.glob("*/*.json")
        if path.name != "model.json" and path.with_suffix("").suffix
    )
    if not engines:
        raise UserError(
            f"there is no engine in {folder}/; build some with `depthkit export`, or name one with --engine"
        )
    return engines


def open_target(path: Path) -> Session:
    """A run folder by torch; an ONNX file or engine by the runtime. Raises UserError kinds."""
    if path.is_dir():
        return open_torch(path, None)
    from ..runtime.load import load

    return load(path)


def open_torch(folder: Path, size: tuple[int, int] | None) -> Session:
    """A run by torch eager, FP32, on the CPU. Raises UserError where torch is not installed."""
    if find_spec("torch") is None:
        raise UserError(f"{folder} is a run and needs torch; pip install 'depthkit[train]', or name an engine instead")
    from ..train.session import TorchSession

    return TorchSession(folder, size)


def contenders(paths: list[Path], *, with_torch: bool) -> list[Contender]:
    """What to bench: torch first for every run and size among `paths`, where it is wanted and its run is there."""
    found = [_contender(path) for path in paths]
    torch: dict[tuple[Path, tuple[int, int]], Contender] = {}
    if with_torch and find_spec("torch") is not None:
        from ..bench.suite import Contender

        for path, contender in zip(paths, found, strict=True):
            folder, size = path.parent, contender.reference.size
            weights = folder / "model.safetensors"
            if (folder / "model.json").is_file() and weights.is_file():
                torch.setdefault(
                    (folder, size),
                    Contender(
                        target=str(folder),
                        backend="torch",
                        open=partial(open_torch, folder, size),
                        precision="fp32",
                        reference=contender.reference,
                        file_bytes=weights.stat().st_size,
                    ),
                )
    return [*torch.values(), *found]


def _contender(path: Path) -> Contender:
    from ..bench.suite import Contender
    from ..engines.build import describe_onnx
    from ..engines.manifest import manifest_path, read_manifest
    from ..files import sha256
    from ..reference import read_reference
    from ..runtime.load import load

    if path.suffix == ".onnx" and not manifest_path(path).is_file():
        description = describe_onnx(path)
        stem = path.name.removesuffix(".onnx").rpartition(".")[0]
        return Contender(
            target=str(path),
            backend="onnxruntime (ONNX file)",
            open=partial(load, path),
            precision=description.precision,
            reference=read_reference(path.with_name(f"{stem}.reference.npz")),
            file_bytes=path.stat().st_size,
        )
    if path.is_dir():
        raise EngineError(f"{path} is a run; give the engines in it, or no --engine to bench every one")
    manifest = read_manifest(path)
    onnx = path.with_name(manifest.onnx)
    altered = onnx.is_file() and sha256(onnx) != manifest.onnx_sha256
    return Contender(
        target=str(path),
        backend=manifest.backend,
        open=partial(load, path),
        precision=manifest.precision_asked,
        reference=read_reference(path.with_name(manifest.reference)),
        file_bytes=path.stat().st_size,
        faults=(f"{onnx.name} is not the file that this engine was built from",) if altered else (),
    )


def sample_set(data: str, frames: int | None, depth_units: float) -> SampleSet:
    """The test split of `data`, or evenly spaced `frames` of it. Raises DataError."""
    import numpy as np

    from ..bench.suite import SampleSet
    from ..train.datasets import open_dataset

    dataset = open_dataset(data, "test", depth_units=depth_units)
    count = min(frames or len(dataset), len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    return SampleSet(data, count, len(dataset), dataset.crop, partial(_Chosen, dataset, chosen))  # type: ignore[arg-type]


class _Chosen:
    """Some samples of a data set as pairs of picture and depth, read when they are asked for."""

    def __init__(self, dataset: object, indices: list[int]) -> None:
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[object, object]:
        sample = self._dataset[self._indices[index]]  # type: ignore[index]
        return sample.image, sample.depth
