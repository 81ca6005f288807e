"""The models of a server: their names and versions, and how a changed engine replaces an old one."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException

from ..engines.manifest import manifest_path
from ..errors import UserError
from ..pipeline.scaling import scale_path
from .model import REASONS, Model

if TYPE_CHECKING:
    from ..pipeline.proven import Proven
    from ..pipeline.tell import Tell

__all__ = ["Entry", "Repository", "entries_of"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LOOK_S: Final = 1.0  # between two looks at the files

Signature = tuple[tuple[str, int, int, int], ...]
"""Of the files of an engine: it changes when one of them does."""


@dataclass(frozen=True)
class Entry:
    """What is served.

    Attributes:
        name, version: by which clients ask for it.
        target: an engine, an ONNX file, a run or the name of shipped weights.
    """

    name: str
    version: str
    target: Path


def entries_of(words: Sequence[str]) -> list[Entry]:
    """The entries of `ENGINE` or `NAME=ENGINE`. Engines of one name are its versions 1, 2, … in their order.

    Without a name, it is what stands before the first dot of the engine's file name. Raises UserError: that is no name.

    >>> for entry in entries_of(["nano", "runs/a/a-96x128.fp32.ov.blob", "nano=new.ort.onnx"]):
    ...     print(entry.name, entry.version, entry.target)
    nano 1 nano
    a-96x128 1 runs/a/a-96x128.fp32.ov.blob
    nano 2 new.ort.onnx
    """
    entries: list[Entry] = []
    for word in words:
        before, equals, after = word.partition("=")
        given = bool(equals) and "/" not in before
        target = Path(after if given else word).expanduser()
        name = before if given else target.resolve().name.partition(".")[0]
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot be the name of a model, which has letters, digits and . _ - only; write NAME={target}"
            )
        version = 1 + sum(entry.name == name for entry in entries)
        entries.append(Entry(name, str(version), target))
    return entries


class Repository:
    """The models that are served. After `load`, its methods belong to the event loop.

    Args:
        entries: at least one.
        open_engine: opens an engine and proves it; called in threads. Raises DepthkitError.
        queue: see `Model`.
        tell: is told of each model that is ready, and of each that was not replaced.

    Attributes:
        reloads: how often each name and version was replaced (True), and how often it was not (False).
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        open_engine: Callable[[Path], Proven],
        queue: int,
        tell: Tell,
    ) -> None:
        self._entries = entries
        self._open_engine, self._queue, self._tell = open_engine, queue, tell
        self._models: dict[tuple[str, str], Model] = {}
        self._signatures: dict[Entry, Signature] = {}
        self._reloading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._drops = {(entry.name, entry.version): Counter(dict.fromkeys(REASONS, 0)) for entry in entries}
        self.reloads: Counter[tuple[str, str, bool]] = Counter()

    def load(self) -> None:
        """Open all engines, before anything is served. Raises GateError, UserError; then none is left open."""
        try:
            for entry in self._entries:
                self._signatures[entry] = signature(entry.target)
                self._models[entry.name, entry.version] = self._opened(entry)
        except BaseException:
            for model in self._models.values():
                model.proven.close()
            raise

    def models(self) -> Iterable[Model]:
        """All of them, in the order in which they were named."""
        return self._models.values()

    def versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first. Raises HTTPException: 404."""
        found = [model.version for model in self._models.values() if model.name == name]
        if not found:
            names = ", ".join(dict.fromkeys(model.name for model in self._models.values()))
            raise HTTPException(404, f"there is no model {name[:80]!r}; choose one of {names}")
        return found

    def find(self, name: str, version: str | None = None) -> Model:
        """A model; without a version its last one. Raises HTTPException: 404."""
        versions = self.versions(name)
        if version is not None and version not in versions:
            raise HTTPException(404, f"model {name!r} has no version {version[:80]!r}; choose {', '.join(versions)}")
        return self._models[name, version or versions[-1]]

    async def reload(self, *, changed: bool) -> None:
        """Open engines again, and replace those that pass their gate; for all others, the old one goes on.

        Args:
            changed: only those whose files have changed since, or whose engine has failed.
        """
        async with self._reloading:
            for entry in self._entries:
                now = await asyncio.to_thread(signature, entry.target)
                old = self._models[entry.name, entry.version]
                if changed and not old.fault and (now == self._signatures[entry] or not now):
                    continue
                self._signatures[entry] = now
                await self._replace(entry, old)

    async def watch(self) -> None:
        """Reload what has changed, until cancelled. Files that still change are left for the next look."""
        seen: dict[Entry, Signature] = dict(self._signatures)
        while True:
            await asyncio.sleep(_LOOK_S)
            found = {entry: await asyncio.to_thread(signature, entry.target) for entry in self._entries}
            if found == seen:
                await self.reload(changed=True)
            seen = found

    async def close(self) -> None:
        """Answer what was accepted, then free all sessions."""
        async with self._reloading:
            await asyncio.gather(*self._closing, *map(self._close, self._models.values()))

    async def _replace(self, entry: Entry, old: Model) -> None:
        try:
            new = await asyncio.to_thread(self._opened, entry)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old one goes on
            self._tell("FAIL", f"{entry.name} {entry.version} was not replaced: {error}")
            self.reloads[entry.name, entry.version, False] += 1
            return
        self._models[entry.name, entry.version] = new
        self.reloads[entry.name, entry.version, True] += 1
        closing = asyncio.create_task(self._close(old))  # its last run may take long, and other engines may change
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, model: Model) -> None:
        try:
            await model.close()
        except Exception as error:  # noqa: BLE001 - nothing is asked of it any more
            self._tell("FAIL", f"{model.name} {model.version} was not closed: {error}")

    def _opened(self, entry: Entry) -> Model:
        proven, key = self._open_engine(entry.target), (entry.name, entry.version)
        model = Model(*key, proven, self._queue, self._tell, self._drops[key])
        self._tell("pass", f"{entry.name} {entry.version}: {describe(proven)}")
        return model


def signature(target: Path) -> Signature:
    """Of an engine, its manifest and its metric scale, or of all files of a folder; empty if they are not there."""
    found = []
    with suppress(OSError, UserError):
        if target.is_dir():
            files = sorted(target.iterdir())
        else:  # an ONNX file has no manifest, and few engines have a scale
            files = [target, *filter(Path.exists, (manifest_path(target), scale_path(target)))]
        for path in files:
            status = path.stat()
            found.append((path.name, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def describe(proven: Proven) -> str:
    """An engine and its gate in one line."""
    from ..parity import describe_parity

    session = proven.sessions[0]
    size = session.spec.describe_sizes()
    parity = f"{describe_parity(proven.parity, proven.asked)} on {proven.parity.frames} frames"
    return f"{session.spec.network} {size}, {session.precision} by {session.provider}; {parity}"
