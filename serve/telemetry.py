"""What a server tells those who run it: metrics for Prometheus, and a log line for every request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .bodies import Memory
    from .repository import Repository

__all__ = ["Access", "Log", "Metrics", "Record", "record_of"]

Log = Callable[[dict[str, Any]], None]
"""Writes an event as one line."""

_RECORD: Final = "depthkit.record"
_GONE: Final = 499  # nginx's code for a client that left before it was answered; nobody receives it
_SECONDS: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10,
)  # fmt: skip
_MODEL: Final = ("model", "version")


@dataclass
class Record:
    """What is known about a request, filled in while it is answered.

    Attributes:
        api: what was asked for, for instance "infer".
        model, version: who computes.
        spent: seconds of the phases "queue", "decode", "run" and "encode", as far as there were any.
        received: bytes of the body.
        left: whether the client has gone before its answer was sent.
        on_leave: called when it goes; None: nothing needs to be stopped.
    """

    api: str = "other"
    model: str = ""
    version: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    received: int = 0
    left: bool = False
    on_leave: Callable[[], object] | None = None

    def leave(self) -> None:
        """The client has gone."""
        self.left = True
        if self.on_leave is not None:
            self.on_leave()


def record_of(scope: Scope) -> Record:
    """The record of a request; a new one that nobody reads, if it has not come to `Access` yet."""
    found: Record = scope.get(_RECORD) or Record()
    return found


class Metrics:
    """All metrics. Names and labels follow Prometheus' conventions; times are in seconds.

    Args:
        repository: whose models are looked at whenever somebody asks.
        memory: likewise.
    """

    def __init__(self, repository: Repository, memory: Memory) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "depthkit_requests", "Requests that were answered.", (*_MODEL, "api", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "depthkit_request_seconds",
            "From the head of a request to the end of its answer.",
            (*_MODEL, "api"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._phases = Histogram(
            "depthkit_phase_seconds",
            "Of answered requests: waiting for a session, decoding, computing, encoding.",
            (*_MODEL, "phase"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        held = Gauge("depthkit_held_bytes", "Of bodies, pictures and answers.", registry=self._registry)
        held.set_function(lambda: memory.held)
        self._registry.register(_Models(repository))
        ProcessCollector(registry=self._registry)

    def count(self, record: Record, code: int, seconds: float) -> None:
        """A request was answered."""
        labels = (record.model, record.version)
        self._requests.labels(*labels, record.api, code).inc()
        self._seconds.labels(*labels, record.api).observe(seconds)
        for phase, spent in record.spent.items():
            self._phases.labels(*labels, phase).observe(spent)

    def response(self) -> Response:
        """All of them, as Prometheus reads them."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class _Models(Collector):
    """What the models themselves know."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        """Read them now."""
        gauges = {
            name: GaugeMetricFamily(f"depthkit_{name}", about, labels=labels)
            for name, about, labels in (
                ("queue_length", "Accepted requests that no session computes yet.", _MODEL),
                ("sessions", "Open sessions.", _MODEL),
                ("sessions_running", "Sessions that compute.", _MODEL),
                ("ready", "1 if the model answers, 0 if its engine has failed.", _MODEL),
                ("gate", "Figures of the gate that the engine passed when it was opened.", (*_MODEL, "figure")),
                ("model_info", "1; the labels describe the engine.", (*_MODEL, "provider", "precision", "sha256")),
            )
        }
        dropped = CounterMetricFamily("depthkit_dropped", "Refused with 503.", labels=(*_MODEL, "reason"))
        reloads = CounterMetricFamily("depthkit_reloads", "Engines that were opened anew.", labels=(*_MODEL, "result"))
        for model in self._repository.models():
            labels, proven = [model.name, model.version], model.proven
            session = proven.sessions[0]
            gauges["queue_length"].add_metric(labels, max(0, model.accepted - model.running))
            gauges["sessions"].add_metric(labels, len(proven.sessions))
            gauges["sessions_running"].add_metric(labels, model.running)
            gauges["ready"].add_metric(labels, float(not model.fault))
            for figure, value in asdict(proven.parity).items():
                if isinstance(value, int | float):
                    gauges["gate"].add_metric([*labels, figure], float(value))
            digest = proven.hashes.get("engine", proven.hashes["onnx"])
            gauges["model_info"].add_metric([*labels, session.provider, session.precision, digest], 1)
            for reason, count in model.drops.items():
                dropped.add_metric([*labels, reason], count)
        for (name, version, replaced), count in self._repository.reloads.items():
            reloads.add_metric([name, version, "replaced" if replaced else "refused"], count)
        yield from (*gauges.values(), dropped, reloads)


class Access:
    """ASGI middleware that counts and logs every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: Log) -> None:
        self._app, self._metrics, self._log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = perf_counter()
        record = scope[_RECORD] = Record()
        code, sent = _GONE, 0

        async def counted(message: Message) -> None:
            nonlocal code, sent
            if message["type"] == "http.response.start":
                code = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except ClientDisconnect:
            pass  # there is nobody to answer
        except Exception:
            code = 500  # which is sent by whoever catches it
            raise
        finally:
            seconds = perf_counter() - begin
            code = _GONE if record.left else code
            self._metrics.count(record, code, seconds)
            self._log(_line(scope, record, code, sent, seconds))


def _line(scope: Scope, record: Record, code: int, sent: int, seconds: float) -> dict[str, Any]:
    client = scope.get("client")
    line: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "client": client[0] if client else "",
        "method": scope["method"],
        "path": scope["path"],
        "status": code,
        "ms": round(seconds * 1000, 3),
        "received": record.received,
        "sent": sent,
    }
    if record.model:
        line |= {"model": record.model, "version": record.version}
        line |= {f"{phase}_ms": round(spent * 1000, 3) for phase, spent in record.spent.items()}
    return line
