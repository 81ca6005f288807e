"""The manifest `<engine>.json`: what an engine file is, and where it may be opened.

It is a file beside the engine, so that the engine stays an unmodified vendor file.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..documents import STRICT, from_json, is_version, to_json
from ..errors import EngineError
from ..files import sha256, sha256_text, write_text
from ..precisions import Precision
from ..spec import ModelSpec
from .fingerprint import Arithmetic, Fingerprint

__all__ = ["Layer", "Manifest", "computes", "manifest_path", "read_manifest", "verify_file", "write_manifest"]

_PRODUCT: Final = re.compile("conv|correlation|matmul|matrix_?multiply|gemm|fullyconnected")
"""What the vendors call convolutions and matrix products, in lower case."""

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=STRICT)
class Layer:
    """One layer of a built engine.

    Attributes:
        name, operator: the vendor's.
        precision: the type that it computes in: "fp32", "fp16", "bf16", "int8", …; or "unknown".
        tactic: the vendor's kernel; empty if unknown.
        macs, stored: if it computes a convolution or matrix product of the ONNX file: its multiply-accumulates for one
            frame, and the type of its weights in the file; no type if it multiplies activations, as attention does.
    """

    name: str
    operator: str
    precision: str
    tactic: str = ""
    macs: int = 0
    stored: str = ""

    @property
    def multiplies(self) -> bool:
        """Whether the operator is a convolution or a matrix product.

        >>> [Layer("", each, "").multiplies for each in ("FusedConv", "FullyConnected", "MATRIX_MULTIPLY", "Softmax")]
        [True, True, True, False]
        """
        return _PRODUCT.search(self.operator.lower()) is not None


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """The description of an engine.

    Attributes:
        model: the ModelSpec of the ONNX file.
        backend, backend_version: the library that built it.
        device: the device that it was built for.
        precision_asked: requested precision: the ONNX file's, unless an option requested another.
        precision_found: read back from the built engine: as requested, or "fp16→fp32" if the ONNX file stores FP16 and
            the engine computes it in FP32, as on CPUs without FP16 arithmetic.
        layers, layers_from: read back from the built engine. For TensorRT they come from the strongly typed network if
            the engine cannot be read without a GPU, or does not report the type of a fused layer.
        engine_sha256, onnx_sha256, weights_sha256: hashes of the engine, of the ONNX file, of the bundle's weights.
        onnx, reference: names of the ONNX file and of the reference beside the engine.
        options: the backend's options.
        arithmetic: for an INT8 engine on a CPU, the INT8 arithmetic that it was built for; otherwise None.
        build_seconds: time of the build.
        created: UTC, ISO 8601.
        seal: SHA-256 of all other fields, which detects edits.
    """

    model: ModelSpec
    backend: str
    backend_version: str
    device: Fingerprint
    precision_asked: Precision
    precision_found: str
    layers: tuple[Layer, ...]
    layers_from: Literal["engine", "network"]
    engine_sha256: _Sha256
    onnx_sha256: _Sha256
    weights_sha256: _Sha256
    onnx: str
    reference: str
    options: dict[str, str | int | bool]
    build_seconds: float
    created: str
    arithmetic: Arithmetic | None = None
    seal: str = ""
    schema_version: Literal[7] = 7

    @staticmethod
    def upgrade(raw: dict[str, Any]) -> None:
        """Versions 4 to 6 had a ModelSpec of version 1 to 3; see `ModelSpec.upgrade`."""
        ModelSpec.upgrade(raw.get("model"))
        if any(is_version(raw, version) for version in (4, 5, 6)):
            raw["schema_version"] = 7

    @property
    def share(self) -> float | None:
        """Fraction of the work of layers with weights that runs in the requested precision; None if unknown.

        Layers that were kept in FP32 on purpose count as not running in it.
        """
        weighted = [layer for layer in self.layers if layer.stored]
        work = sum(layer.macs for layer in weighted)
        done = sum(layer.macs for layer in weighted if computes(layer, self.precision_asked))
        return done / work if work else None

    def sealed(self) -> Manifest:
        """The same manifest with the seal that belongs to it."""
        blank = replace(self, seal="")
        return replace(blank, seal=sha256_text(to_json(blank)))


def computes(layer: Layer, precision: Precision) -> bool:
    """Whether a layer computes in a precision; UINT8, which CPUs use for activations, counts as INT8."""
    return layer.precision == precision or (precision, layer.precision) == ("int8", "uint8")


def manifest_path(engine: Path) -> Path:
    """The path `<engine>.json`."""
    return engine.with_name(engine.name + ".json")


def write_manifest(engine: Path, manifest: Manifest) -> None:
    """Write the manifest of `engine`. Raises OutputError."""
    write_text(manifest_path(engine), to_json(manifest.sealed()))


def read_manifest(engine: Path) -> Manifest:
    """Read the manifest of `engine`; one of an older schema version is sealed anew.

    Raises:
        EngineError: the engine or its manifest is missing, or the manifest is unreadable or edited.
        SpecError: another schema version, or keys that are unknown or missing.
    """
    if not engine.is_file():
        raise EngineError(f"there is no engine {engine}; build one with `depthkit export`")
    path = manifest_path(engine)
    if not path.is_file():
        raise EngineError(f"{engine} has no manifest {path.name} beside it; copy both, or run `depthkit export` again")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} cannot be read ({error}); run `depthkit export` again") from error
    manifest = from_json(Manifest, text, source=str(path))
    if manifest != manifest.sealed() and not _is_sealed_as_written(json.loads(text)):
        raise EngineError(f"{path} was edited; restore it, or run `depthkit export` again")
    return manifest.sealed()


def _is_sealed_as_written(raw: dict[str, Any]) -> bool:
    """Whether the seal is that of the file itself, which may have an older schema version."""
    return bool(raw["seal"] == sha256_text(to_json({**raw, "seal": ""})))


def verify_file(engine: Path, manifest: Manifest, rebuild: str) -> None:
    """Raise EngineError, with the command to `rebuild` it, unless the file is the one that the manifest describes."""
    if sha256(engine) != manifest.engine_sha256:
        raise EngineError(
            f"{engine} is not the file that its manifest describes (SHA-256 differs); "
            f"restore it or rebuild it with `{rebuild}`"
        )
