"""OpenVINO on the caller's own memory, one frame at a time or several, and still the network that was trained."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from depthkit.description import describe_onnx
from depthkit.engines.manifest import Manifest
from depthkit.engines.ov import OPENVINO, capabilities
from depthkit.errors import EngineError, FrameError, UserError
from depthkit.export.graph import Origin, build_graph
from depthkit.metrics import scaled_ssim
from depthkit.reference import Reference
from depthkit.runtime.options import RunOptions
from depthkit.runtime.ov import OpenVinoSession, open_engine
from depthkit.spec import Dim
from depthkit.train.bundle import read_bundle
from depthkit.train.fit import model_spec

STEM = "compact-32x48"
Engine = tuple[Path, Manifest]

needs_bf16 = pytest.mark.skipif("BF16" not in capabilities(), reason="this CPU has no BF16 arithmetic")


def _build(onnx_file: Path, engine: Path, options: dict[str, Any] | None = None) -> Engine:
    """An engine and its manifest, of which opening needs the model, the precision and the options."""
    description, parsed = describe_onnx(onnx_file), OPENVINO.parse_options(options or {})
    asked = OPENVINO.asked(description.precision, parsed)
    built = OPENVINO.build(onnx_file, engine, asked, parsed)
    manifest = Manifest(
        model=description.model,
        backend=OPENVINO.name,
        backend_version="0",
        device=OPENVINO.here(),
        precision_asked=asked,
        precision_found=OPENVINO.found_precision(built.layers, asked),
        layers=built.layers,
        layers_from=built.layers_from,
        engine_sha256="0" * 64,
        onnx_sha256="0" * 64,
        weights_sha256="0" * 64,
        onnx=onnx_file.name,
        reference="",
        options=OPENVINO.record(parsed),
        build_seconds=0.0,
        created="",
    )
    return engine, manifest


def _open(engine: Engine) -> OpenVinoSession:
    return open_engine(*engine, RunOptions())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="module")
def engine(pristine_exports: Path, folder: Path) -> Engine:
    return _build(pristine_exports / f"{STEM}.fp32.onnx", folder / "fp32")


@pytest.fixture(scope="module")
def throughput(pristine_exports: Path, folder: Path) -> Engine:
    return _build(pristine_exports / f"{STEM}.fp32.onnx", folder / "throughput", {"hint": "throughput"})


@pytest.fixture(scope="module")
def sized(pristine_exports: Path, folder: Path) -> Callable[[tuple[int, int], int | Dim], Engine]:
    """FP32 engines of the same network for another size and batch; each is built once."""

    @cache
    def build(size: tuple[int, int], batch: int | Dim) -> Engine:
        bundle = read_bundle(pristine_exports)
        spec = model_spec("compact", size).with_batch(batch)
        path = folder / "sized.fp32.onnx"
        onnx.save(build_graph(bundle.network, spec, "fp32", Origin(bundle.weights_sha256, "{}")), path)
        return _build(path, folder / f"sized-{size}-{batch}")

    return build


@pytest.fixture
def session(engine: Engine) -> Iterator[OpenVinoSession]:
    with _open(engine) as opened:
        yield opened


def test_frames_are_read_where_the_caller_has_them(session: OpenVinoSession, reference: Reference) -> None:
    image, depth = np.zeros((1, 32, 48, 3), np.uint8), np.empty((1, 32, 48), np.float32)
    session.bind(image=image, depth=depth)
    for frame, expected in zip(reference.images, reference.depths, strict=True):
        image[0] = frame
        session.run()
        assert np.abs(depth[0] - expected).max() < 1e-3


def test_depth_lands_in_the_very_array_that_was_bound(session: OpenVinoSession, reference: Reference) -> None:
    """A slice of a larger buffer: only its bytes are written, at the address that it had before."""
    buffer = np.full((3, 32, 48), -1, np.float32)
    address = buffer.ctypes.data
    session.bind(image=reference.images[:1], depth=buffer[1:2])
    session.run()
    assert buffer.ctypes.data == address
    assert np.abs(buffer[1] - reference.depths[0]).max() < 1e-3
    assert (buffer[[0, 2]] == -1).all()


def test_read_only_frames_are_read_in_place_too(session: OpenVinoSession, reference: Reference, tmp_path: Path) -> None:
    """Pages that the operating system lets nobody write: a copy would miss what their owner writes later."""
    (tmp_path / "camera").write_bytes(reference.images[0].tobytes())
    owner = np.memmap(tmp_path / "camera", np.uint8, "r+", shape=(1, 32, 48, 3))
    image = np.memmap(tmp_path / "camera", np.uint8, "r", shape=(1, 32, 48, 3))
    depth = np.empty((1, 32, 48), np.float32)
    session.bind(image=image, depth=depth)
    for frame, expected in zip(reference.images[:3], reference.depths[:3], strict=True):
        owner[0] = frame
        session.run()
        assert np.abs(depth[0] - expected).max() < 1e-3


def test_runs_allocate_nothing(session: OpenVinoSession, reference: Reference) -> None:
    """Python keeps the first few hundred small objects for reuse; after those the memory stands still."""
    image, depth = reference.images[:1], np.empty((1, 32, 48), np.float32)
    session.bind(image=image, depth=depth)
    tracemalloc.start()
    try:
        for _ in range(500):
            session.run()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(100):
            session.run()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < min(image.nbytes, depth.nbytes), "neither is copied"
    assert after - before < 256, "100 runs"


def test_ten_thousand_runs_grow_no_memory(sized: Callable[[tuple[int, int], int], Engine]) -> None:
    process = psutil.Process()
    with _open(sized((16, 16), 1)) as small:
        small.bind(image=np.zeros((1, 16, 16, 3), np.uint8), depth=np.empty((1, 16, 16), np.float32))
        for _ in range(500):
            small.run()
        before = process.memory_info().rss
        for _ in range(10_000):
            small.run()
        assert process.memory_info().rss - before < 1 << 20, "not 105 bytes a run"


def test_memory_is_freed_when_sessions_are_closed(engine: Engine, reference: Reference) -> None:
    process, closed = psutil.Process(), list[OpenVinoSession]()

    def use() -> None:
        with _open(engine) as opened:
            opened(reference.images[:1])
            list(opened.stream(reference.images[:2, None]))
        closed.append(opened)

    for _ in range(5):
        use()
    before = process.memory_info().rss
    for _ in range(10):
        use()
    assert process.memory_info().rss - before < 10 * engine[0].stat().st_size // 4


def test_session_keeps_bound_memory_alive_until_it_is_closed(engine: Engine, reference: Reference) -> None:
    session = _open(engine)
    image, depth = reference.images[:1].copy(), np.empty((1, 32, 48), np.float32)
    watched = weakref.ref(image), weakref.ref(depth)
    session.bind(image=image, depth=depth)
    del image, depth
    gc.collect()
    assert all(reference() is not None for reference in watched)
    session.run()
    session.close()
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_call_answers_what_bind_and_run_do(session: OpenVinoSession, reference: Reference) -> None:
    depth = np.empty((1, 32, 48), np.float32)
    session.bind(image=reference.images[2:3], depth=depth)
    session.run()
    assert np.array_equal(session(reference.images[2]), depth[0])
    assert np.array_equal(session(reference.images)[2], depth[0])


def test_bind_moves_to_other_memory(session: OpenVinoSession, reference: Reference) -> None:
    first, second = np.zeros((2, 1, 32, 48), np.float32)
    session.bind(image=reference.images[:1], depth=first)
    session.run()
    kept = first.copy()
    session.bind(image=reference.images[1:2], depth=second)
    session.run()
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_full_precision_is_torch_to_a_millimetre(session: OpenVinoSession, reference: Reference) -> None:
    assert np.abs(session(reference.images) - reference.depths).max() * 1000 <= 1.0


@pytest.mark.parametrize(
    ("stored", "hint", "executed"),
    [("fp16", "", {"f16", "f32"}), pytest.param("fp32", "bf16", {"bf16"}, marks=needs_bf16)],
)
def test_half_precision_is_torch_in_structure(
    pristine_exports: Path, tmp_path: Path, reference: Reference, stored: str, hint: str, executed: set[str]
) -> None:
    path = pristine_exports / f"{STEM}.{stored}.onnx"
    half = _build(path, tmp_path / "engine", {"inference_precision": hint})
    with _open(half) as opened:
        found = opened(reference.images)
        assert opened.precision == half[1].precision_found
        assert opened.provider.split(", ")[1] in executed
    everywhere = np.ones((32, 48), bool)
    assert min(scaled_ssim(p, t, everywhere) for p, t in zip(found, reference.depths, strict=True)) >= 0.99


@needs_bf16
def test_engine_computes_in_what_it_was_built_for_also_where_openvino_prefers_another(engine: Engine) -> None:
    """A blob is compiled anew whenever it is imported, and then OpenVINO would take BF16 by itself."""
    with _open(engine) as opened:
        assert (opened.precision, opened.provider.split(", ")[1]) == ("fp32", "f32")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threads": 1}, "OpenVINO CPU, f32, 1 thread, latency"),
        ({"threads": 1, "hint": "throughput", "pinning": True}, "OpenVINO CPU, f32, 1 thread, throughput"),
    ],
)
def test_provider_is_what_openvino_says_of_the_opened_engine(
    pristine_exports: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with _open(_build(pristine_exports / f"{STEM}.fp32.onnx", tmp_path / "engine", options)) as opened:
        assert opened.provider == told


def test_dynamic_engine_takes_every_number_of_frames(
    sized: Callable[[tuple[int, int], Dim], Engine], reference: Reference
) -> None:
    with _open(sized((32, 48), Dim("batch", 1, 2, 4))) as dynamic:
        for frames in (1, 3, 4, 8, 2):
            found = dynamic(reference.images[:frames])
            assert np.abs(found - reference.depths[:frames]).max() < 1e-3
        depths = np.full((4, 32, 48), -1, np.float32)
        dynamic.bind(image=reference.images[:3], depth=depths[:3])
        dynamic.run()
        assert np.abs(depths[:3] - reference.depths[:3]).max() < 1e-3
        assert (depths[3] == -1).all()
        groups = [reference.images[:3], reference.images[3:4], reference.images[4:]]
        answers = np.concatenate(list(dynamic.stream(groups)))
        assert np.abs(answers - reference.depths).max() < 1e-3
        with pytest.raises(FrameError):
            dynamic.bind(image=reference.images[:5], depth=np.empty((5, 32, 48), np.float32))


def test_engine_of_two_frames_takes_pairs(
    sized: Callable[[tuple[int, int], int], Engine], reference: Reference
) -> None:
    with _open(sized((32, 48), 2)) as pairs:
        assert np.abs(pairs(reference.images) - reference.depths).max() < 1e-3
        with pytest.raises(FrameError, match=r"3 frames.*batch of 2"):
            pairs(reference.images[:3])


def test_sessions_in_two_threads_answer_as_one_does(engine: Engine, reference: Reference) -> None:
    with _open(engine) as alone:
        expected = alone(reference.images)
    start, answers = threading.Barrier(2), dict[int, list[np.ndarray]]()

    def work(which: int) -> None:
        order = slice(None, None, -1 if which else 1)
        with _open(engine) as own:
            start.wait()
            answers[which] = [own(reference.images[order])[order] for _ in range(10)]

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(answers[which]) for which in range(2)] == [10, 10]
    assert all(np.array_equal(found, expected) for series in answers.values() for found in series)


def test_closing_one_session_leaves_the_other(engine: Engine, reference: Reference) -> None:
    with _open(engine) as one, _open(engine) as other:
        first, second = np.zeros((2, 1, 32, 48), np.float32)
        one.bind(image=reference.images[:1], depth=first)
        other.bind(image=reference.images[1:2], depth=second)
        one.run()
        one.close()
        other.run()
        assert np.abs(first[0] - reference.depths[0]).max() < 1e-3
        assert np.abs(second[0] - reference.depths[1]).max() < 1e-3


def test_closed_session_refuses_in_our_words(engine: Engine, reference: Reference) -> None:
    session = _open(engine)
    with pytest.raises(EngineError, match="bind"):
        session.run()
    session.bind(image=reference.images[:1], depth=np.empty((1, 32, 48), np.float32))
    session.close()
    session.close()
    for use in (session.run, lambda: session(reference.images), lambda: list(session.stream([]))):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_transfer_modes_are_for_gpus(engine: Engine) -> None:
    with pytest.raises(UserError, match=r"openvino runs on the CPU.*'pinned'"):
        open_engine(*engine, RunOptions(transfer="pinned"))


# Series of frames


class _Watched:
    """A compiled model for three requests at a time, of which the test sees each, and can make one fail."""

    optimum = 3

    def __init__(self, compiled: Any, failing: int | None = None) -> None:
        self._compiled, self._failing = compiled, failing
        self.made = self.waits = 0
        self.started: list[Any] = []

    def create_infer_request(self) -> Any:
        watched, request = self, self._compiled.create_infer_request()

        class Request:
            def start_async(self) -> None:
                request.start_async()
                watched.started.append(request)

            def wait(self) -> None:
                request.wait()
                watched.waits += 1
                if watched.waits == watched._failing:
                    raise RuntimeError("Exception from src/a.cpp:1:\nout of luck")

            def __getattr__(self, name: str) -> Any:
                return getattr(request, name)

        self.made += 1
        return Request()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)

    def get_property(self, name: str) -> Any:
        return self.optimum if name == "OPTIMAL_NUMBER_OF_INFER_REQUESTS" else self._compiled.get_property(name)

    @property
    def at_rest(self) -> bool:
        return all(request.wait_for(0) for request in self.started)


def _watch(session: OpenVinoSession, failing: int | None = None) -> _Watched:
    session._compiled = watched = _Watched(session._compiled, failing)
    return watched


@pytest.mark.parametrize("several", [False, True], ids=["as many as are best here", "three"])
def test_stream_answers_in_order_and_as_a_call_does(throughput: Engine, reference: Reference, several: bool) -> None:
    order = np.random.default_rng(0).permutation(np.arange(8).repeat(8))
    with _open(throughput) as opened:
        expected = opened(reference.images)
        if several:
            _watch(opened)
        found = list(opened.stream(reference.images[i : i + 1] for i in order))
    assert [depth.shape for depth in found] == [(1, 32, 48)] * len(order)
    assert np.array_equal(np.concatenate(found), expected[order])
    assert len({depth.ctypes.data for depth in found}) == len(found), "each the caller's own"


def test_stream_keeps_as_many_under_way_as_openvino_deems_best_and_no_more(
    throughput: Engine, reference: Reference
) -> None:
    drawn = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal drawn
        for _ in range(40):
            drawn += 1
            yield reference.images[:1]

    with _open(throughput) as opened:
        watched = _watch(opened)
        under_way = [drawn - answered for answered, _ in enumerate(opened.stream(frames()))]
        assert under_way == [3] * 38 + [2, 1]
        assert watched.made == watched.optimum


def test_stream_of_a_latency_engine_answers_each_frame_before_the_next(
    session: OpenVinoSession, reference: Reference
) -> None:
    """A live camera must not wait for its next picture to get the depth of this one."""
    frames = iter(reference.images[:, None])
    answers = session.stream(frames)
    assert np.abs(next(answers) - reference.depths[:1]).max() < 1e-3
    assert np.array_equal(next(frames), reference.images[1:2])


def test_stream_leaves_what_is_bound(throughput: Engine, reference: Reference) -> None:
    depth = np.empty((1, 32, 48), np.float32)
    with _open(throughput) as opened:
        opened.bind(image=reference.images[:1], depth=depth)
        list(opened.stream(reference.images[1:, None]))
        opened.run()
    assert np.abs(depth - reference.depths[:1]).max() < 1e-3


def test_stream_that_is_given_up_leaves_nothing_running(throughput: Engine, reference: Reference) -> None:
    with _open(throughput) as opened:
        watched = _watch(opened)
        answers = opened.stream(reference.images[:1] for _ in range(20))
        next(answers)
        assert isinstance(answers, Generator)
        answers.close()
        assert watched.at_rest


@pytest.mark.parametrize("good", [0, 1, 5])
def test_failing_source_of_frames_is_told_and_leaves_nothing_running(
    throughput: Engine, reference: Reference, good: int
) -> None:
    def frames() -> Iterator[np.ndarray]:
        for _ in range(good):
            yield reference.images[:1]
        raise OSError("camera unplugged")

    with _open(throughput) as opened:
        watched = _watch(opened)
        with pytest.raises(OSError, match="camera unplugged"):
            list(opened.stream(frames()))
        assert watched.at_rest
        assert np.abs(opened(reference.images[0]) - reference.depths[0]).max() < 1e-3


def test_frame_that_does_not_fit_is_told(throughput: Engine, reference: Reference) -> None:
    with _open(throughput) as opened:
        for wrong in (reference.images[:2], reference.images[:1].astype(np.float32), reference.images[:1, ::-1]):
            with pytest.raises(FrameError, match="image"):
                list(opened.stream([reference.images[:1], wrong]))


@pytest.mark.parametrize("failing", [1, 2, 5])
def test_failing_inference_is_told_in_our_words(throughput: Engine, reference: Reference, failing: int) -> None:
    with _open(throughput) as opened:
        watched = _watch(opened, failing)
        with pytest.raises(EngineError, match=r"openvino cannot run: OpenVINO says: out of luck") as caught:
            list(opened.stream(reference.images[:, None]))
        assert caught.value.__cause__ is not None
        assert watched.at_rest


def test_stream_ends_when_its_session_is_closed(throughput: Engine, reference: Reference) -> None:
    opened = _open(throughput)
    answers = opened.stream(reference.images[:1] for _ in range(20))
    next(answers)
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        list(answers)


# Files that are no engines, or another's: what is behind the hash, which refuses all of them first


@given(share=st.floats(0, 0.999))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_engine_is_refused(share: float, engine: Engine, tmp_path: Path) -> None:
    content = engine[0].read_bytes()
    (tmp_path / "cut.ov.blob").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EngineError, match=r"cut\.ov\.blob.*depthkit export.*OpenVINO says"):
        open_engine(tmp_path / "cut.ov.blob", engine[1], RunOptions())


@given(content=st.binary(max_size=4096))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_no_engine_is_refused(content: bytes, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "noise.ov.blob").write_bytes(content)
    with pytest.raises(EngineError, match=r"noise\.ov\.blob.*OpenVINO says"):
        open_engine(tmp_path / "noise.ov.blob", engine[1], RunOptions())


@pytest.fixture
def header(engine: Engine) -> bytes:
    """Where newer releases keep for what an engine was built: version and instruction set."""
    found = engine[0].read_bytes()[:300]
    if b";isa=" not in found:
        pytest.skip("this release of OpenVINO keeps no instruction set in its blobs")
    return found


def test_damaged_header_is_quoted_in_our_words(engine: Engine, header: bytes, tmp_path: Path) -> None:
    """OpenVINO's words quote it, and are no text then."""
    content = bytearray(engine[0].read_bytes())
    content[header.index(b";isa=")] ^= 0xFF
    (tmp_path / "engine").write_bytes(content)
    with pytest.raises(EngineError, match="OpenVINO says"):
        open_engine(tmp_path / "engine", engine[1], RunOptions())


