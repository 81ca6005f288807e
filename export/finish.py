"""The last steps of every exported graph: fold constants, and write depthkit's metadata. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx
from onnx_graphsurgeon.logger import G_LOGGER as SURGEON_LOGGER
from polygraphy.backend.onnx import fold_constants
from polygraphy.logger import G_LOGGER

from ..documents import to_json
from ..onnx_graph import METADATA, graph_sha256
from ..precisions import Precision
from ..spec import ModelSpec
from ..vendors import import_onnxruntime

__all__ = ["Origin", "fold", "sign"]

_ORT_ERRORS: Final = 3


@dataclass(frozen=True)
class Origin:
    """Origin of a graph: hash of the run's weights, and `export.recipe`."""

    weights_sha256: str
    recipe: str


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with its constants folded by Polygraphy."""
    SURGEON_LOGGER.severity = SURGEON_LOGGER.CRITICAL  # it warns that NumPy has no BF16
    import_onnxruntime().set_default_logger_severity(_ORT_ERRORS)  # Polygraphy's sessions warn of what they leave
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        folded: onnx.ModelProto = fold_constants(model, error_ok=False)
    return folded


def sign(model: onnx.ModelProto, spec: ModelSpec, precision: Precision, origin: Origin) -> onnx.ModelProto:
    """Write depthkit's metadata into a graph, and return the same graph."""
    entries = {
        METADATA.spec: to_json(spec),
        METADATA.precision: precision,
        METADATA.weights_sha256: origin.weights_sha256,
        METADATA.recipe: origin.recipe,
        METADATA.graph_sha256: graph_sha256(model),
    }
    onnx.helper.set_model_props(model, entries)
    model.producer_name = "depthkit"
    return model
