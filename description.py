"""What an ONNX file that depthkit exported says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .errors import EngineError
from .spec import METADATA, ModelSpec, from_json, graph_sha256
from .tolerances import TOLERANCES, Precision

__all__ = ["OnnxDescription", "describe_onnx"]


@dataclass(frozen=True)
class OnnxDescription:
    """What an ONNX file of ours says of itself.

    Attributes:
        model: its tensors, preprocessing, depth range.
        precision: what its network is stored in.
        weights_sha256: of the run's weights.
        recipe: whatever else it was made from; see `export.recipe`.
        intact: its nodes and weights are those that were exported.
    """

    model: ModelSpec
    precision: Precision
    weights_sha256: str
    recipe: str
    intact: bool


def describe_onnx(path: Path) -> OnnxDescription:
    """Read our metadata from an ONNX file. Raises EngineError when it is missing or none of ours; SpecError."""
    if not path.is_file():
        raise EngineError(f"there is no ONNX file {path}; make one with `depthkit export`")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise EngineError(f"{path} is no ONNX file ({error}); make it again with `depthkit export`") from error
    entries = {entry.key: entry.value for entry in model.metadata_props}
    keys = (METADATA.spec, METADATA.precision, METADATA.weights_sha256, METADATA.recipe, METADATA.graph_sha256)
    missing = [key for key in keys if key not in entries]
    if missing:
        raise EngineError(f"{path} was not made by `depthkit export`: its metadata lack {', '.join(missing)}")
    if entries[METADATA.precision] not in TOLERANCES:
        raise EngineError(f"{path} has precision {entries[METADATA.precision]!r}, which this depthkit does not know")
    return OnnxDescription(
        from_json(ModelSpec, entries[METADATA.spec], source=f"{path}: {METADATA.spec}"),
        cast("Precision", entries[METADATA.precision]),
        entries[METADATA.weights_sha256],
        entries[METADATA.recipe],
        intact=entries[METADATA.graph_sha256] == graph_sha256(model),
    )
