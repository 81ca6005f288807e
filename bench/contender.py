"""The contenders of a bench, and the pictures that they are scored on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..precisions import Precision
from ..reference import Reference
from ..session import LayerTime, Session

__all__ = ["Contender", "SampleSet", "Samples"]


@dataclass(frozen=True)
class Contender:
    """Something to bench.

    Attributes:
        target: path, for display.
        backend: name, for display.
        open: opens the session; can be pickled.
        precision: as asked for; selects the gate's tolerances.
        reference: what its depth is compared with.
        file_bytes: size on disk; None: it has no file.
        faults: faults known before it is opened.
        batch: frames per run; the optimum of a dynamic batch.
        macs_share, kind: see `Row`.
        network: its name, used if it cannot be opened.
        run: name of its run; see `Row`.
        onnx: its ONNX file, for the bytes that its layers move; None: missing.
        fp32: opens the FP32 model of the same run and weights, whose accuracy is the standard if no row is FP32; None:
            missing.
        profile: times its layers on these N x H x W x 3 frames; None: impossible.
    """

    target: str
    backend: str
    open: Callable[[], Session]
    precision: Precision
    reference: Reference
    file_bytes: int | None
    faults: tuple[str, ...] = ()
    batch: int = 1
    macs_share: float | None = None
    kind: Literal["engine", "peer"] = "engine"
    network: str = ""
    run: str = ""
    onnx: Path | None = None
    fp32: Callable[[], Session] | None = None
    profile: Callable[[np.ndarray], Sequence[LayerTime]] | None = None

    @property
    def model(self) -> tuple[str, str, tuple[int, int], tuple[int, int], int]:
        """The group it is compared within: run, weights, sizes of frames and network, and batch."""
        reference = self.reference
        return self.run, reference.weights_sha256, reference.size, reference.network_size, self.batch

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{Path(self.target).name} ({self.backend})"


class Samples(Protocol):
    """Pairs of H x W x 3 uint8 pictures and H x W depth in metres, read on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class SampleSet:
    """Pictures with measured depth for the accuracy columns: `frames` of the `available` ones."""

    data: str
    frames: int
    available: int
    crop: tuple[slice, slice] | None
    samples: Samples

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Iterate over pictures with their depth."""
        return (self.samples[index] for index in range(len(self.samples)))
