"""What every backend offers, so that who knows one knows them all, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import BackendError
from ..tolerances import Precision
from .fingerprint import Fingerprint
from .manifest import Layer

__all__ = ["Availability", "Backend", "Built", "found_precision"]

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Availability:
    """What a backend can do on this machine.

    Attributes:
        version: the vendor library's; None: it cannot be used.
        reason: what is there, or why not.
        remedy: how to get what is missing; empty where nothing is.
        runs: whether engines also run here; TensorRT-RTX builds them on machines without a GPU, too.
    """

    version: str | None
    reason: str
    remedy: str = ""
    runs: bool = True

    @property
    def usable(self) -> bool:
        """Whether engines can be built."""
        return self.version is not None

    @property
    def runnable(self) -> bool:
        """Whether engines can be run."""
        return self.usable and self.runs


@dataclass(frozen=True)
class Built:
    """What a backend read back: from the engine itself, or from the typed network that it was built from."""

    layers: tuple[Layer, ...]
    layers_from: Literal["engine", "network"] = "engine"


class Backend(ABC, Generic[OptionsT]):
    """A vendor library that builds engines; its `Session` is in the module of the same name in `runtime/`.

    Attributes:
        name: as it is written after `--backend`, and in manifests.
        extension: of its engine files, without a leading dot.
        options: a frozen pydantic dataclass of `int`, `bool` and `str` fields, all with a default: what `build` takes.
    """

    name: str
    extension: str
    options: type[OptionsT]

    @abstractmethod
    def availability(self) -> Availability:
        """What this machine can do; never raises, and says only what is really so."""

    @abstractmethod
    def here(self) -> Fingerprint:
        """The device of this machine that its engines run on. Raises BackendError where there is none."""

    def target(self, options: OptionsT) -> Fingerprint:
        """The device that an engine with these options is built for. Raises BackendError."""
        return self.here()

    def asked(self, stored: Precision, options: OptionsT) -> Precision:
        """The precision that is asked of the engine of an ONNX file that stores `stored`."""
        return stored

    @abstractmethod
    def build(self, onnx: Path, engine: Path, asked: Precision, options: OptionsT) -> Built:
        """Build `onnx` into the file `engine` and read its layers back.

        Raises:
            BackendError: the vendor refuses; the message has the vendor's words, which name the node.
        """

    def found_precision(self, layers: tuple[Layer, ...], asked: Precision) -> str:
        """What the engine computes in. Raises BackendError when that is not what was asked for."""
        return found_precision(layers, asked)

    def accepts_version(self, built: str, here: str, options: OptionsT) -> bool:
        """Whether an engine that version `built` made runs in version `here`."""
        return built == here

    def parse_options(self, given: Mapping[str, Any]) -> OptionsT:
        """Options from the command line (strings) or from Python. Raises BackendError, naming what there is."""
        try:
            if given and all(isinstance(value, str) for value in given.values()):
                return TypeAdapter(self.options).validate_strings(dict(given))
            return self.options(**given)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            known = ", ".join(f"{f.name}={f.default}" for f in fields(self.options))  # type: ignore[arg-type]
            raise BackendError(
                f"{self.name} does not take these options: {faults}; it has, with their defaults, {known or 'none'}"
            ) from error

    def record(self, options: OptionsT) -> dict[str, str | int | bool]:
        """Options as a manifest keeps them."""
        return asdict(options)  # type: ignore[call-overload,no-any-return]


def found_precision(layers: tuple[Layer, ...], asked: Precision, *, widens: bool = False) -> str:
    """What the convolutions of a built engine compute in.

    Args:
        layers: read back from the engine.
        asked: what was asked for.
        widens: whether FP16 may have become FP32, as on CPUs without FP16 arithmetic; then it is called "fp16→fp32".

    Raises:
        BackendError: the convolutions are of several types, or of one that was not asked for.

    >>> found_precision((Layer("a", "FusedConv", "fp32"),), "fp16", widens=True)
    'fp16→fp32'
    """
    found = {layer.precision for layer in layers if "conv" in layer.operator.lower()}
    if found == {asked}:
        return asked
    if widens and asked == "fp16" and found == {"fp32"}:
        return "fp16→fp32"
    raise BackendError(f"{asked} was asked for, and the engine's convolutions compute in {sorted(found) or 'nothing'}")
