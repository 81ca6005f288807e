"""Options for running an engine that are not fixed when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import UserError

__all__ = ["RunOptions", "Transfer"]

Transfer = Literal["auto", "device", "pinned", "mapped"]


@dataclass(frozen=True)
class RunOptions:
    """Options of GPU sessions.

    Attributes:
        transfer: where the session's own buffers are. "pinned": page-locked host memory, copied to the device and back;
            "mapped": page-locked host memory that the GPU reads and writes itself; "device": pageable host memory,
            copied by the driver; "auto": mapped on integrated GPUs, pinned on discrete ones.
        cuda_graph: record a run as a CUDA graph and replay it, if shapes are static.
    """

    transfer: Transfer = "auto"
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        modes = get_args(Transfer)
        if self.transfer not in modes:
            raise UserError(f"no such transfer mode: {self.transfer!r}; choose one of {', '.join(modes)}")

    def require_cpu(self, backend: str) -> None:
        """Raise UserError if an option was given that an engine on the CPU does not have."""
        if self.transfer != "auto":
            raise UserError(f"{backend} runs on the CPU and has no transfer mode; leave out transfer={self.transfer!r}")
