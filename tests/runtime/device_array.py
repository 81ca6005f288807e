"""An array on the device, as a library would hand it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .cudart import FakeCudart


@dataclass
class DeviceArray:
    """An array of some library's on the device, with the CUDA array interface in version 3."""

    cudart: FakeCudart
    values: np.ndarray
    stream: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pointer = int(self.cudart.cudaMalloc(self.values.nbytes)[1])
        self.write(self.values)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.values.shape,
            "typestr": self.values.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        } | self.overrides

    def write(self, values: np.ndarray) -> None:
        """At once."""
        self.cudart.on_device(self.pointer, values.nbytes)[:] = np.frombuffer(values.tobytes(), np.uint8)

    def read(self) -> np.ndarray:
        """What is there now, whoever is still at work."""
        found = self.cudart.on_device(self.pointer, self.values.nbytes).copy()
        return found.view(self.values.dtype).reshape(self.values.shape)

    def free(self) -> None:
        self.cudart.cudaFree(self.pointer)


OnGpu = Callable[..., DeviceArray]
"""The fixture that puts arrays on the GPU."""
