"""The fingerprint: what this CPU says of itself, and which engines it lets in."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.engines.fingerprint import Fingerprint, cpu_fingerprint

ISAS = st.lists(st.sampled_from(["avx", "avx2", "f16c", "avx512f"]), unique=True).map(lambda isa: tuple(sorted(isa)))


def test_cpu_is_what_the_kernel_says() -> None:
    here = cpu_fingerprint()
    assert here.kind == "cpu"
    assert here.name
    assert here.architecture == platform.machine()
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert set(here.isa) <= flags
    assert {"avx2", "avx512f", "asimd"} & flags == {"avx2", "avx512f", "asimd"} & set(here.isa)


def test_cpu_is_the_same_cpu_when_asked_again() -> None:
    first = cpu_fingerprint()
    cpu_fingerprint.cache_clear()
    assert cpu_fingerprint() == first
    assert first.accepts(cpu_fingerprint())


@given(a=ISAS, b=ISAS, name=st.text())
def test_engine_is_accepted_for_the_same_instructions_whatever_the_name(
    a: tuple[str, ...], b: tuple[str, ...], name: str
) -> None:
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
def test_gpu_engine_is_accepted_for_its_gpu_or_for_all_of_its_architectures(
    name: str, architecture: str, runs: bool
) -> None:
    assert Fingerprint("gpu", "NVIDIA L4", "sm_89").accepts(Fingerprint("gpu", name, architecture)) is runs


@given(built=st.sampled_from([50, 75, 80, 86, 89, 90, 100, 120]), here=st.sampled_from([75, 80, 86, 89, 90, 100, 120]))
def test_architectures_are_compared_as_numbers(built: int, here: int) -> None:
    """sm_100 is newer than sm_90."""
    gpu = Fingerprint("gpu", "one", f"sm_{here}")
    assert gpu.accepts(Fingerprint("gpu", "", f"sm_{built}+")) is (here >= built)
    assert gpu.accepts(Fingerprint("gpu", "", f"sm_{built}")) is (here == built)


def test_cpu_and_gpu_never_take_each_others_engines() -> None:
    cpu, gpu = Fingerprint("cpu", "x", "sm_89"), Fingerprint("gpu", "x", "sm_89")
    assert not cpu.accepts(gpu)
    assert not gpu.accepts(cpu)


def test_words_name_every_part() -> None:
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
def test_converting_to_half_is_not_computing_in_it(isa: tuple[str, ...], half: bool) -> None:
    assert Fingerprint("cpu", "c", "m", isa).computes_half is half
