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
