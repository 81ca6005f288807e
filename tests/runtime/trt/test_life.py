"""TensorRT sessions: opening, errors, closing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import depthkit
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.gpu import find_gpu
from depthkit.engines.manifest import write_manifest
from depthkit.errors import BackendError, EngineError
from depthkit.runtime.cuda import CudaError
from depthkit.runtime.run_options import RunOptions
from depthkit.runtime.trt import TensorRTSession, open_engine
from depthkit.spec import Dim, ModelSpec

from .. import tensorrt_runtime
from ..cudart import FakeCudart
from ..tensorrt_runtime import HEIGHT, WIDTH, Open, World, answer, blank, image_of, manifest, plan, spec


def test_memory_does_not_grow(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    for seed in range(3):
        session(image_of(seed))
    held, made = fake.live(), len(fake.memories)
    for seed in range(200):
        session(image_of(seed))
    assert (fake.live(), len(fake.memories)) == (held, made)


def test_close_frees_everything_once(open_session: Open, fake: FakeCudart, world: World) -> None:
    session = open_session()
    for seed in range(3):
        session(image_of(seed))
    assert world.engines == 1
    session.close()
    assert not fake.live()
    assert world.engines == 0
    session.close()
    for use in (session.run, session.enqueue, session.synchronize, session.allocate, lambda: session(image_of(0))):
        with pytest.raises(EngineError, match="this session is closed"):
            use()


def test_close_waits_for_enqueued_work_and_keeps_allocated_arrays(open_session: Open) -> None:
    session = open_session()
    image, depth = session.allocate()
    session.bind(image=image, depth=depth)
    image[:] = image_of(0)
    session.enqueue()
    session.close()
    np.testing.assert_array_equal(depth, answer(image))


@pytest.mark.parametrize("call", ["cudaStreamSynchronize", "cudaGraphExecDestroy", "cudaFree", "cudaEventDestroy"])
def test_close_continues_after_an_error(open_session: Open, fake: FakeCudart, world: World, call: str) -> None:
    session = open_session()
    for seed in range(3):
        session(image_of(seed))
    held = fake.live()
    fake.fail(call, "cudaErrorIllegalAddress")
    with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
        session.close()
    left = {"cudaGraphExecDestroy": "exec", "cudaFree": "device", "cudaEventDestroy": "event"}.get(call)
    assert fake.live() == ({left: 1} if left else {})
    assert held["exec"] == 1
    assert world.engines == 0
    fake.forgive()


@pytest.mark.parametrize("call", ["cudaStreamCreateWithFlags", "cudaEventCreateWithFlags"])
def test_failed_open_leaves_nothing(open_session: Open, fake: FakeCudart, call: str) -> None:
    fake.fail(call, "cudaErrorDevicesUnavailable")
    with pytest.raises(CudaError, match="cudaErrorDevicesUnavailable"):
        open_session()
    assert not fake.live()


def test_missing_memory_for_a_context_quotes_tensorrt(open_session: Open, world: World, fake: FakeCudart) -> None:
    world.no_context = True
    with pytest.raises(BackendError, match=r"tensorrt cannot run .*engine\.plan: out of memory"):
        open_session()
    assert not fake.live()


def test_failed_run_quotes_tensorrt(open_session: Open, world: World) -> None:
    session = open_session()
    session.bind(image=(image := image_of(0)), depth=(depth := blank()))
    world.failing = True
    with pytest.raises(BackendError, match="tensorrt cannot run the engine: illegal memory access"):
        session.run()
    world.failing = False
    session.run()
    np.testing.assert_array_equal(depth, answer(image))


def test_failure_on_the_device_is_raised_on_synchronize(open_session: Open, fake: FakeCudart) -> None:
    session = open_session()
    session.bind(image=image_of(0), depth=blank())
    fake.fail("cudaStreamSynchronize", "cudaErrorIllegalAddress")
    with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
        session.run()


def opened(path: Path, content: bytes, model: ModelSpec) -> TensorRTSession:
    path.write_bytes(content)
    return open_engine(path, manifest(path, model), RunOptions())


def changed(document: bytes, **values: Any) -> bytes:
    whole = json.loads(document)
    whole["tensors"] |= values.pop("tensors", {})
    return json.dumps(whole | values).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [(changed(plan(spec()), host_code=True), "host code"), (b"\0" * 64, "Magic tag does not match")],
    ids=["host code", "not a plan"],
)
def test_invalid_plan_is_refused(world: World, tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        opened(tmp_path / "engine.plan", content, spec())


@pytest.mark.parametrize(
    "tensors",
    [
        {"image": ["INPUT", "HALF", [1, HEIGHT, WIDTH, 3]]},
        {"image": ["INPUT", "UINT8", [1, 3, HEIGHT, WIDTH]]},
        {"depth": ["OUTPUT", "FLOAT", [-1, HEIGHT, WIDTH]]},
        {"depth": ["INPUT", "FLOAT", [1, HEIGHT, WIDTH]]},
        {"confidence": ["OUTPUT", "FLOAT", [1, HEIGHT, WIDTH]]},
    ],
)
def test_engine_with_other_tensors_is_refused(world: World, tmp_path: Path, tensors: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="its manifest has INPUT image UINT8") as caught:
        opened(tmp_path / "engine.plan", changed(plan(spec()), tensors=tensors), spec())
    ((name, (mode, kind, shape)),) = tensors.items()
    assert f"{mode} {name} {kind} {tuple(shape)}" in str(caught.value)


def test_engine_with_a_smaller_range_of_batches(world: World, tmp_path: Path, fake: FakeCudart) -> None:
    model = spec(Dim("batch", 1, 2, 4))
    with opened(tmp_path / "engine.plan", changed(plan(model), batch=[1, 2]), model) as session:
        with pytest.raises(BackendError, match=r"tensorrt cannot take \(3, 16, 32, 3\)"):
            session(image_of(0, 3))
        np.testing.assert_array_equal(session(image_of(0, 2)), answer(image_of(0, 2)))


def test_output_of_another_shape_is_refused(open_session: Open, world: World) -> None:
    session = open_session(Dim("batch", 1, 2, 4))
    world.wider = 16
    with pytest.raises(BackendError, match=r"tensorrt cannot take \(1, 16, 32, 3\)"):
        session(image_of(0))


@pytest.mark.skipif(not isinstance(find_gpu(), str), reason="this machine has a GPU")
def test_missing_gpu_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"tensorrt runs on a GPU, and .* use a machine with an NVIDIA GPU"):
        opened(tmp_path / "engine.plan", plan(spec()), spec())


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_load_opens_both_backends(fake: FakeCudart, tmp_path: Path, backend: str) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(plan(spec()))
    write_manifest(path, manifest(path, spec(), backend))
    with tensorrt_runtime.installed(fake, backend.replace("-", "_")):
        with depthkit.load(path, transfer="mapped", cuda_graph=False) as session:
            np.testing.assert_array_equal(session(image_of(0)), answer(image_of(0)))
        write_manifest(path, replace(manifest(path, spec(), backend), device=Fingerprint("gpu", "Other", "sm_90")))
        with pytest.raises(EngineError, match=f"built for Other .* Stand-in .* --backend {backend}"):
            depthkit.load(path)


def test_stand_in_has_only_names_of_every_supported_release() -> None:
    table = json.loads((Path(__file__).parents[2] / "engines" / "tensorrt_api.json").read_text(encoding="utf-8"))
    every = table["Runtime"][""]
    assert {"rtx1.7", "10.13", "11.4"} <= set(every)
    for each in tensorrt_runtime.CLASSES:
        releases = ["rtx1.7"] if each.__name__ == "ComputeCapability" else every  # asked for by tensorrt-rtx alone
        for name in ("", *(name for name in vars(each) if not name.startswith("_"))):
            assert table[each.__name__].get(name) == releases, f"{each.__name__}.{name}"
