"""What every backend offers, so that who knows one knows them all, and what they share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import BackendError
from ..onnx_graph import Convolution
from ..precisions import LEAST_SHARE, WIDENED, Precision
from .fingerprint import Fingerprint
from .manifest import Layer, Manifest, computes

__all__ = ["Availability", "Backend", "Built", "attribute", "built_from", "find_origins", "found_precision"]

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
        computes: whether its engines answer depth; only the null backend's do not.
    """

    name: str
    extension: str
    options: type[OptionsT]
    computes: bool = True

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


def attribute(layers: tuple[Layer, ...], convolutions: Sequence[Convolution]) -> tuple[Layer, ...]:
    """The layers, of which the convolutions know their work and what the ONNX file stores them in.

    >>> first, second = Convolution("conv", ("conv", "relu"), "int8", 10), Convolution("conv_1", ("conv_1",), "fp32", 1)
    >>> layers = Layer("relu_nchwc", "FusedConv", "int8"), Layer("conv_1/WithoutBiases", "Convolution", "fp32")
    >>> [(layer.macs, layer.stored) for layer in attribute(layers, [first, second])]
    [(10, 'int8'), (1, 'fp32')]
    """
    return tuple(
        layer if origin is None else replace(layer, macs=origin.macs, stored=origin.precision)
        for layer, origin in zip(layers, find_origins(layers, convolutions), strict=True)
    )


def find_origins(layers: Sequence[Layer], convolutions: Sequence[Convolution]) -> list[Convolution | None]:
    """For each layer the convolution that it computes; None: it is no convolution, or its own cannot be told.

    Backends name a fused layer after the node, its output or what is fused with it, and add something of their own.
    Where names do not tell, and there are as many, their order does.
    """
    by_name = {alias: each for each in convolutions for alias in each.aliases}
    found = [index for index, layer in enumerate(layers) if layer.convolves]
    origins = [_origin(layers[index].name, by_name) for index in found]
    if None in origins or len(set(origins)) != len(origins):
        origins = list(convolutions) if len(found) == len(convolutions) else [None] * len(found)
    of = dict(zip(found, origins, strict=True))
    return [of.get(index) for index in range(len(layers))]


def built_from(manifest: Manifest) -> list[Convolution]:
    """The convolutions of an engine's ONNX file as its manifest knows them, to attribute what is opened."""
    return [Convolution(layer.name, (layer.name,), layer.stored, layer.macs) for layer in manifest.layers if layer.macs]


def _origin(name: str, by_name: Mapping[str, Convolution]) -> Convolution | None:
    """The convolution whose longest alias begins `name` as a word of its own."""
    aliases = [alias for alias in by_name if re.match(rf"{re.escape(alias)}(?![a-zA-Z0-9])", name)]
    return by_name[max(aliases, key=len)] if aliases else None


def found_precision(layers: tuple[Layer, ...], asked: Precision, *, widens: bool = False) -> str:
    """What the convolutions of a built engine compute in.

    Args:
        layers: read back from the engine, and attributed.
        asked: what was asked for.
        widens: whether FP16 may have become FP32, as on CPUs without FP16 arithmetic; then it is called "fp16→fp32".

    Raises:
        BackendError: less than 95 % of the work runs in what was asked for; it names what fell back. Convolutions that
            the ONNX file stores in FP32 among others were kept so on purpose, and are not counted.

    >>> found_precision((Layer("a", "FusedConv", "fp32"),), "fp16", widens=True)
    'fp16→fp32'
    >>> most = Layer("a", "Conv", "int8", macs=96, stored="int8")
    >>> found_precision((most, Layer("b", "Conv", "fp32", macs=4, stored="int8")), "int8")
    'int8'
    """
    convolutions = [layer for layer in layers if layer.convolves]
    counted = [layer for layer in convolutions if layer.stored not in {"", "fp32"}] or convolutions
    fallen = [layer for layer in counted if not computes(layer, asked)]
    known = all(layer.macs for layer in counted)
    work = sum(layer.macs if known else 1 for layer in counted)
    share = 1 - sum(layer.macs if known else 1 for layer in fallen) / work if work else 0.0
    if share >= LEAST_SHARE:
        return asked
    if widens and asked == "fp16" and all(layer.precision == "fp32" for layer in counted) and counted:
        return WIDENED
    of = "work" if known else "number"
    names = ", ".join(f"{layer.name} ({layer.precision})" for layer in fallen)
    raise BackendError(
        f"{asked} was asked for, and {share:.0%} of the convolutions, by their {of}, compute in it"
        + (f"; these do not: {names}" if names else "")
    )
