"""A model at a server as a session: the same answers, and one sentence for whatever goes wrong."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from depthkit.bench.replay import measure_parity
from depthkit.errors import BackendError, EngineError, UserError
from depthkit.pipeline.proven import prove
from depthkit.reference import read_reference
from depthkit.runtime.load import load
from depthkit.runtime.remote import Remote, RemoteModel, RemoteSession

from ..serve.services import fake, images, serving
from ..support import STEM, Recorded, model_spec


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
        thread = threading.Thread(target=server.serve_forever)
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


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://localhost", "http://", "http://[::1", "http://a:99999"])
def test_what_is_no_servers_url_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match="is not http://HOST:PORT"):
        Remote(url)


def test_a_password_in_the_url_is_not_shown() -> None:
    with closing(Remote("http://me:s3cret@127.0.0.1:1/base/")) as remote:
        assert remote.url == "http://127.0.0.1:1/base"
        with pytest.raises(BackendError, match="Connection refused") as refused:
            remote.read("GET", "/v2")
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"<html>", 200, "is not JSON"),
        (b"<html>", 502, "HTTP status 502"),
        (b'{"error": 5}', 404, "5"),
        (b"[]", 200, "is malformed"),
        (b'{"parameters": 3}', 200, "is malformed"),
    ],
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
