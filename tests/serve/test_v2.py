"""KServe's protocol as clients meet it: Triton's own client, plain requests, and what is refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from depthkit.errors import EngineError
from depthkit.pipeline.proven import prove
from depthkit.runtime import kserve
from depthkit.runtime.load import load

from ..support import STEM
from .services import SIZE, Answered, Served, depth_of, fake, first_channel, images, serving

POST = "/v2/models/a/infer"


@pytest.fixture
def served() -> Iterator[Served]:
    """A model `a` that answers at once, in two versions, and a model `b` of batches up to 4."""
    from depthkit.spec import Dim

    engines = {"a": fake(), "a=2": fake(answer=lambda frame: first_channel(frame) + 1)}
    with serving(engines | {"b": fake(batch=Dim("batch", 1, 2, 4))}) as server:
        yield server


class TestTritonsClient:
    """`tritonclient.http`, which NVIDIA wrote for its own server."""

    @pytest.fixture
    def real(self, pristine_exports: Path) -> Iterator[tuple[Served, Path]]:
        """Engines of real weights, by ONNX Runtime, in FP32 and FP16."""
        paths = [pristine_exports / f"{STEM}.{name}.ort.onnx" for name in ("fp32", "fp16")]
        engines = {str(path): partial(prove, path, 2) for path in paths}
        with serving(engines) as server:
            yield server, paths[0]

    def test_answers_are_the_sessions_bit_for_bit(self, real: tuple[Served, Path]) -> None:
        triton = pytest.importorskip("tritonclient.http")
        server, path = real
        image = np.random.default_rng(1).integers(0, 256, (1, 32, 48, 3), np.uint8)
        with load(path) as first, load(path.with_name(path.name.replace("fp32", "fp16"))) as second:
            expected = {"1": first(image), "2": second(image)}
        given = triton.InferInput("image", list(image.shape), "UINT8")
        with triton.InferenceServerClient(server.address[7:-1]) as client:
            for version, sent, wanted in product(("", "1", "2"), (True, False), (True, False)):
                given.set_data_from_numpy(image, binary_data=sent)
                output = triton.InferRequestedOutput("depth", binary_data=wanted)
                found = client.infer(STEM, [given], version, outputs=[output], request_id="7", timeout=10_000_000)
                used = version or "2"
                assert found.as_numpy("depth").tobytes() == expected[used].tobytes()
                response = found.get_response()
                assert (response["model_name"], response["model_version"], response["id"]) == (STEM, used, "7")

    def test_health_and_metadata(self, real: tuple[Served, Path]) -> None:
        triton = pytest.importorskip("tritonclient.http")
        with triton.InferenceServerClient(real[0].address[7:-1]) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready(STEM)
            assert client.is_model_ready(STEM, "1")
            assert not client.is_model_ready("x")
            assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
            about = client.get_model_metadata(STEM)
            assert [each["version"] for each in client.get_model_repository_index()] == ["1", "2"]
        assert about["versions"] == ["1", "2"]
        assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 48, 3]}]
        assert about["outputs"] == [{"name": "depth", "datatype": "FP32", "shape": [1, 32, 48]}]
        parameters = about["parameters"]
        assert (parameters["precision"], parameters["precision_asked"]) == ("fp16→fp32", "fp16")
        assert (parameters["provider"], parameters["unit"]) == ("CPUExecutionProvider", "metres")
        assert parameters["sha256"].keys() == {"engine", "onnx", "weights"}
        assert parameters["gate"]["frames"] == 8
        assert 0 <= parameters["gate"]["max_abs_mm"] < 10

    def test_many_clients_at_once_each_get_their_own_answer(self, real: tuple[Served, Path]) -> None:
        triton = pytest.importorskip("tritonclient.http")
        server, path = real
        pictures = np.random.default_rng(2).integers(0, 256, (12, 1, 32, 48, 3), np.uint8)
        with load(path) as session:
            expected = [session(picture) for picture in pictures]
        with triton.InferenceServerClient(server.address[7:-1], concurrency=6) as client:
            asked = [
                client.async_infer(
                    STEM, [triton.InferInput("image", [1, 32, 48, 3], "UINT8").set_data_from_numpy(picture)], "1"
                )
                for picture in pictures
            ]
            found = [each.get_result().as_numpy("depth") for each in asked]
        for got, wanted in zip(found, expected, strict=True):
            assert got.tobytes() == wanted.tobytes()

    def test_a_refusal_is_its_exception(self, real: tuple[Served, Path]) -> None:
        triton = pytest.importorskip("tritonclient.http")
        from tritonclient.utils import InferenceServerException

        given = triton.InferInput("image", [1, 8, 8, 3], "UINT8").set_data_from_numpy(np.zeros((1, 8, 8, 3), np.uint8))
        with triton.InferenceServerClient(real[0].address[7:-1]) as client:
            with pytest.raises(InferenceServerException, match=r"\[400\].*the model takes \(1, 32, 48, 3\)"):
                client.infer(STEM, [given])
            with pytest.raises(InferenceServerException, match=r"\[404\] there is no model 'x'"):
                client.infer("x", [given])


def test_the_last_version_answers_those_who_name_none(served: Served) -> None:
    client, image = served.client(), images()
    expected = first_channel(image[0])
    np.testing.assert_array_equal(depth_of(client.infer(image))[0], expected + 1)
    np.testing.assert_array_equal(depth_of(client.infer(image, "/v2/models/a/versions/1/infer"))[0], expected)


@pytest.mark.parametrize("count", [1, 2, 4, 1])
def test_a_dynamic_batch_takes_what_it_allows(served: Served, count: int) -> None:
    many = images(count)
    found = depth_of(served.client().infer(many, "/v2/models/b/infer"))
    np.testing.assert_array_equal(found, many[..., 0].astype(np.float32) / 10)


def test_an_answer_says_what_it_is(served: Served) -> None:
    binary, text = served.client().infer(images()), served.client().infer(images(), binary=False)
    assert binary.headers["content-type"] == "application/octet-stream"
    assert text.headers["content-type"] == "application/json"
    assert kserve.HEADER_LENGTH not in text.headers
    assert text.json["outputs"][0]["shape"] == [1, *SIZE]
    for answer in (binary, text):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (lambda c: c.get("/v2/models/x"), 404, "there is no model 'x'; choose one of a, b"),
        (lambda c: c.get("/v2/models/a/versions/3"), 404, "model 'a' has no version '3'; choose 1, 2"),
        (lambda c: c.get("/v2/models/%2e%2e%2f%2e%2e%2fetc"), 404, ""),
        (lambda c: c.get(POST), 405, "Method Not Allowed"),
        (lambda c: c.get("/nowhere"), 404, "Not Found"),
        (lambda c: c.post(POST, b""), 400, "the request has no JSON"),
        (lambda c: c.post(POST, b"{}", Inference_Header_Content_Length="-1"), 400, "must be a number of bytes"),
        (lambda c: c.post(POST, b"{}", Inference_Header_Content_Length="9" * 30), 400, "must be a number of bytes"),
        (lambda c: c.post(POST, b"{}", Inference_Header_Content_Length="3"), 400, "but the body has 2 bytes"),
        (lambda c: c.post(POST, b"{}", Content_Encoding="gzip"), 415, "compressed"),
        (lambda c: c.post(POST, b" " * 100_000), 413, "the JSON has more bytes than any request of (1, 16, 32, 3)"),
        (lambda c: c.post(POST, bytes(17 << 20)), 413, "the body has more than 16777216 bytes"),
        (lambda c: c.infer(images(2)), 400, "shape [2, 16, 32, 3], and the model takes (1, 16, 32, 3)"),
        (lambda c: c.infer(images(5), "/v2/models/b/infer"), 400, "the model takes (1..4, 16, 32, 3)"),
    ],
)
def test_what_is_refused(served: Served, ask: Callable[..., Answered], status: int, words: str) -> None:
    client = served.client()
    answer = ask(client)
    assert answer.status == status, answer.body
    assert words in answer.error
    depth_of(client.infer(images()))  # over the same connection


@pytest.mark.parametrize(("size", "status"), [(10, 400), (17 << 20, 413)])
def test_bodies_in_chunks_are_read_and_limited(served: Served, size: int, status: int) -> None:
    client = served.client()
    answer = client.post(POST, iter([bytes(size // 2)] * 2), Transfer_Encoding="chunked")  # type: ignore[arg-type]
    assert answer.status == status, answer.error
    depth_of(client.infer(images()))


@pytest.mark.parametrize("text", [b"\0" * 100, b"GET / HTTP/9\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"A" * 70_000])
def test_what_is_no_http_is_refused(served: Served, text: bytes) -> None:
    with served.raw() as connection:
        connection.sendall(text)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
        assert connection.recv(4096) in {b"", b"Invalid HTTP request received."}


def test_every_request_is_counted_and_logged(served: Served) -> None:
    client = served.client()
    client.infer(images())
    client.post(POST, b"{}")
    client.get("/v2/models/x")
    assert served.metric("depthkit_requests_total", model="a", version="2", api="infer", code="200") == 1
    assert served.metric("depthkit_requests_total", model="a", api="infer", code="400") == 1
    assert served.metric("depthkit_requests_total", api="other", code="404") == 1
    for phase in ("queue", "decode", "run", "encode"):
        assert served.metric("depthkit_phase_seconds_count", model="a", phase=phase) == 1
    assert served.metric("depthkit_gate", model="a", version="1", figure="max_abs_mm") == 0.5
    assert served.metric("depthkit_gate", model="a", version="1", figure="finite") == 1
    assert served.metric("depthkit_sessions", model="a") == 2
    assert served.metric("depthkit_ready") == 3
    assert served.metric("depthkit_model_info", provider="null", sha256="e" * 64) == 3
    assert served.metric("process_resident_memory_bytes") > 1e6
    first = next(line for line in served.lines if line["status"] == 200 and line["method"] == "POST")
    assert (first["path"], first["model"], first["version"], first["client"]) == (POST, "a", "2", "127.0.0.1")
    assert {"queue_ms", "decode_ms", "run_ms", "encode_ms"} < first.keys()
    assert first["sent"] > first["received"] > images().nbytes
    assert json.loads(json.dumps(first)) == first


def test_a_fault_of_ours_shows_no_traceback_and_is_logged(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in /home/me/secret.py")

    monkeypatch.setattr(kserve, "read_request", broken)
    answer = served.client().infer(images())
    assert answer.status == 500
    assert answer.error == "this request met a fault of the server, which is in its log"
    assert answer.headers["x-content-type-options"] == "nosniff"
    end = time.monotonic() + 5  # the answer is sent before the log is written
    while "ZeroDivisionError" not in caplog.text and time.monotonic() < end:
        time.sleep(0.01)
    assert "ZeroDivisionError" in caplog.text
    assert served.lines[-1]["status"] == 500


def test_threads_and_sessions_are_given_back() -> None:
    before = set(threading.enumerate())
    with serving({"a": fake(3)}) as served:
        depth_of(served.client().infer(images()))
        sessions = next(iter(served.repository.models())).proven.sessions
    assert set(threading.enumerate()) <= before
    for session in sessions:
        with pytest.raises(EngineError, match="closed"):
            session(images())
