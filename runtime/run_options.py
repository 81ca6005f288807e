"""How an engine is run, as far as that is not decided when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import UserError

__all__ = ["RunOptions", "Transfer"]

Transfer = Literal["auto", "device", "pinned", "mapped"]


@dataclass(frozen=True)
class RunOptions:
    """What only GPU sessions know.

    Attributes:
        transfer: where the session's own buffers lie. "pinned": page-locked host memory, copied to the device and back;
            "mapped": page-locked host memory that the GPU reads and writes itself; "device": pageable host memory,
            copied by the driver; "auto": mapped on integrated GPUs, pinned on discrete ones.
        cuda_graph: record a run once and replay it, where shapes are static.
    """

    transfer: Transfer = "auto"
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        modes = get_args(Transfer)
        if self.transfer not in modes:
            raise UserError(f"there is no transfer mode {self.transfer!r}; choose one of {', '.join(modes)}")

    def require_cpu(self, backend: str) -> None:
        """Raise UserError where something was asked for that an engine on the CPU does not have."""
        if self.transfer != "auto":
            raise UserError(f"{backend} runs on the CPU and has no transfer mode; leave out transfer={self.transfer!r}")
