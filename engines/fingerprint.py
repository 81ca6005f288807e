"""The device that an engine was built for, as far as the engine depends on it."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pydantic.dataclasses import dataclass

from ..cores import usable_cores
from ..documents import STRICT

__all__ = ["Arithmetic", "Fingerprint", "cpu_fingerprint", "describe_arithmetic", "limit_isa", "usable_cores"]

Arithmetic = Literal["amx", "vnni", "dot", "saturating", "none"]
"""How a CPU multiplies and adds INT8 numbers.

* amx, vnni: x86, adds four products in 32 bits (TDPBUSD, VPDPBUSD). Exact.
* dot: Arm, the same (UDOT, SDOT, I8MM). Exact.
* saturating: x86 with AVX2 but without VNNI. VPMADDUBSW adds two products in 16 bits and saturates above 32,767, which
  255 x 127 x 2 exceeds (Intel, "Lower Numerical Precision Deep Learning Inference and Training", 2018).
* none: no fast INT8 kernels.
"""

_ISA: Final = (
    "sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "avx_vnni", "avx_ne_convert",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_ARM: Final = frozenset({"asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"})
_BF16: Final = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
_HALF: Final = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})

_AVX2: Final = frozenset({"sse4_1", "avx", "avx2", "fma", "f16c"})
_AVX512: Final = _AVX2 | {"avx512f", "avx512bw"}
_ONEDNN: Final = {
    "SSE41": frozenset({"sse4_1"}),
    "AVX": frozenset({"sse4_1", "avx"}),
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2 | {"avx_vnni"},
    "AVX2_VNNI_2": _AVX2 | {"avx_vnni", "avx_ne_convert"},
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _AVX512 | {"avx512_vnni"},
    "AVX512_CORE_BF16": _AVX512 | {"avx512_vnni", "avx512_bf16"},
    "AVX512_CORE_FP16": _AVX512 | {"avx512_vnni", "avx512_bf16", "avx512_fp16"},
    "AVX10_1_512": _AVX512 | {"avx512_vnni", "avx512_bf16", "avx512_fp16"},
}
"""ONEDNN_MAX_CPU_ISA -> instruction sets that oneDNN, and so OpenVINO and torch, may use; higher values allow all
(oneDNN's developer guide, "CPU Dispatcher Control")."""


@dataclass(frozen=True, config=STRICT)
class Fingerprint:
    """A device, or the devices that an engine was built for.

    Attributes:
        kind: CPU or GPU.
        name: the vendor's name of the device; empty for an engine that runs on any GPU of its architectures.
        architecture: a CPU's machine name; a GPU's compute capability ("sm_89"), for an engine also several
            ("sm_75 sm_86") or a minimum ("sm_80+").
        isa: instruction sets of a CPU that its engines may use; empty for a GPU.
    """

    kind: Literal["cpu", "gpu"]
    name: str
    architecture: str
    isa: tuple[str, ...] = ()

    @property
    def computes_half(self) -> bool:
        """Whether this CPU has FP16 arithmetic, not only conversions."""
        return not _HALF.isdisjoint(self.isa)

    @property
    def computes_bf16(self) -> bool:
        """Whether this CPU has BF16 arithmetic."""
        return not _BF16.isdisjoint(self.isa)

    @property
    def int8(self) -> Arithmetic | None:
        """The INT8 arithmetic of this CPU; None for a GPU.

        >>> Fingerprint("cpu", "EPYC 7763", "x86_64", ("avx", "avx2", "fma")).int8
        'saturating'
        """
        if self.kind == "gpu":
            return None
        has = set(self.isa)
        if "amx_int8" in has:
            return "amx"
        if has & {"avx512_vnni", "avx_vnni"}:
            return "vnni"
        if has & {"asimddp", "i8mm"}:
            return "dot"
        return "saturating" if "avx2" in has else "none"

    def accepts(self, other: Fingerprint) -> bool:
        """Whether an engine built for `other` runs here.

        On a CPU the instruction sets (and so the INT8 arithmetic) must be the same; the name may differ. On a GPU the
        name must be the same too, because tactics are chosen by timing, unless the engine was built for every GPU of
        its architectures.

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
        """The device as text for messages."""
        details = f"{self.architecture}: {' '.join(self.isa)}" if self.isa else self.architecture
        return f"{self.name or 'any GPU'} ({details})"


def _covers(built: str, here: str) -> bool:
    """Whether `built`, such as "sm_89" or "sm_80+", includes `here`, such as "sm_89"."""
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
    asked = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    isa = limit_isa(tuple(flag for flag in _ISA if flag in flags), asked)
    return Fingerprint("cpu", name, platform.machine(), isa)


def limit_isa(isa: tuple[str, ...], limit: str) -> tuple[str, ...]:
    """The instruction sets of a CPU that `ONEDNN_MAX_CPU_ISA=limit` allows.

    Engines depend on it: without VNNI, OpenVINO's INT8 kernels saturate. ONNX Runtime ignores the variable; an engine
    of it for the smaller instruction set is also correct on the larger one.

    >>> limit_isa(("avx2", "avx512f", "avx512_vnni"), "AVX2"), limit_isa(("avx2", "avx512_vnni"), "")
    (('avx2',), ('avx2', 'avx512_vnni'))
    """
    left = _ONEDNN.get(limit.upper())
    return isa if left is None else tuple(flag for flag in isa if flag in left or flag in _ARM)


def describe_arithmetic(arithmetic: Arithmetic) -> str:
    """The INT8 arithmetic and the weights that engines use for it, as text."""
    return _ARITHMETIC[arithmetic]


_ARITHMETIC: Final[dict[Arithmetic, str]] = {
    "amx": "AMX, 8-bit weights",
    "vnni": "VNNI, 8-bit weights",
    "dot": "Arm dot product, 8-bit weights",
    "saturating": "AVX2, whose 16-bit sums saturate: 7-bit weights",
    "none": "no INT8 dot product: 7-bit weights, not faster than FP32",
}


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
