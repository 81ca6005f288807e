"""`make perf` asks of a CPU what it can reach: tried for CPUs that are not here."""

from __future__ import annotations

import pytest

from depthkit.engines.fingerprint import Fingerprint
from depthkit.tests.perf_bars import Bar, engine_bars, fp32_bars, has_bf16, is_plain, least_fps, limited, session_bound

LARGE, MIDDLE, SMALL = (480, 640), (240, 320), (96, 128)
AVX2 = Fingerprint("cpu", "EPYC 7002", "x86_64", ("sse4_1", "avx", "avx2", "fma", "f16c"))
VNNI = Fingerprint("cpu", "Xeon 2nd", "x86_64", (*AVX2.isa, "avx512f", "avx512bw", "avx512_vnni"))
BF16 = Fingerprint("cpu", "EPYC 9004", "x86_64", (*VNNI.isa, "avx512_bf16"))
AMX = Fingerprint("cpu", "Xeon 4th", "x86_64", (*BF16.isa, "amx_tile", "amx_bf16", "amx_int8"))
ARM = Fingerprint("cpu", "Graviton 2", "aarch64", ("asimd", "asimdhp", "asimddp"))


@pytest.mark.parametrize("cpu", [AVX2, limited(AMX, "AVX2"), limited(VNNI, "avx2")])
def test_avx2_alone_is_compared_with_the_vendors_fp32(cpu: Fingerprint) -> None:
    assert is_plain(cpu)
    assert fp32_bars(cpu) == ()
    for size in (LARGE, MIDDLE):
        (bar,) = engine_bars(cpu, size)
        assert (bar.fast, bar.times) == ("best", 1.0)
        assert least_fps(cpu, size) is None
    assert session_bound(cpu, SMALL) == session_bound(cpu, MIDDLE) == 1.03


@pytest.mark.parametrize(("cpu", "bf16"), [(VNNI, False), (BF16, True), (AMX, True), (ARM, False)])
def test_no_bar_needs_what_the_cpu_lacks_and_the_others_stay(cpu: Fingerprint, bf16: bool) -> None:
    assert has_bf16(cpu) is bf16
    assert any("bf16" in bar.fast for bar in fp32_bars(cpu)) is bf16
    assert engine_bars(cpu, LARGE) == (Bar("best", "torch eager", 8.0), Bar("best", "ONNX Runtime fp32", 3.5))
    assert least_fps(cpu, MIDDLE) == 30
    assert session_bound(cpu, SMALL) == 1.05


def test_a_limit_above_avx2_leaves_the_cpu_as_it_is() -> None:
    assert limited(AMX, "") == limited(AMX, "AVX512_CORE_AMX") == AMX
