"""The fingerprint: CPU detection, and which engines a device accepts."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.engines.fingerprint import Arithmetic, Fingerprint, cpu_fingerprint, describe_arithmetic, limit_isa

ISAS = st.lists(st.sampled_from(["avx", "avx2", "f16c", "avx512f"]), unique=True).map(lambda isa: tuple(sorted(isa)))


def test_cpu_fingerprint_equals_proc_cpuinfo() -> None:
    here = cpu_fingerprint()
    assert here.kind == "cpu"
    assert here.name
    assert here.architecture == platform.machine()
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert set(here.isa) <= flags
    if os.environ.get("ONEDNN_MAX_CPU_ISA"):
        pytest.skip("ONEDNN_MAX_CPU_ISA takes some instruction sets away")
    assert {"avx2", "avx512f", "asimd"} & flags == {"avx2", "avx512f", "asimd"} & set(here.isa)


def test_cpu_fingerprint_is_stable() -> None:
    first = cpu_fingerprint()
    cpu_fingerprint.cache_clear()
    assert cpu_fingerprint() == first
    assert first.accepts(cpu_fingerprint())


@given(a=ISAS, b=ISAS, name=st.text())
def test_cpu_engine_needs_the_same_instruction_sets(a: tuple[str, ...], b: tuple[str, ...], name: str) -> None:
    one, other = Fingerprint("cpu", "one", "x86_64", a), Fingerprint("cpu", name, "x86_64", b)
    assert one.accepts(other) == other.accepts(one) == (a == b)


@pytest.mark.parametrize(
    ("name", "architecture", "runs"),
    [
        ("NVIDIA L4", "sm_89", True),
        ("NVIDIA A10", "sm_89", False),
        ("NVIDIA L4", "sm_86", False),
        ("", "sm_89", True),
        ("", "sm_86", False),
        ("", "sm_75 sm_86 sm_89", True),
        ("", "sm_75 sm_86 sm_120", False),
        ("", "sm_80+", True),
        ("", "sm_89+", True),
        ("", "sm_90+", False),
        ("", "sm_120+ sm_75", False),
        ("", "sm_8", False),
        ("NVIDIA A10", "sm_80+", False),
        ("", "", False),
    ],
)
def test_gpu_engine_needs_its_gpu_or_one_of_its_architectures(name: str, architecture: str, runs: bool) -> None:
    assert Fingerprint("gpu", "NVIDIA L4", "sm_89").accepts(Fingerprint("gpu", name, architecture)) is runs


@given(built=st.sampled_from([50, 75, 80, 86, 89, 90, 100, 120]), here=st.sampled_from([75, 80, 86, 89, 90, 100, 120]))
def test_architectures_are_compared_as_numbers(built: int, here: int) -> None:
    """sm_100 is newer than sm_90."""
    gpu = Fingerprint("gpu", "one", f"sm_{here}")
    assert gpu.accepts(Fingerprint("gpu", "", f"sm_{built}+")) is (here >= built)
    assert gpu.accepts(Fingerprint("gpu", "", f"sm_{built}")) is (here == built)


def test_cpu_and_gpu_refuse_each_others_engines() -> None:
    cpu, gpu = Fingerprint("cpu", "x", "sm_89"), Fingerprint("gpu", "x", "sm_89")
    assert not cpu.accepts(gpu)
    assert not gpu.accepts(cpu)


def test_description_names_every_part() -> None:
    assert Fingerprint("gpu", "", "sm_80+").describe() == "any GPU (sm_80+)"
    assert Fingerprint("cpu", "Imaginary 9000", "x86_64", ("avx", "f16c")).describe() == (
        "Imaginary 9000 (x86_64: avx f16c)"
    )


@pytest.mark.parametrize(
    ("isa", "half"),
    [
        (("avx512f", "f16c"), False),
        (("avx512_bf16",), False),
        (("avx512_fp16",), True),
        (("amx_fp16",), True),
        (("asimd",), False),
        (("asimd", "asimdhp"), True),
        ((), False),
    ],
)
def test_fp16_conversion_is_not_fp16_arithmetic(isa: tuple[str, ...], half: bool) -> None:
    assert Fingerprint("cpu", "c", "m", isa).computes_half is half


EPYC_7763 = ("sse4_1", "avx", "avx2", "fma", "f16c")
SKYLAKE = (*EPYC_7763, "avx512f", "avx512bw")
ZEN_4 = (*SKYLAKE, "avx512_vnni", "avx512_bf16")
SAPPHIRE_RAPIDS = (*ZEN_4, "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")


@pytest.mark.parametrize(
    ("isa", "arithmetic"),
    [
        (("sse4_1", "avx"), "none"),
        (EPYC_7763, "saturating"),
        (SKYLAKE, "saturating"),
        ((*EPYC_7763, "avx_vnni"), "vnni"),
        (ZEN_4, "vnni"),
        (SAPPHIRE_RAPIDS, "amx"),
        (("asimd",), "none"),
        (("asimd", "asimdhp", "asimddp"), "dot"),
    ],
)
def test_int8_arithmetic_follows_from_the_instruction_sets(isa: tuple[str, ...], arithmetic: Arithmetic) -> None:
    cpu = Fingerprint("cpu", "made up", "x86_64", isa)
    assert cpu.int8 == arithmetic
    assert describe_arithmetic(arithmetic)


def test_gpu_has_no_cpu_arithmetic() -> None:
    assert Fingerprint("gpu", "NVIDIA L4", "sm_89").int8 is None


def test_engine_is_refused_on_another_arithmetic() -> None:
    machines = [Fingerprint("cpu", "", "x86_64", isa) for isa in (EPYC_7763, SKYLAKE, ZEN_4, SAPPHIRE_RAPIDS)]
    for here in machines:
        assert [here.accepts(built) for built in machines] == [here is built for built in machines]


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        ("", SAPPHIRE_RAPIDS),
        ("ALL", SAPPHIRE_RAPIDS),
        ("avx2", EPYC_7763),
        ("AVX2", EPYC_7763),
        ("AVX512_CORE", SKYLAKE),
        ("AVX512_CORE_BF16", ZEN_4),
    ],
)
def test_onednn_variable_limits_the_instruction_sets(limit: str, left: tuple[str, ...]) -> None:
    assert limit_isa(SAPPHIRE_RAPIDS, limit) == left
    assert limit_isa(("asimd", "asimddp"), limit) == ("asimd", "asimddp")
