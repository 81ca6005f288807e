"""`make perf`: `depthkit serve` on this machine: what the wire adds, throughput, overload, damage, and restart.

    python tests/perf_serve.py [PART]...      wire, saturated, overload, mixed, restart, mutated; without: all

Server and clients share the cores, as they do nowhere else. `mixed` and `mutated` serve compact at 32x48, whose
depth takes 1 to 2 ms, so that 100,000 requests do not take an hour; the others serve it at 96x128, in FP32.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from depthkit.bench.load import BUSY, OK, Client, Outcome, closed_loop, in_turns, open_loop
from depthkit.engines.build import BuildOptions, build
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.pipeline.proven import Proven, prove
from depthkit.pipeline.runs import open_source
from depthkit.runtime import kserve
from depthkit.runtime.remote import Remote, RemoteModel, RemoteSession
from depthkit.session import Session
from depthkit.tests.perf import FAILED, report
from depthkit.tests.perf_sources import processor
from depthkit.tests.serve.mutations import answer_to, http_post, mutated, valid_requests
from depthkit.train.shipped import shipped_run

QUEUE = 16
OVERLOAD, OVERLOAD_S = 10, 60
REQUESTS = int(os.environ.get("PERF_REQUESTS", "100000"))
MUTATIONS = 1000
CLIENTS = 8


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    address: str
    started_s: float

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def state(self) -> dict[str, float]:
        """What must not grow: threads, open files, memory."""
        seen = psutil.Process(self.process.pid)
        return {"threads": seen.num_threads(), "files": seen.num_fds(), "MB": seen.memory_info().rss / 1e6}

    def metrics(self) -> dict[str, float]:
        """Metrics without labels, and sums of those with labels."""
        with closing(Remote(self.address)) as remote:
            text = remote.ask("GET", "/metrics").body.decode()
        found: Counter[str] = Counter()
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name.partition("{")[0]] += float(value)  # type: ignore[assignment]
        return dict(found)


@contextmanager
def serving(engine: object, *options: str) -> Iterator[Server]:
    """Run `depthkit serve` until the block ends; it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "depthkit", "serve", f"m={engine}", "--port", str(port), "--queue", str(QUEUE)]
    begin = time.perf_counter()
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            while not _is_ready(port):
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.01)
            yield Server(process, f"http://127.0.0.1:{port}", time.perf_counter() - begin)
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=60)
            assert b"Traceback" not in errors, errors[-2000:]


def _is_ready(port: int) -> bool:
    with closing(Remote(f"http://127.0.0.1:{port}")) as remote:
        return remote.ask("GET", "/v2/health/ready").status == OK


class Wire:
    """A client with one frame, and the depth that it has to get."""

    def __init__(self, address: str, proven: Proven, seed: int = 0) -> None:
        session = proven.sessions[0]
        self.image = np.random.default_rng(seed).integers(0, 256, (1, *session.spec.size, 3), np.uint8)
        self.expected = session(self.image).tobytes()
        self.session = RemoteSession(RemoteModel.find(address, None), session.spec, "fp32")

    def ask(self) -> Outcome:
        reply = self.session.ask(self.image)
        if reply.status != OK:
            return Outcome(reply.status)
        depth = kserve.read_response(reply.body, reply.header_length, self.session.spec.output)
        return Outcome(OK, right=depth.tobytes() == self.expected)

    def close(self) -> None:
        self.session.close()