def test_engine_of_another_size_is_refused(engine: Engine, sized: Callable[[tuple[int, int], int], Engine]) -> None:
    other, _ = sized((16, 16), 1)
    with pytest.raises(EngineError, match=r"16, 16, 3.*32, 48, 3.*build it again"):
        open_engine(other, engine[1], RunOptions())


def test_engine_without_convolutions_is_refused(engine: Engine, tmp_path: Path) -> None:
    """The right ends, and nothing of which could be told what it computes in."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 32, 48, 3])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 32, 48])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [3])
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["depth"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", [image], [depth], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "mean.onnx")
    OPENVINO.build(tmp_path / "mean.onnx", tmp_path / "engine", "fp32", OPENVINO.parse_options({}))
    with pytest.raises(EngineError, match=r"cannot open .*engine: fp32 was asked for.*nothing"):
        open_engine(tmp_path / "engine", engine[1], RunOptions())


@pytest.mark.usefixtures("header")
@pytest.mark.skipif("avx512f" not in OPENVINO.here().isa, reason="this CPU has no AVX-512 to leave out")
def test_engine_of_another_cpu_is_refused(pristine_exports: Path, engine: Engine, tmp_path: Path) -> None:
    """One that was built on this CPU as if it had no more than AVX2."""
    code = (
        "import sys; from pathlib import Path; from depthkit.engines.ov import OPENVINO\n"
        "OPENVINO.build(Path(sys.argv[1]), Path(sys.argv[2]), 'fp32', OPENVINO.parse_options({}))"
    )
    command = [sys.executable, "-c", code, str(pristine_exports / f"{STEM}.fp32.onnx"), str(tmp_path / "engine")]
    subprocess.run(command, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, check=True)
    with pytest.raises(EngineError, match=r"OpenVINO says: .*isa mismatch.*AVX2"):
        open_engine(tmp_path / "engine", engine[1], RunOptions())
