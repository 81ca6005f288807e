"""What one worker of `depthkit predict --ray` does: the depth of blocks of pictures, written as `predict` writes it.

This module knows nothing of Ray; `cluster` makes the workers and hands them their blocks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.colours import describe_span
from ..errors import DataError, UserError, first_line
from ..files import atomic_write
from .clip import Watch, write_source
from .inputs import Input
from .outputs import OUTPUTS
from .prediction import Options, Prediction
from .predictor import Predictor
from .remote import changed, fetch, is_remote
from .shot import Shot

__all__ = ["Answer", "Engine", "Picture", "PictureWorker", "State"]

State = Literal["written", "kept", "failed", "refused"]
"""`kept`: it was written before; `failed`: the picture is bad; `refused`: this worker cannot go on."""


@dataclass(frozen=True)
class Picture:
    """A picture that is to be computed: its place, a path or an address, and what its results are called."""

    place: str
    name: str


@dataclass(frozen=True)
class Engine:
    """An engine that travels to workers which may not see this machine's files.

    Attributes:
        name: of the engine file, or of built-in weights.
        files: contents of the engine file and its manifest, by name; empty for built-in weights.
        threads: that it computes with; 0: all cores that a process may use.
        on_gpu: whether it computes on a GPU.
        identity: a hash, by which results of another engine are told apart.
    """

    name: str
    files: Mapping[str, bytes] = field(repr=False)
    threads: int
    on_gpu: bool
    identity: str

    def open(self) -> Predictor:
        """Open it on this machine. Raises EngineError, BackendError, OutputError."""
        if not self.files:
            return Predictor(self.name)
        # Sessions hold what they need in memory.
        with tempfile.TemporaryDirectory(prefix="depthkit-") as scratch:
            for name, content in self.files.items():
                with atomic_write(Path(scratch) / name) as temporary:
                    temporary.write_bytes(content)
            return Predictor(Path(scratch) / self.name)


@dataclass(frozen=True)
class Answer:
    """What became of a picture.

    Attributes:
        state: see `State`.
        text: depth from which to which colours reach, or the reason.
    """

    state: State
    text: str = ""


class PictureWorker:
    """Computes and writes blocks of pictures; a worker that cannot open the engine answers so.

    Args:
        engine: what computes.
        options: of all pictures.
        since: a file. A picture is computed again if one of its results is older than this file or than the picture;
            of a picture in a store that does not say how old it is, only this file counts.
    """

    def __init__(self, engine: Engine, options: Options, since: Path) -> None:
        self._options, self._since, self._refusal = options, since, ""
        try:
            self._started = since.stat().st_mtime_ns
            self._predictor = engine.open()
        except FileNotFoundError:
            self._refusal = f"a worker does not see {options.out}; name a folder with --out that all machines share"
        except UserError as error:
            self._refusal = str(error)
        except Exception as error:  # noqa: BLE001 - Ray would show its own traceback
            self._refusal = f"a worker cannot open {engine.name}: {_unexpected(error)}"

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """Ray Data's form of `answer`: columns "index", "place" and "name" become "index", "state" and "text"."""
        pictures = [Picture(*row) for row in zip(batch["place"], batch["name"], strict=True)]
        found = self.answer(pictures)
        answers = [found[picture] for picture in pictures]
        return {
            "index": list(batch["index"]),
            "state": [answer.state for answer in answers],
            "text": [answer.text for answer in answers],
        }

    def answer(self, pictures: Sequence[Picture]) -> dict[Picture, Answer]:
        """Compute and write pictures; what became of each."""
        if self._refusal:
            return {picture: Answer("refused", self._refusal) for picture in pictures}
        try:
            return dict(self._answers(pictures))
        except UserError as error:  # not about a picture: the disk is full, or --out cannot be written
            self._refusal = str(error)
        except Exception as error:  # noqa: BLE001 - Ray would only say that the block failed
            self._refusal = f"a worker cannot go on: {_unexpected(error)}"
        return self.answer(pictures)

    def _answers(self, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, Answer]]:
        with ExitStack() as held:
            here: dict[Picture, Path] = {}
            for picture in pictures:
                if self._is_written(picture):
                    yield picture, Answer("kept")
                    continue
                if not is_remote(picture.place):
                    here[picture] = Path(picture.place)
                    continue
                scratch = held.enter_context(tempfile.TemporaryDirectory(prefix="depthkit-"))  # names may repeat
                try:
                    here[picture] = fetch(picture.place, Path(scratch))
                except DataError as error:
                    yield picture, Answer("failed", str(error))
            yield from self._written(here)

    def _written(self, here: Mapping[Picture, Path]) -> Iterator[tuple[Picture, Answer]]:
        """Compute a block; one that holds a bad picture is computed again picture by picture."""
        done: dict[Picture, Answer] = {}
        pictures, reason = list(here), ""

        def watch(shot: Shot) -> None:
            text = describe_span(shot.span, is_metric=self._predictor.spec.is_metric)
            done[pictures[shot.result.frame.index]] = Answer("written", text)

        try:
            self._write(here, watch)
        except DataError as error:
            reason = str(error)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - of a decoder, or ours
            reason = f"{pictures[0].place}: {_unexpected(error)}"
        if reason and len(here) == 1:
            done[pictures[0]] = Answer("failed", reason)
        yield from done.items()
        for picture in pictures:
            if picture not in done:
                yield from self._written({picture: here[picture]})

    def _write(self, here: Mapping[Picture, Path], watch: Watch) -> None:
        """Write pictures as `depthkit predict` does. Raises DataError: one of them is bad."""
        if not here:
            return
        names = tuple(picture.name for picture in here)
        given = Input("the pictures", "pictures", "", tuple(here.values()), names)
        prediction = Prediction(given, self._options, self._predictor)
        if self._options.intrinsics is not None:  # of each picture; without it, `check` would only decode them twice
            prediction.check(alone=True)
        source, plan = prediction.open()
        written = write_source(source, self._predictor, plan, watch)
        if written.interrupted:
            raise KeyboardInterrupt
        if written.broken is not None:
            raise written.broken

    def _is_written(self, picture: Picture) -> bool:
        """Whether all its results are there, and newer than the start and the picture."""
        goals = [self._options.out / f"{picture.name}{OUTPUTS[name].ending}" for name in self._options.chosen]
        try:
            oldest = min(goal.stat().st_mtime_ns for goal in goals)
            return oldest >= self._started and oldest >= _changed(picture.place)
        except (OSError, DataError):  # the latter is said when the picture is read
            return False


def _changed(place: str) -> int:
    """When a picture was last written, in nanoseconds since the epoch; 0: unknown. Raises OSError, DataError."""
    return changed(place) or 0 if is_remote(place) else Path(place).stat().st_mtime_ns


def _unexpected(error: Exception) -> str:
    """An error that nobody foresaw, in one line."""
    return f"{type(error).__name__}: {first_line(error)}"