class Lean:
    """A client that costs little: its request is made once, and of an answer it compares the depth.

    `took` has the milliseconds of each answer by its status, since the request was sent; `ends`, when depth had come.
    """

    def __init__(self, port: int, proven: Proven, seed: int) -> None:
        spec = proven.sessions[0].spec
        image = np.random.default_rng(seed).integers(0, 256, (1, *spec.size, 3), np.uint8)
        self._expected = proven.sessions[0](image).tobytes()
        length, parts = kserve.write_request(image, spec.input, spec.output)
        self._request = http_post("/v2/models/m/infer", b"".join(parts), f"{kserve.HEADER_LENGTH}: {length}\r\n")
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(1 << 20)
        self.took: dict[int, list[float]] = {OK: [], BUSY: []}
        self.ends: list[float] = []

    def ask(self) -> Outcome:
        begin = time.perf_counter()
        self._connection.sendall(self._request)
        view, have, end = memoryview(self._buffer), 0, 0
        while not end or have < end:
            if not (count := self._connection.recv_into(view[have:])):
                return Outcome(0)
            have += count
            if not end and (head := self._buffer.find(b"\r\n\r\n", 0, have)) >= 0:
                fields = bytes(view[:head]).lower()
                end = head + 4 + int(fields.split(b"\r\ncontent-length: ")[1].partition(b"\r")[0])
        status, now = int(view[9:12]), time.perf_counter()
        self.took.setdefault(status, []).append((now - begin) * 1000)
        if status == OK:
            self.ends.append(now)
        return Outcome(status, right=status != OK or view[end - len(self._expected) : end] == self._expected)

    def close(self) -> None:
        self._connection.close()


class Here:
    """A session in this process as a client."""

    def __init__(self, session: Session) -> None:
        self._session = session
        shape = (1, *session.spec.size)
        session.bind(image=np.zeros((*shape, 3), np.uint8), depth=np.empty(shape, np.float32))

    def ask(self) -> Outcome:
        self._session.run()
        return Outcome(OK)

    def close(self) -> None:
        """It is the caller's."""


def perf_wire() -> None:
    """One client beside the session alone, turn by turn."""
    with serving("compact") as server, closing(prove(Path("compact"), 1)) as proven:
        with closing(Wire(server.address, proven)) as client:
            here, wire = in_turns([Here(proven.sessions[0]), client], window_s=0.5, most_windows=40)
        added = wire.percentile(50) - here.percentile(50)
        print(f"      session.run {here.percentile(50):.2f} ms, over the wire {wire.percentile(50):.2f} ms at p50")
        report("wire over session.run, 96x128, 1 client", added, "ms", "<= 1.5", holds=added <= 1.5)


def perf_saturated() -> None:
    """As many clients as saturate the server, beside the same sessions alone, in turns of a second.

    Two cores make one session of two threads, which waits whenever something else takes a core; or two of one thread.
    """
    with exported((96, 128)) as onnx:
        for sessions, threads in ((2, 1), (1, 2)):
            engine = build(onnx, BuildOptions("openvino", {"threads": threads})).path
            with serving(engine, "--sessions", str(sessions)) as server, closing(prove(engine, sessions)) as proven:
                ratio, alone, served = _saturated(server, proven)
            print(f"      {sessions} x {threads} thread(s): {alone:.0f} runs/s alone, {served:.0f} answers/s")
            what = f"throughput of {CLIENTS} clients over the sessions alone, {sessions} x {threads} thread(s)"
            report(what, ratio, "", ">= 0.9", holds=ratio >= 0.9)


def _saturated(server: Server, proven: Proven) -> tuple[float, float, float]:
    """Medians over rounds: of the ratio, of runs a second, and of answers a second."""
    clients = [Lean(server.port, proven, seed) for seed in range(CLIENTS)]
    rounds = []
    for _ in range(10):
        bound = [Here(session) for session in proven.sessions]  # anew, since each round has threads of its own
        alone = closed_loop(iter(map(Kept, bound)).__next__, len(bound), most_windows=1).rate
        load = closed_loop(iter(map(Kept, clients)).__next__, CLIENTS, most_windows=1)
        assert not (load.wrong or load.others or load.refusals), load
        rounds.append((load.rate / alone, alone, load.rate))
    for each in clients:
        each.close()
    ratio, alone, served = (median(column) for column in zip(*rounds, strict=True))
    return ratio, alone, served


class Kept:
    """A client that is not closed with its loop."""

    def __init__(self, client: Client) -> None:
        self.ask = client.ask

    def close(self) -> None:
        """Later."""


