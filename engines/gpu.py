"""The NVIDIA GPU of this machine, queried from the CUDA runtime through cuda-python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from ..errors import BackendError
from .fingerprint import Fingerprint

__all__ = ["Gpu", "find_gpu", "gpu_fingerprint"]


@dataclass(frozen=True)
class Gpu:
    """The current CUDA device.

    Attributes:
        name: for instance "NVIDIA H200".
        compute_capability: major and minor, for instance (9, 0).
        integrated: it shares the host's memory (Jetson), so that mapped memory needs no copy.
        driver: newest CUDA version that the driver supports, for instance "13.0".
    """

    name: str
    compute_capability: tuple[int, int]
    integrated: bool
    driver: str

    @property
    def architecture(self) -> str:
        """The compute capability as in fingerprints, for instance "sm_90"."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"

    def describe(self) -> str:
        """The GPU as text for messages."""
        return f"{self.name}, {self.architecture}, driver for CUDA {self.driver}"


def find_gpu() -> Gpu | str:
    """The current CUDA device, or why there is none, with CUDA's name of the error."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "cuda-python is not installed"
    from cuda.bindings import runtime

    try:
        error, device = runtime.cudaGetDevice()
        if error == runtime.cudaError_t.cudaSuccess:
            return _describe(device)
        _, name = runtime.cudaGetErrorName(error)
    except RuntimeError as missing:  # cuda-python 12 raises this without a driver; 13 returns an error
        return f"no CUDA device can be used ({missing})"
    return f"no CUDA device can be used ({name.decode()})"


@cache
def _describe(device: int) -> Gpu | str:
    from cuda.bindings import runtime

    error, properties = runtime.cudaGetDeviceProperties(device)
    if error == runtime.cudaError_t.cudaSuccess:
        error, driver = runtime.cudaDriverGetVersion()
    if error != runtime.cudaError_t.cudaSuccess:
        _, name = runtime.cudaGetErrorName(error)
        return f"CUDA device {device} does not report its properties ({name.decode()})"
    return Gpu(
        name=properties.name.split(b"\0")[0].decode(),
        compute_capability=(properties.major, properties.minor),
        integrated=bool(properties.integrated),
        driver=f"{driver // 1000}.{driver % 1000 // 10}",
    )


def gpu_fingerprint() -> Fingerprint:
    """This machine's GPU. Raises BackendError if there is none."""
    gpu = find_gpu()
    if isinstance(gpu, str):
        raise BackendError(f"a GPU is needed, but {gpu}; run this on a machine with an NVIDIA GPU and its driver")
    return Fingerprint("gpu", gpu.name, gpu.architecture)
