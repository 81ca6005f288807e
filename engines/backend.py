"""The interface of all backends, and how layers of an engine are matched to products of the ONNX file."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import BackendError
from ..onnx_graph import Product
from ..precisions import LEAST_SHARE, WIDENED, Precision
from .fingerprint import Fingerprint
from .manifest import Layer, Manifest, computes

__all__ = ["Availability", "Backend", "Built", "attribute", "built_from", "find_origins", "found_precision"]

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Availability:
    """What a backend can do on this machine.

    Attributes:
        version: version of the vendor library; None: the backend cannot be used.
        reason: what was found, or why the backend cannot be used.
        remedy: how to install what is missing; empty if nothing is.
        runs: whether engines can be run here, not only built; TensorRT-RTX also builds without a GPU.
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
    """Layers read back from a built engine, or from the typed network that it was built from."""

    layers: tuple[Layer, ...]
    layers_from: Literal["engine", "network"] = "engine"


class Backend(ABC, Generic[OptionsT]):
    """A vendor library that builds engines; its `Session` is in the module of the same name in `runtime/`.

    Attributes:
        name: its name for `--backend` and in manifests.
        extension: of its engine files, without a leading dot.
        options: class of the options of `build`: a frozen pydantic dataclass of `int`, `bool` and `str` fields, all
            with defaults.
        computes: whether its engines run the network; only false for the null backend.
    """

    name: str
    extension: str
    options: type[OptionsT]
    computes: bool = True

    @abstractmethod
    def availability(self) -> Availability:
        """Whether engines can be built and run on this machine, checked and not assumed; never raises."""

    @abstractmethod
    def here(self) -> Fingerprint:
        """The device of this machine that engines run on. Raises BackendError if there is none."""

    def target(self, options: OptionsT) -> Fingerprint:
        """The device that an engine with these options is built for. Raises BackendError if there is none."""
        return self.here()

    def asked(self, stored: Precision, options: OptionsT) -> Precision:
        """The precision requested of an engine, given the ONNX file's precision `stored`. Raises BackendError."""
        return stored

    @abstractmethod
    def build(self, onnx: Path, engine: Path, asked: Precision, options: OptionsT) -> Built:
        """Build `onnx` into the file `engine` and read its layers back.

        Raises:
            BackendError: the vendor reports an error; the message quotes it, including the node's name.
        """

    def found_precision(self, layers: tuple[Layer, ...], asked: Precision) -> str:
        """The precision that the engine computes in. Raises BackendError if it is not the requested one."""
        return found_precision(layers, asked)

    def accepts_version(self, built: str, here: str, options: OptionsT) -> bool:
        """Whether an engine built by version `built` runs in version `here`."""
        return built == here

    def parse_options(self, given: Mapping[str, Any]) -> OptionsT:
        """Parse options from the command line (strings) or Python. Raises BackendError, which lists all options."""
        try:
            if given and all(isinstance(value, str) for value in given.values()):
                return TypeAdapter(self.options).validate_strings(dict(given))
            return self.options(**given)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            known = ", ".join(f"{f.name}={f.default}" for f in fields(self.options))  # type: ignore[arg-type]
            raise BackendError(
                f"{self.name} does not accept these options: {faults}; its options and defaults: {known or 'none'}"
            ) from error

    def record(self, options: OptionsT) -> dict[str, str | int | bool]:
        """The options as stored in a manifest."""
        return asdict(options)  # type: ignore[call-overload,no-any-return]


_RETYPED: Final = "InsertedPrecisionFreeCast_"
"""What ONNX Runtime puts before the names of tensors that it computes in FP32 instead of FP16."""


def attribute(layers: tuple[Layer, ...], products: Sequence[Product]) -> tuple[Layer, ...]:
    """Set `macs` and `stored` of the layers that compute convolutions and matrix products of the ONNX file.

    >>> first, second = Product("conv", ("conv", "relu"), "int8", 10), Product("conv_1", ("conv_1",), "fp32", 1)
    >>> layers = Layer("relu_nchwc", "FusedConv", "int8"), Layer("conv_1/WithoutBiases", "Convolution", "fp32")
    >>> [(layer.macs, layer.stored) for layer in attribute(layers, [first, second])]
    [(10, 'int8'), (1, 'fp32')]
    >>> attribute((Layer("InsertedPrecisionFreeCast_conv_nchwc", "Conv", "fp32"),), [first, second])[0].macs
    10
    """
    return tuple(
        layer if origin is None else replace(layer, macs=origin.macs, stored=origin.precision)
        for layer, origin in zip(layers, find_origins(layers, products), strict=True)
    )


def find_origins(layers: Sequence[Layer], products: Sequence[Product]) -> list[Product | None]:
    """For each layer the product that it computes; None: it computes none, or unknown which one.

    Backends name a fused layer after the node, its output or a node that is fused with it, and add a suffix. If the
    names are not conclusive but the numbers agree, layers and products are matched in order. Products of activations
    may be missing, because attention is often fused into a layer of its own.
    """
    by_name = {alias: each for each in products for alias in each.aliases}
    found = [index for index, layer in enumerate(layers) if layer.multiplies]
    origins = [_origin(layers[index].name, by_name) for index in found]
    named = [each for each in origins if each is not None]
    weighted = [each for each in products if each.precision]
    if len(set(named)) < len(named) or (len(named) < len(found) and not set(named).issuperset(weighted)):
        in_order = next((each for each in (products, weighted) if len(each) == len(found)), None)
        origins = [None] * len(found) if in_order is None else list(in_order)
    of = dict(zip(found, origins, strict=True))
    return [of.get(index) for index in range(len(layers))]


def built_from(manifest: Manifest) -> list[Product]:
    """The products of an engine's ONNX file from its manifest, to `attribute` the layers of the opened engine."""
    return [Product(layer.name, (layer.name,), layer.stored, layer.macs) for layer in manifest.layers if layer.macs]


def _origin(name: str, by_name: Mapping[str, Product]) -> Product | None:
    """The product with the longest alias that `name` begins with as a whole word."""
    name = name.removeprefix(_RETYPED)
    aliases = [alias for alias in by_name if re.match(rf"{re.escape(alias)}(?![a-zA-Z0-9])", name)]
    return by_name[max(aliases, key=len)] if aliases else None


def found_precision(layers: tuple[Layer, ...], asked: Precision, *, widens: bool = False) -> str:
    """The precision that the layers with weights of a built engine compute in.

    Args:
        layers: read back from the engine, and attributed.
        asked: the requested precision.
        widens: whether FP16 may run as FP32, as on CPUs without FP16 arithmetic; the answer is then "fp16→fp32".

    Raises:
        BackendError: less than 95 % of the work runs in the requested precision; the message names the other layers.
            Layers that a mixed ONNX file stores in FP32 on purpose do not count.

    >>> found_precision((Layer("a", "FusedConv", "fp32"),), "fp16", widens=True)
    'fp16→fp32'
    >>> most = Layer("a", "Conv", "int8", macs=96, stored="int8")
    >>> found_precision((most, Layer("b", "Conv", "fp32", macs=4, stored="int8")), "int8")
    'int8'
    """
    products = [layer for layer in layers if layer.multiplies]
    counted = [layer for layer in products if layer.stored not in {"", "fp32"}] or products
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
        f"{asked} was requested, but only {share:.0%} of the layers with weights (by {of}) compute in it"
        + (f"; the others: {names}" if names else "")
    )