def perf_overload() -> None:
    """Ten times as many requests as the server can answer."""
    with serving("compact") as server, closing(prove(Path("compact"), 1)) as proven:
        made: list[Lean] = []

        def open_client() -> Lean:
            made.append(Lean(server.port, proven, len(made) % 8))
            return made[-1]

        most = closed_loop(open_client, CLIENTS)
        with closing(open_client()) as client:
            (before,) = in_turns([client], window_s=1, most_windows=5)
        rss = server.state()["MB"]
        made.clear()
        rate = OVERLOAD * most.rate
        load = open_loop(open_client, rate, seconds=OVERLOAD_S, clients=96)
        grown = server.state()["MB"] - rss
        accepted, refused = ([each for client in made for each in client.took[status]] for status in (OK, BUSY))
        ends = np.array([each for client in made for each in client.ends])
        slowest = np.histogram(ends, np.arange(ends.min(), ends.max()))[0].min()  # of whole seconds
        bound = (QUEUE + 1) * 1000 / slowest  # all places before it, in the slowest second
        print(
            f"      {most.rate:.0f} answers/s at saturation; {rate:.0f} requests/s due for {OVERLOAD_S} s: "
            f"{len(accepted)} answered ({len(accepted) / load.seconds:.0f}/s, at least {slowest} in a second), "
            f"{len(refused)} refused"
        )
        for what, found, limit in (("accepted", accepted, bound), ("refused", refused, 50.0)):
            p50, p99 = np.percentile(found, (50, 99))
            holds = p99 <= limit
            report(f"overload: p99 of {what} requests (p50 {p50:.1f})", p99, "ms", f"<= {limit:.0f}", holds=holds)
        report("overload: wrong answers and failures", load.wrong + sum(load.others.values()), "", "0",
               holds=not load.wrong and not load.others)  # fmt: skip
        report("overload: memory grew by", grown, "MB", "<= 20", holds=grown <= 20)
        with closing(open_client()) as client:
            (after,) = in_turns([client], window_s=1, most_windows=5)
        ratio = after.percentile(50) / before.percentile(50)
        report("overload: p50 of one client afterwards over before", ratio, "", "<= 1.2", holds=ratio <= 1.2)


