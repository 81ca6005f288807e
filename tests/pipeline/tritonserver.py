"""Triton Inference Server itself, for tests: the one that the package nvidia-pytriton brings.

It has no backend but that of Python. So the model files are run by a backend of ours, `_BACKEND`, which stands in for
Triton's own and uses the library's Python API. Everything else is Triton's: the repository, the configuration,
versions, warm-up, batching, and the protocol.

    python3 -m venv /somewhere && /somewhere/bin/pip install nvidia-pytriton 'numpy<2' onnxruntime openvino
    DEPTHKIT_TRITON=/somewhere/bin/python pytest -m slow tests/pipeline/test_triton_server.py
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

from tritonclient import http

_FIND: Final = """
import pathlib, platform, pytriton
package = pathlib.Path(pytriton.__file__).parent
major, minor, _ = platform.python_version_tuple()
print(package / "tritonserver", package.parent, f"{major}.{minor}", sep="\\n")
"""

_BACKEND: Final = """
import json
import os

import numpy as np
import triton_python_backend_utils as pb

{open}


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        file = json.loads(args["model_config"])["default_model_filename"]
        self.run = open_model(os.path.join(args["model_repository"], args["model_version"], file))

    def execute(self, requests):
        images = [pb.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        print("RAN", len(images), sum(int(image.sum()) for image in images), flush=True)
        depth, answers, start = self.run(np.concatenate(images)), [], 0
        for image in images:
            answers.append(pb.InferenceResponse([pb.Tensor("depth", depth[start : start + len(image)])]))
            start += len(image)
        return answers
"""

_OPEN: Final = {
    "onnxruntime": """
def open_model(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["depth"], {"image": images})[0]
""",
    "openvino": """
def open_model(path):
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled({"image": images})["depth"]
""",
}


@dataclass(frozen=True)
class Triton:
    """A running server.

    Attributes:
        client: asks it.
        log: what it printed so far.
    """

    client: Any
    log: Path

    def runs(self) -> list[tuple[int, int]]:
        """The number of requests of each run so far, and the sum of their pixels."""
        lines = (line.split() for line in self.log.read_text(errors="replace").splitlines())
        return [(int(words[1]), int(words[2])) for words in lines if words[:1] == ["RAN"]]


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Until it is true. Raises AssertionError after some time."""
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "it did not come true"
        sleep(0.2)


@contextmanager
def serving(repository: Path, place: Path) -> Iterator[Triton]:
    """Serve a repository, polling it for changes, until the end of the block; `place` is a folder for its files."""
    python = os.environ["DEPTHKIT_TRITON"]
    found = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, check=True).stdout.split("\n")
    server, packages, version = Path(found[0]), Path(found[1]), found[2]
    backends = Path(shutil.copytree(server / "backends" / "python", place / "backends" / "python")).parent
    stub = shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    Path(stub).chmod(0o755)
    for name, code in _OPEN.items():
        (backends / name).mkdir()
        (backends / name / "model.py").write_text(_BACKEND.format(open=code))
    ports = [_free_port() for _ in range(3)]
    words = ["--http-port", "--grpc-port", "--metrics-port"]
    command: list[str | Path] = [
        server / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--model-control-mode=poll",
        "--repository-poll-secs=1",
        "--exit-on-error=false",
        *(f"{word}={port}" for word, port in zip(words, ports, strict=True)),
    ]
    libraries = ":".join(str(path) for path in packages.glob("nvidia_pytriton.libs"))
    path = f"{Path(python).parent}:{os.environ['PATH']}"
    environment = os.environ | {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(packages), "PATH": path}
    log = place / "triton.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    client = http.InferenceServerClient(f"127.0.0.1:{ports[0]}")
    try:
        wait_for(lambda: _is_live(client) or process.poll() is not None)
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        yield Triton(client, log)
    finally:
        client.close()
        process.terminate()
        process.wait(60)


def _is_live(client: Any) -> bool:
    try:
        return bool(client.is_server_live())
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
