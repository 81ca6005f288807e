"""A model at a server as a session: the same answers, and one sentence for whatever goes wrong."""

from __future__ import annotations

import copy
import http.server
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthkit.bench.replay import measure_parity
from depthkit.errors import BackendError, EngineError, UserError
from depthkit.pipeline.proven import prove
from depthkit.reference import read_reference
from depthkit.runtime import kserve
from depthkit.runtime.load import load
from depthkit.runtime.remote import Remote, RemoteModel, RemoteSession, Reply
from depthkit.spec import Dim

from ..serve.mutations import mutated
from ..serve.services import fake, images, serving
from ..support import STEM, Place, Recorded, at, model_spec, places


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[str]:
    """A server that answers everything so; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that http.server asks for

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_answers_are_the_engines_bit_for_bit_and_pass_its_gate(pristine_exports: Path) -> None:
    engine = pristine_exports / f"{STEM}.fp32.ort.onnx"
    reference = read_reference(pristine_exports / f"{STEM}.reference.npz")
    with load(engine) as session, serving({"a": partial(prove, engine, 1)}) as served:
        model = RemoteModel.find(served.address, None)
        with RemoteSession(model, session.spec, "fp32") as remote:
            found = remote(reference.images)
            assert found.tobytes() == session(reference.images).tobytes()
            parity, depths = measure_parity(remote, reference)
            assert parity.max_abs_mm < 1
            np.testing.assert_array_equal(depths, found)
            assert remote.provider == f"CPUExecutionProvider at {served.address.rstrip('/')}"
            with pytest.raises(EngineError, match="closed"):
                remote.close()
                remote(reference.images)


def test_the_last_version_and_a_named_model_are_found() -> None:
    with serving({"a": fake(), "a=2": fake(), "b": fake()}) as served:
        assert RemoteModel.find(served.address, "a").version == "2"
        assert RemoteModel.find(served.address, "b").path == "/v2/models/b/versions/1/infer"
        with pytest.raises(UserError, match="serves a, b; choose one with --model"):
            RemoteModel.find(served.address, None)
        with pytest.raises(BackendError, match="there is no model 'c'; choose one of a, b"):
            RemoteModel.find(served.address, "c")


def test_another_engines_tensors_are_refused() -> None:
    with serving({"a": fake()}) as served:
        model = RemoteModel.find(served.address, "a")
        with pytest.raises(EngineError, match="has other tensors than the engine"):
            RemoteSession(model, model_spec(32, 48), "fp32")


def test_a_refusal_is_the_servers_sentence() -> None:
    with serving({"a": fake()}, token="s3cret", name=None) as served:
        with pytest.raises(BackendError, match="this server wants its token"):
            RemoteModel.find(served.address, "a")
        model = RemoteModel.find(served.address, "a", "s3cret")
        with RemoteSession(model, Recorded([]).spec, "fp32") as remote:
            remote(images())
            next(iter(served.repository.models())).most = 0
            with pytest.raises(BackendError, match="model a has 0 requests, as many as it accepts"):
                remote(images())
            next(iter(served.repository.models())).most = 1
            remote(images())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://localhost",
        "http://",
        "http://[::1",
        "http://a:99999",
        "http://a:x",
        "http://a b:80",
    ],
)
def test_what_is_no_servers_url_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match="is not http://HOST:PORT"):
        Remote(url)


def test_a_password_in_the_url_is_not_shown() -> None:
    with closing(Remote("http://me:s3cret@127.0.0.1:1/base/")) as remote:
        assert remote.url == "http://127.0.0.1:1/base"
        with pytest.raises(BackendError, match="Connection refused") as refused:
            remote.read("GET", "/v2")
        assert "s3cret" not in str(refused.value)


def test_an_address_of_ipv6_needs_no_port() -> None:
    assert Remote("http://[fe80::a]")._connection.host == "fe80::a"


def test_a_host_that_is_no_name_is_said() -> None:
    with pytest.raises(BackendError, match="label"):
        RemoteModel.find(f"http://{'a' * 70}.example", "a")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"<html>", 200, "is not JSON"),
        (b"<html>", 502, "HTTP status 502"),
        (b'{"error": 5}', 404, "5"),
        (b"[]", 200, "is malformed"),
        (b'{"parameters": 3}', 200, "is malformed"),
        (b'{"versions": {"1": 2}}', 200, "is malformed"),
        (b'{"versions": [null]}', 200, "is malformed"),
        (b"[" * 100_000, 200, "is not JSON"),
        (b'{"name": "\\ud800"}', 200, "is not JSON"),
        (b'{"error": "one\\ntwo\\u001b[2J"}', 500, r"one two \[2J$"),
        (b'{"error": "' + b"x" * 10_000 + b'"}', 500, "x{200}…$"),
        (b" " * (1 << 24) + b"{}", 200, "has more than 16777216 bytes"),
    ],
    ids=range(12),
)
def test_a_server_of_something_else_is_said(body: bytes, status: int, words: str) -> None:
    with answering(body, status) as url, pytest.raises(BackendError, match=words):
        RemoteModel.find(url, "a")


def test_a_malformed_answer_is_said() -> None:
    from depthkit.runtime.kserve import tensor_metadata

    spec = Recorded([]).spec
    metadata = {"inputs": [tensor_metadata(spec.input)], "outputs": [tensor_metadata(spec.output)]}
    with (
        answering(b'{"outputs": []}') as url,
        RemoteSession(RemoteModel(url, "", "a", "", metadata), spec, "") as remote,
    ):
        with pytest.raises(BackendError, match="outputs must be a list of one object"):
            remote(images())
        assert remote._model.path == "/v2/models/a/infer"


def test_tritons_metadata_is_understood() -> None:
    """Its shapes are text in older versions, and it has no parameters."""
    spec = Recorded([]).spec
    metadata = {
        "versions": ["1", "3"], "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": ["1", "16", "32", "3"]}],
        "outputs": [{"name": "depth", "datatype": "FP32", "shape": [1, 16, 32]}],
    }  # fmt: skip
    with RemoteSession(RemoteModel("http://x", "", "a", "3", metadata), spec, "fp32") as remote:
        assert remote.provider == "onnxruntime_onnx at http://x"


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_without_an_index_the_model_is_to_be_named(status: int) -> None:
    with (
        answering(b'{"error": "Not Found"}', status) as url,
        pytest.raises(UserError, match=r"does not list its models \(Not Found\); name the model with --model"),
    ):
        RemoteModel.find(url, None)


@pytest.mark.parametrize("body", ["{}", "3", "null", "[3]", '["a"]', "[{}]", '[{"name": 3}]', '[{"name": "\\u001b"}]'])
def test_a_malformed_index_is_said(body: str) -> None:
    with answering(body.encode()) as url, pytest.raises(BackendError, match="is not a list of models; name the model"):
        RemoteModel.find(url, None)


def test_a_server_without_models_is_said() -> None:
    with answering(b"[]") as url, pytest.raises(UserError, match="serves no model"):
        RemoteModel.find(url, None)


@pytest.mark.parametrize("inputs", [None, 3, [3], [{}], [{"name": "image", "datatype": "UINT8", "shape": ["x"]}]])
def test_metadata_without_tensors_is_said(inputs: Any) -> None:
    with pytest.raises(BackendError, match="does not list inputs and outputs"):
        RemoteModel("http://x", "", "a", "", {"inputs": inputs, "outputs": []}).require(Recorded([]).spec)


def test_an_answer_to_fewer_frames_is_no_answer() -> None:
    """NumPy would spread one depth over all frames."""
    spec = Recorded([], batch=Dim("batch", 1, 2, 4)).spec
    metadata = {"inputs": [kserve.tensor_metadata(spec.input)], "outputs": [kserve.tensor_metadata(spec.output)]}
    tensor = {"name": "depth", "datatype": "FP32", "shape": [1, 16, 32], "data": [1] * 512}
    with (
        answering(json.dumps({"outputs": [tensor]}).encode()) as url,
        RemoteSession(RemoteModel(url, "", "a", "", metadata), spec, "") as remote,
        pytest.raises(BackendError, match="the answer to 2 frames has 1"),
    ):
        remote(np.zeros((2, 16, 32, 3), np.uint8))


def test_a_body_without_end_is_not_kept() -> None:
    """More than any depth of this model needs."""
    spec = Recorded([]).spec
    metadata = {"inputs": [kserve.tensor_metadata(spec.input)], "outputs": [kserve.tensor_metadata(spec.output)]}
    with (
        answering(b" " * 200_000) as url,
        RemoteSession(RemoteModel(url, "", "a", "", metadata), spec, "") as remote,
        pytest.raises(BackendError, match="has more than 147456 bytes"),
    ):
        remote(images())


SPEC: Final = Recorded([]).spec
ANSWERS: Final[dict[str, Any]] = {
    "/v2/repository/index": [{"name": "a", "version": "1", "state": "READY"}],
    "/v2/models/a": {
        "name": "a", "versions": ["1"], "platform": "x", "parameters": {"version": "1", "sha256": {"engine": "0"}},
        "inputs": [kserve.tensor_metadata(SPEC.input)], "outputs": [kserve.tensor_metadata(SPEC.output)],
    },
    "/v2/models/a/versions/1/infer": {
        "outputs": [{"name": "depth", "datatype": "FP32", "shape": [1, 16, 32], "data": [1.5] * 512}],
    },
}  # fmt: skip
PLACES: Final = [
    (path, place) for path, document in ANSWERS.items() for place, _ in places(document) if "data" not in place
]
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def use(url: str) -> None:
    """Do what `bench --server` does; whatever the server answers, nothing but one sentence is raised."""
    try:
        model = RemoteModel.find(url, None)
        with RemoteSession(model, SPEC, str(model.parameters.get("precision"))) as remote:
            remote(images())
    except UserError as error:
        sentence = str(error)
        assert len(sentence) < 800
        assert sentence.isprintable()


@given(changed=st.sampled_from(PLACES), node=JSON, status=st.sampled_from([200, 200, 200, 404, 500, 0]))
def test_no_document_of_a_server_is_a_traceback(changed: tuple[str, Place], node: Any, status: int) -> None:
    where, place = changed
    documents = {"": copy.deepcopy(ANSWERS)}
    *before, last = ("", where, *place)
    at(documents, tuple(before))[last] = node

    def ask(_: Remote, __: str, path: str, *___: Any, **____: Any) -> Reply:
        found = documents[""].get(path)
        return Reply(status if path == where else 200, 0.0, json.dumps(found).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Remote, "ask", ask)
        use("http://x")


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A server that says this to everything, and leaves; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), path=st.sampled_from(list(ANSWERS)))
def test_no_bytes_of_a_server_are_a_traceback(seed: int, path: str) -> None:
    body = json.dumps(ANSWERS[path]).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{kserve.HEADER_LENGTH}: {len(body)}\r\n\r\n"
    with saying(mutated(head.encode() + body, random.Random(seed))) as url:
        use(url)


@pytest.mark.parametrize("length", ["²", "9" * 5000, "-1", "x"])
def test_a_length_that_is_no_number_is_none(length: str) -> None:
    body = json.dumps(ANSWERS["/v2/models/a"])
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{kserve.HEADER_LENGTH}: {length}\r\n\r\n"
    with saying((head + body).encode("latin-1")) as url:
        assert RemoteModel.find(url, "a").version == "1"
