"""What machine an engine was built on, as far as the engine depends on it."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pydantic.dataclasses import dataclass

from ..spec import STRICT

__all__ = ["Fingerprint", "cpu_fingerprint", "usable_cores"]

_ISA: Final = (
    "sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "avx_vnni", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_HALF: Final = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})


@dataclass(frozen=True, config=STRICT)
class Fingerprint:
    """A device: what it is called, and the instruction sets (CPU) that its engines may rely on."""

    kind: Literal["cpu"]
    name: str
    architecture: str
    isa: tuple[str, ...]

    @property
    def computes_half(self) -> bool:
        """Whether this CPU has FP16 arithmetic, and not only conversion to and from it."""
        return not _HALF.isdisjoint(self.isa)

    def accepts(self, other: Fingerprint) -> bool:
        """Whether an engine built on `other` may run here: the same instruction sets; the name may differ."""
        return (self.kind, self.architecture, self.isa) == (other.kind, other.architecture, other.isa)


@cache
def cpu_fingerprint() -> Fingerprint:
    """This machine's CPU, from /proc/cpuinfo."""
    entries: dict[str, str] = {}
    for line in _cpuinfo().splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    name = entries.get("model name") or entries.get("CPU part") or platform.processor() or "unknown CPU"
    return Fingerprint("cpu", name, platform.machine(), tuple(flag for flag in _ISA if flag in flags))


def usable_cores() -> int:
    """Cores that this process may run on, which containers and `taskset` make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
