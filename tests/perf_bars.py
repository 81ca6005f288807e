"""Which figures `make perf` asks of a CPU: pure functions of its fingerprint."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Final

from depthkit.engines.fingerprint import Fingerprint, cpu_fingerprint

RAW: Final = "the faster FP32 of the vendors"
"""OpenVINO's or ONNX Runtime's own call in FP32, whichever is faster."""

_BF16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_INT8: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True)
class Bar:
    """`fast` has to be at least `times` as fast as `over`; "best": the fastest engine that holds its gate."""

    fast: str
    over: str
    times: float


def here() -> Fingerprint:
    """This CPU, as far as oneDNN may use it."""
    return limited(cpu_fingerprint(), os.environ.get("ONEDNN_MAX_CPU_ISA", ""))


def limited(cpu: Fingerprint, isa: str) -> Fingerprint:
    """A CPU of which oneDNN uses no more than `isa`, as `ONEDNN_MAX_CPU_ISA` names it; only AVX2 and less is known."""
    if isa.upper() not in {"SSE41", "AVX", "AVX2"}:
        return cpu
    return replace(cpu, isa=tuple(each for each in cpu.isa if not each.startswith(("avx512", "amx", "avx_vnni"))))


def has_bf16(cpu: Fingerprint) -> bool:
    """Whether it multiplies BF16."""
    return not _BF16.isdisjoint(cpu.isa)


def is_plain(cpu: Fingerprint) -> bool:
    """Whether it has no arithmetic that is faster than FP32, as AVX2 alone: then only FP32 can be compared with."""
    return not has_bf16(cpu) and _INT8.isdisjoint(cpu.isa)


def session_bound(cpu: Fingerprint, size: tuple[int, int]) -> float:
    """What a session's run may take over the vendor's own call."""
    return 1.05 if size == (96, 128) and not is_plain(cpu) else 1.03


def fp32_bars(cpu: Fingerprint) -> tuple[Bar, ...]:
    """Of compact's FP32 file, at 480x640."""
    bars = [Bar("OpenVINO f32", "ONNX Runtime", 1.05)] if "avx512f" in cpu.isa else []
    if has_bf16(cpu):
        bars += [Bar("OpenVINO bf16", "ONNX Runtime", 2.0), Bar("OpenVINO bf16", "torch, N x 3 x H x W", 4.5)]
    return tuple(bars)


def engine_bars(cpu: Fingerprint, size: tuple[int, int]) -> tuple[Bar, ...]:
    """Of the best engine in any precision."""
    bars = [Bar("best", RAW, 1.0)] if is_plain(cpu) else []
    if not is_plain(cpu) and size == (480, 640):
        bars += [Bar("best", "torch eager", 8.0), Bar("best", "ONNX Runtime fp32", 3.5)]
    return tuple(bars)


def least_fps(cpu: Fingerprint, size: tuple[int, int]) -> float | None:
    """Frames a second of the best engine; None: nothing is asked."""
    return 30.0 if size == (240, 320) and not is_plain(cpu) else None
