"""What is benched, and the pictures that it is scored on."""

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
        target: path, as it is shown.
        backend: as it is shown.
        open: opens the session; can be pickled.
        precision: what was asked for, which chooses the gate.
        reference: what it must agree with.
        file_bytes: size on disk; None: it has no file.
        faults: what is wrong with it before it is opened.
        batch: frames a run; of a dynamic batch the optimum.
        macs_share, kind: see `Row`.
        network: as it is called where it cannot be opened.
        run: name of the run that it belongs to; see `Row`.
        onnx: the ONNX file of what it computes, for the bytes that its layers move; None: it is not there.
        fp32: opens the FP32 model of the same run and weights, whose accuracy it is held to where no row is FP32; None:
            there is none.
        profile: tells what its layers take for these N x H x W x 3 frames; None: nobody can tell.
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
    def model(self) -> tuple[str, str, tuple[int, int], int]:
        """What it is compared within: run, weights, size and batch."""
        return self.run, self.reference.weights_sha256, self.reference.size, self.batch

    @property
    def name(self) -> str:
        """For messages."""
        return f"{Path(self.target).name} ({self.backend})"


class Samples(Protocol):
    """Pairs of H x W x 3 uint8 pictures and H x W depth in metres, read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class SampleSet:
    """Pictures with measured depth for the accuracy columns; of `available` ones only `frames`."""

    data: str
    frames: int
    available: int
    crop: tuple[slice, slice] | None
    samples: Samples

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each picture with its depth, one after the other."""
        return (self.samples[index] for index in range(len(self.samples)))
