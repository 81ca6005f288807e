"""`depthkit predict --ray`: pictures on the workers of a Ray cluster, by Ray Data. Nothing here is computed.

A block of pictures goes to a worker (`picture_worker`), and one row for each picture comes back. A worker that dies is
started again by Ray, and its block is given to it again; pictures that it had written are not computed again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ..cores import usable_cores
from ..engines.manifest import manifest_path, read_manifest
from ..errors import BackendError, UserError, first_line
from ..files import remove, sha256, sha256_text, write_text
from ..onnx_graph import describe_onnx
from ..runtime.load import is_onnx_file
from ..train.document import read_document
from ..train.shipped import SHIPPED
from .inputs import picture_names, plan_inputs
from .outputs import OUTPUTS
from .picture_worker import Answer, Engine, Picture, PictureWorker
from .prediction import Options
from .remote import find_remote, is_remote
from .scaling import find_scale, scale_path
from .targets import locate

__all__ = ["Cluster", "connected", "find_pictures", "pack_engine", "start_record"]

RECORD: Final = ".depthkit-predict.json"
"""In the folder of results: what they were computed from."""

_BLOCK: Final = 64  # most pictures that a worker is given at once
_BLOCKS: Final = 8  # for each worker, at least: so that all end at about the same time
_TRIES: Final = 2  # times that a block is given to a worker again after one died of it
_SWITCHES: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports usage home otherwise
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ part writes about restarts of workers otherwise
}


def find_pictures(places: Sequence[str], outputs: Sequence[str]) -> list[Picture]:
    """The pictures that arguments of `predict` name, and what their results are called.

    Args:
        places: pictures, folders and patterns, also on object stores.
        outputs: keys of `OUTPUTS`.

    Raises:
        DataError: something does not exist, or holds no picture.
        UserError: something is a clip, or becomes one.
    """
    here = [place for place in places if not is_remote(place)]
    found = [address for place in places if is_remote(place) for address in find_remote(place)]
    for each in plan_inputs(here, outputs) if here else ():
        if each.kind != "pictures":
            raise UserError(
                f"--ray is for pictures, and {each.place} is a clip; predict it without --ray, on one machine"
            )
        found += [str(path.absolute()) for path in each.pictures]
    found = list(dict.fromkeys(found))
    return [Picture(*each) for each in zip(found, picture_names([Path(place) for place in found]), strict=True)]


def pack_engine(target: Path) -> Engine:
    """An engine, ONNX file or built-in weights, ready to travel.

    Raises:
        UserError: it is a run, which PyTorch would compute; or it is missing or damaged.
    """
    path = locate(target)
    if path.is_dir():
        if path.resolve().parent != SHIPPED:
            raise UserError(
                f"{path} is a run, which PyTorch computes; with --ray, name an engine of it: "
                f"`depthkit export {path} -o threads=1`"
            )
        return Engine(path.name, {}, 0, False, read_document(path).weights_sha256)
    if is_onnx_file(path):
        described = describe_onnx(path)
        return _packed((path,), 0, on_gpu=False, identity=f"{described.weights_sha256} {described.recipe}")
    manifest = read_manifest(path)
    threads, on_gpu = int(manifest.options.get("threads", 0)), manifest.device.kind == "gpu"
    return _packed((path, manifest_path(path)), threads, on_gpu=on_gpu, identity=manifest.engine_sha256)


def _packed(files: tuple[Path, ...], threads: int, *, on_gpu: bool, identity: str) -> Engine:
    """An engine or ONNX file, the first of these files, and the run's metric scale if there is one."""
    contents = {path.name: path.read_bytes() for path in files}
    if find_scale(files[0]) is not None:
        scale = scale_path(files[0])
        contents[scale.name] = scale.read_bytes()
        identity += sha256(scale)
    return Engine(files[0].name, contents, threads, on_gpu, sha256_text(identity))


def start_record(engine: Engine, options: Options) -> Path:
    """The record of what results are computed from, in their folder; as it was if it says the same.

    Results that are older than the record do not count as written. Raises OutputError.
    """
    told = {key: str(value) for key, value in asdict(options).items() if key not in {"out", "read"}}
    if options.intrinsics is not None and Path(options.intrinsics).is_file():
        told["intrinsics"] = sha256(Path(options.intrinsics))
    text = json.dumps({"engine": engine.name, "identity": engine.identity, **told}, indent=2) + "\n"
    path = options.out / RECORD
    if not (path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text):
        write_text(path, text)
    return path


