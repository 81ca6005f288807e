"""What machine an engine was built on, as far as the engine depends on it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pydantic.dataclasses import dataclass

from ..cores import usable_cores
from ..spec import STRICT

__all__ = ["Fingerprint", "cpu_fingerprint", "usable_cores"]

_ISA: Final = (
    "sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "avx_vnni", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_HALF: Final = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})


@dataclass(frozen=True, config=STRICT)
class Fingerprint:
    """A device, or those that an engine was built for.

    Attributes:
        kind: what engines are refused on if it differs.
        name: what the vendor calls it; of a GPU engine empty where any of that architecture will do.
        architecture: a CPU's machine name; a GPU's compute capability ("sm_89"), of a GPU engine also several
            ("sm_75 sm_86") or all from one on ("sm_80+").
        isa: instruction sets of a CPU that its engines may rely on; empty for a GPU.
    """

    kind: Literal["cpu", "gpu"]
    name: str
    architecture: str
    isa: tuple[str, ...] = ()

    @property
    def computes_half(self) -> bool:
        """Whether this CPU has FP16 arithmetic, and not only conversion to and from it."""
        return not _HALF.isdisjoint(self.isa)

    def accepts(self, other: Fingerprint) -> bool:
        """Whether an engine built for `other` runs here.

        On a CPU the instruction sets must be the same, and the name may differ. On a GPU the name counts as well, since
        tactics are chosen by timing, unless the engine was built for every GPU of some architectures.

        >>> here = Fingerprint("gpu", "NVIDIA L4", "sm_89")
        >>> here.accepts(Fingerprint("gpu", "", "sm_80+")), here.accepts(Fingerprint("gpu", "NVIDIA A10", "sm_86"))
        (True, False)
        """
        if (
            self.kind != other.kind
            or self.isa != other.isa
            or (self.kind == "gpu" and other.name not in {"", self.name})
        ):
            return False
        if self.kind == "cpu":
            return self.architecture == other.architecture
        return any(_covers(built, self.architecture) for built in other.architecture.split())

    def describe(self) -> str:
        """In words, for messages."""
        details = f"{self.architecture}: {' '.join(self.isa)}" if self.isa else self.architecture
        return f"{self.name or 'any GPU'} ({details})"


def _covers(built: str, here: str) -> bool:
    """Whether "sm_89" or "sm_80+" takes in "sm_89"."""
    if not built.endswith("+"):
        return built == here
    return int(here.removeprefix("sm_")) >= int(built.removeprefix("sm_").removesuffix("+"))


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


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