def perf_mixed(engine: Path) -> None:
    """Valid requests, of which one in twenty is damaged, cut off or slow."""
    with serving(engine, "--sessions", "2") as server, closing(prove(engine, 1)) as proven:
        size = proven.sessions[0].spec.size
        valid, damaged = valid_requests("m", size)[0], valid_requests("m", size)
        wires = [Wire(server.address, proven, seed) for seed in range(CLIENTS)]
        statuses: Counter[str] = Counter()

        def work(number: int, count: int) -> None:
            rng, wire, found = random.Random(number), wires[number], Counter[str]()
            for index in range(count):
                if index % 20:
                    outcome = wire.ask()
                    found[f"{outcome.status}{'' if outcome.right else ' wrong'}"] += 1
                elif (kind := rng.randrange(3)) == 0:
                    found[_damaged(server.port, mutated(rng.choice(damaged), rng))] += 1
                else:
                    found[_partly(server.port, valid, rng, slow=kind == 1)] += 1
            statuses.update(found)

        def run(count: int) -> None:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(work, range(CLIENTS), [count // CLIENTS] * CLIENTS))

        run(REQUESTS // 5)  # until all pools have their threads, and memory as many unfinished heads as it will have
        statuses.clear()
        before, begin = server.state(), time.perf_counter()
        run(REQUESTS)
        seconds = time.perf_counter() - begin
        for wire in wires:
            wire.close()
        time.sleep(12)  # so that connections whose head never came have ended
        after, metrics = server.state(), server.metrics()
        print(f"      {sum(statuses.values())} requests in {seconds:.0f} s: {dict(sorted(statuses.items()))}")
        print(f"      before {before}, after {after}")
        bad = sum(count for status, count in statuses.items() if "wrong" in status or _is_fault(status))
        report("mixed: wrong answers, and 5xx but 503", bad, "", "0", holds=bad == 0)
        left = metrics["depthkit_sessions_running"] + metrics["depthkit_queue_length"] + metrics["depthkit_held_bytes"]
        report("mixed: sessions, places and bytes that are not given back", left, "", "0", holds=left == 0)
        for what, most in (("threads", 0), ("files", 4), ("MB", 10)):
            more = after[what] - before[what]
            report(f"mixed: more {what} than before", more, "", f"<= {most}", holds=more <= most)


def _is_fault(status: str) -> bool:
    return any(word.isdigit() and word != "503" and (word == "0" or word.startswith("5")) for word in status.split())


def _damaged(port: int, request: bytes) -> str:
    """Send a damaged request, and leave if nothing comes: its end may be missing, for which the server waits longer."""
    try:
        answer = answer_to(port, request, 0.5)
    except TimeoutError:
        return "damaged and left"
    assert b"Traceback" not in answer
    return f"damaged {answer[9:12].decode() or 'closed'}"


def _partly(port: int, request: bytes, rng: random.Random, *, slow: bool) -> str:
    """Send a request in two parts, with a pause between them, or only the first one."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        at = rng.randrange(1, len(request))
        connection.sendall(request[:at])
        if not slow:
            return "cut off"
        time.sleep(0.1)
        connection.sendall(request[at:])
        return f"slow {connection.recv(12)[9:].decode()}"


def perf_restart() -> None:
    """After kill -9, until it is ready."""
    times = []
    for _ in range(5):
        with serving("compact") as server:
            times.append(server.started_s)
            server.process.kill()
            server.process.wait()
    seconds = median(times[1:])
    report("restart after kill -9 until ready", seconds, "s", "<= 3", holds=seconds <= 3)


def perf_mutated(engine: Path) -> None:
    """Damaged requests of all kinds, one after the other."""
    rng, statuses, slowest = random.Random(7), Counter[str](), 0.0
    with serving(engine) as server, closing(prove(engine, 1)) as proven:
        valid = valid_requests("m", proven.sessions[0].spec.size)

        def send(_: int) -> tuple[bytes, float]:
            begin = time.perf_counter()
            return answer_to(server.port, mutated(rng.choice(valid), rng), 60), time.perf_counter() - begin

        with ThreadPoolExecutor(64) as pool:
            for answer, seconds in pool.map(send, range(MUTATIONS)):
                assert b"Traceback" not in answer
                statuses[answer[9:12].decode() or "closed"] += 1
                slowest = max(slowest, seconds)
        with closing(Wire(server.address, proven)) as client:
            assert client.ask() == Outcome(OK)
    print(f"      {dict(sorted(statuses.items()))}")
    faults = sum(count for status, count in statuses.items() if _is_fault(status))
    report(f"{MUTATIONS} mutated requests: tracebacks and 5xx", faults, "", "0", holds=faults == 0)
    report(f"{MUTATIONS} mutated requests: slowest end", slowest, "s", "<= 35", holds=slowest <= 35)


@contextmanager
def exported(size: tuple[int, int]) -> Iterator[Path]:
    """Built-in compact as an ONNX file, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(shipped_run("compact"), Path(folder) / "compact"))
        yield export_onnx(open_source(run), ExportOptions(size=size)).path


def main() -> int:
    """Run all parts, or those that are named."""
    print(f"CPU: {processor()}; load {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores")
    parts: dict[str, Callable[[], object]] = {
        "wire": perf_wire, "saturated": perf_saturated, "overload": perf_overload, "restart": perf_restart,
    }  # fmt: skip
    with exported((32, 48)) as onnx:
        engine = build(onnx, BuildOptions("onnxruntime", {"threads": 1})).path
        parts |= {"mixed": lambda: perf_mixed(engine), "mutated": lambda: perf_mutated(engine)}
        for name in sys.argv[1:] or parts:
            parts[name]()
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