@dataclass(frozen=True)
class Cluster:
    """Ray, connected.

    Attributes:
        machines: cores and GPUs of each machine that computes.
    """

    machines: tuple[tuple[int, int], ...]

    def workers(self, engine: Engine) -> tuple[int, int]:
        """How many workers the cluster has room for, and the cores of each.

        On a CPU a worker has as many cores as the engine has threads; with all cores, those of the smallest machine.
        With a GPU it has one core.

        Raises:
            BackendError: there is no room for one.
        """
        if engine.on_gpu:
            count, cores = sum(gpus for _, gpus in self.machines), 1
            lack = "a GPU"
        else:
            cores = engine.threads or min((cores for cores, _ in self.machines), default=1)
            count = sum(have // cores for have, _ in self.machines)
            lack = f"{cores} cores, one for each thread of {engine.name}"
        if not count:
            raise BackendError(f"no machine of the Ray cluster has {lack}; choose another engine, or add a machine")
        return count, cores

    def predict(
        self, pictures: Sequence[Picture], engine: Engine, options: Options, record: Path
    ) -> Iterator[tuple[Picture, Answer]]:
        """Compute and write all pictures; one answer for each, as they are done.

        Raises:
            UserError: a worker cannot open the engine, or cannot write; or Ray cannot start the workers.
        """
        from ray.exceptions import RayError

        left = dict(enumerate(pictures))
        count, _ = self.workers(engine)
        # What is missing after the first round was in a block that killed its workers: its pictures go alone then.
        try:
            for size in (max(1, min(_BLOCK, len(pictures) // (count * _BLOCKS))), 1):
                for row in self._rows(left, size, engine, options, record) if left else ():
                    if row["state"] == "refused":
                        raise BackendError(str(row["text"]))
                    yield left.pop(row["index"]), Answer(row["state"], str(row["text"]))
        except RayError as error:  # its text is a traceback, which ends with the reason
            raise BackendError(
                f"Ray's workers ended ({str(error).strip().splitlines()[-1]}); check that every machine has the same "
                "versions of depthkit, Ray and Python"
            ) from error
        for picture in left.values():
            yield picture, Answer("failed", f"{picture.place}: every worker died of it, perhaps out of memory")
        _remove_unfinished(options, {picture.name for picture in pictures})

    def _rows(
        self, pictures: Mapping[int, Picture], size: int, engine: Engine, options: Options, record: Path
    ) -> Iterable[dict[str, Any]]:
        import ray.data

        count, cores = self.workers(engine)
        rows = [{"index": index, "place": each.place, "name": each.name} for index, each in pictures.items()]
        parts = -(-len(rows) // size)
        blocks = ray.data.from_items(rows, override_num_blocks=parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray has no other way yet to say how often a block is tried again
            answers = blocks.map_batches(
                PictureWorker,
                fn_constructor_args=(engine, options, record),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=min(count, parts)),
                num_cpus=cores,
                num_gpus=1 if engine.on_gpu else 0,
                max_task_retries=_TRIES,
            )
        found: Iterable[dict[str, Any]] = answers.iter_rows()
        return found


def _remove_unfinished(options: Options, names: set[str]) -> None:
    """Remove what `atomic_write` had begun in workers that were killed: no worker of ours writes now."""
    ends = tuple(OUTPUTS[output].ending for output in options.chosen)
    for path in options.out.glob(".tmp-*"):
        name = path.name.split("-", 2)[-1]
        if any(name.removesuffix(end) in names for end in ends if name.endswith(end)):
            remove(path)


@contextmanager
def connected(address: str | None, timeout: float) -> Iterator[Cluster]:
    """Ray, until the end of the block.

    Args:
        address: HOST:PORT of a cluster that this machine belongs to; "auto" to find it; "local" for a Ray of this
            machine alone, which ends with the block. None: `$RAY_ADDRESS`, or "local".
        timeout: seconds to wait for an address to answer.

    Raises:
        BackendError: there is no cluster at that address, or Ray does not start.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if ":" in address:
        _require_listening(address, timeout)
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a block that kills its workers does not end the others
    alone: dict[str, Any] = {"num_cpus": usable_cores(), "include_dashboard": False} if address == "local" else {}
    # A token of this run's own: without it, Ray writes one into the user's home.
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if alone else {}
    try:
        with _environment(_SWITCHES | token), _quiet():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **alone)
    except Exception as error:  # Ray raises errors of no common type, and plain ones
        if alone:
            raise BackendError(
                f"Ray did not start on this machine ({first_line(error)}); try again when it is less busy, or predict "
                "without --ray"
            ) from error
        raise BackendError(
            f"no Ray cluster takes us at {address} ({first_line(error)}); start one with `ray start --head`, set "
            "RAY_AUTH_MODE=token if it has a token, or leave the address out for this machine alone"
        ) from error
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(tuple((int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in alive if each.get("CPU")))
    finally:
        ray.shutdown()
        logger.setLevel(level)


def _require_listening(address: str, timeout: float) -> None:
    """Raise BackendError unless something listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout).close()
    except (OSError, ValueError) as error:
        raise BackendError(
            f"nothing answers at {address} ({error}); check the address and port of --ray, or leave it out for this "
            "machine alone"
        ) from error


@contextmanager
def _environment(switches: Mapping[str, str]) -> Iterator[None]:
    """With these variables, unless the user has set one of them; afterwards all are as before."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in switches.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what native code writes to standard error: Ray names its switches there as it starts."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
