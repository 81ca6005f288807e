"""`depthkit serve` from the command line: a whole run, signals, the gate's exit code, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from depthkit import packages
from depthkit.engines.build import BuildOptions, build

from ..pipeline.test_proven import change_one_weight
from ..support import INTERRUPTIBLE, STEM, Cli, flip_bit, save_noise

pytest.importorskip("starlette", reason="pip install 'depthkit[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'depthkit[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'depthkit[serve]'")


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `depthkit serve` where torch cannot be imported; the process, and all that it printed up to its address."""
    python, option, code = INTERRUPTIBLE
    without_torch = "import sys; sys.modules.update(dict.fromkeys(('torch', 'lightning')));"
    command = [python, option, without_torch + code, "serve", "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            seen = ""
            while "http://" not in seen:
                seen += (line := process.stderr.readline())
                assert line, seen
            yield process, seen
        finally:
            process.kill()


def address_in(printed: str) -> str:
    return printed[printed.index("http://") :].partition(" ")[0].rstrip("/")


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_it_is_told_to_stop(exports: Path, how: signal.Signals) -> None:
    with serving(exports / f"{STEM}.fp32.ort.onnx", "--sessions", 2) as (process, printed):
        address = address_in(printed)
        assert json.loads(get(f"{address}/v2/health/ready")) == {"ready": True}
        assert json.loads(get(f"{address}/v2/models/{STEM}"))["parameters"]["gate"]["frames"] == 8
        process.send_signal(how)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/v2/health/ready", 200), ("GET", f"/v2/models/{STEM}", 200),
    ]  # fmt: skip


def test_sighup_opens_all_engines_again_and_curl_gets_depth(exports: Path, tmp_path: Path) -> None:
    save_noise(tmp_path / "photo.png", 48, 64)
    with serving(f"a={exports / STEM}.fp32.ort.onnx") as (process, printed):
        address = address_in(printed)
        if (curl := shutil.which("curl")) is not None:  # as docs/serve.md shows it
            command = [curl, "-sS", "--data-binary", f"@{tmp_path / 'photo.png'}", f"{address}/v1/depth"]
            done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "no_proxy": "*"})
            assert done.stdout.startswith(b"\x89PNG")
        get(f"{address}/v2/health/ready")
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 30
        while 'depthkit_reloads_total{model="a",result="replaced",version="1"} 1.0' not in get(f"{address}/metrics"):
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (printed + err).count("pass  a 1: compact 32x48, fp32 by CPUExecutionProvider; max |Δ|") == 2


@pytest.mark.parametrize("name", ["fp32.onnx", "fp32.ort.onnx"])
def test_an_engine_of_one_changed_weight_never_becomes_ready(exports: Path, cli: Cli, name: str) -> None:
    path = exports / f"{STEM}.{name}"
    change_one_weight(exports / f"{STEM}.fp32.onnx")
    if name == "fp32.ort.onnx":
        build(exports / f"{STEM}.fp32.onnx", BuildOptions("onnxruntime"))
    message = cli("serve", path, "--port", 0, code=3).message
    assert "mm > 1 mm on 8 frames" in message
    assert "http://" not in message


def test_a_damaged_engine_and_a_constant_fail_the_gate(exports: Path, cli: Cli) -> None:
    flip_bit(exports / f"{STEM}.fp32.ort.onnx")
    assert "not the file that its manifest describes" in cli("serve", exports / f"{STEM}.fp32.ort.onnx", code=3).message
    assert "mm > 1 mm" in cli("serve", exports / f"{STEM}.fp32.null", "--port", 0, code=3).message


def test_a_token_is_asked_for_and_others_are_warned(exports: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    engine = exports / f"{STEM}.fp32.ort.onnx"
    with serving(engine, "--token", token, "--host", "0.0.0.0") as (process, printed):
        address = address_in(printed)
        assert json.loads(get(f"{address}/v2/health/live")) == {"live": True}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"{address}/v2")
        asked = urllib.request.Request(f"{address}/v2", headers={"Authorization": "Bearer s3cret"})
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert "s3cret" not in printed + out + err
    assert "everybody" not in printed
    with serving(engine, "--host", "0.0.0.0") as (_, printed):
        assert "everybody who reaches this machine can use these models; ask for a token with --token FILE" in printed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("serve", "Missing argument"),
        ("serve nowhere.onnx", "no run, ONNX file or engine nowhere.onnx"),
        ("serve compact --port 99999", "99999"),
        ("serve compact --host no.such.host.invalid", "there is no such address"),
        ("serve compact --sessions 0", "--sessions"),
        ("serve compact --queue -1", "--queue"),
        ("serve compact --max-body 16", "'16' is not a size from 1kB to 4GB"),
        ("serve compact --max-body lots", "write it as 16MB"),
        ("serve compact --token nowhere", "--token nowhere cannot be read"),
        ("serve compact --token empty", "--token empty has to hold one word; make one: `openssl rand -hex 32 > empty`"),
        ("serve compact --token words", "has to hold one word"),
        ("serve dir/a=b.onnx", "cannot be the name of a model"),
    ],
)
def test_what_is_refused(line: str, words: str, here: Path, cli: Cli) -> None:
    (here / "empty").touch()
    (here / "words").write_text("two words")
    assert words in cli(*line.split(), code=2).message


def test_a_taken_port_is_refused_before_engines_are_opened(here: Path, cli: Cli) -> None:
    from depthkit.serve.server import listen

    with listen("127.0.0.1", 0, 0) as sock:
        port = sock.getsockname()[1]
        message = cli("serve", "nowhere.onnx", "--port", port, code=2).message
    assert f"port {port} of 127.0.0.1 is taken" in message


def test_a_run_without_an_onnx_file_says_what_to_do(run: Path, cli: Cli) -> None:
    assert "without an FP32 ONNX file" in cli("serve", run, "--port", 0, code=2).message


def test_a_missing_package_is_named_with_its_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "prometheus_client" else find_spec(name))
    assert "pip install 'depthkit[serve]'" in cli("serve", "compact", code=2).message
