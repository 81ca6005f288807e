"""The ONNX file of an adopted run as the source of an export. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from ..errors import BackendError, SpecError
from ..onnx_graph import count_macs, opset_of, read_onnx
from ..precisions import PRECISIONS, Precision
from ..spec import Dim, ModelSpec, camera_ready
from ..train.document import Adoption, BundleDocument, read_frames
from .camera_ends import PREFIX, add_camera_ends
from .checks import Check, Subject
from .finish import fold
from .half import find_large, to_half
from .original import Original

__all__ = ["OnnxSource", "bare_graph"]

LEAST_OPSET: Final = 13
"""QuantizeLinear has scales per channel from this opset on; older files are converted to it."""

_UNKNOWN_SHAPES: Final = frozenset({"Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "Unique"})
"""Operators whose outputs' shapes depend on values, or that hide graphs; engines cannot be built of them."""


class OnnxSource:
    """See `Source`.

    Args:
        folder: of the run.
        document: its `model.json`.
    """

    name = "the original"

    def __init__(self, folder: Path, document: BundleDocument) -> None:
        assert document.adopted is not None, "the caller makes sure"
        self.folder, self.document, self.frames = folder, document, read_frames(folder)
        self._path, self._adopted = folder / document.weights, document.adopted
        self._answered: dict[tuple[int, int], tuple[int, int]] = {}
        self._macs: dict[tuple[int, int], int] = {}

    def spec_at(self, size: tuple[int, int] | None, camera: tuple[int, int] | None = None) -> ModelSpec:
        """See `Source.spec_at`."""
        image, depth = camera_ready(*(size or self.document.model.size))
        plain = replace(self.document.model, input=image, output=depth)
        if plain.size not in self._macs:
            self._macs[plain.size] = count_macs(self._camera_graph(plain))
        return replace(plain, macs=self._macs[plain.size]).with_camera(camera)

    def graph(self, spec: ModelSpec, precision: Precision, kept: Collection[str] = ()) -> onnx.ModelProto:
        """See `Source.graph`; `kept` names nodes."""
        model = self._camera_graph(spec)
        if precision in {"fp16", "bf16"}:
            ends = [node.name for node in model.graph.node if node.name.startswith(PREFIX)]
            return to_half(model, precision, [*kept, *ends])
        return model

    def answer(self, spec: ModelSpec, images: np.ndarray) -> np.ndarray:
        """See `Source.answer`."""
        return self._original.answer(images, spec)

    def overflows(self, spec: ModelSpec, images: Sequence[np.ndarray]) -> tuple[str, ...]:
        """See `Source.overflows`; names of nodes."""
        return tuple(find_large(self._camera_graph(spec.with_batch(1)), np.stack(images), PRECISIONS["fp16"].largest))

    def check_half(self, subject: Subject) -> Check:
        """Check that no activation of the FP32 graph exceeds the precision's range on the reference's frames."""
        name, most = f"range of {subject.precision.upper()}", PRECISIONS[subject.precision].largest
        graph = self._camera_graph(subject.spec.with_batch(1))
        large = [node for node in find_large(graph, subject.reference.images, most) if node not in subject.kept]
        if large:
            some = ", ".join(large[:5]) + (f" and {len(large) - 5} more" if len(large) > 5 else "")
            detail = f"activations exceed {most:g} after {some}; `--keep auto` keeps such layers in FP32"
            return Check(name, passed=False, detail=detail)
        frames = len(subject.reference.images)
        return Check(
            name, passed=True, detail=f"all activations of the FP32 graph are below {most:g} on {frames} frames"
        )

    def _camera_graph(self, spec: ModelSpec) -> onnx.ModelProto:
        """The FP32 camera-ready graph, constants folded."""
        size = spec.network_size
        if size not in self._answered:
            self._answered[size] = self._original.answered(size)
        bare = bare_graph(self._path, self._adopted, size, spec.batch)
        model = fold(add_camera_ends(bare, self._adopted, spec, self._answered[size]))
        if shapeless := [node for node in model.graph.node if node.op_type in _UNKNOWN_SHAPES]:
            node = shapeless[0]
            raise BackendError(
                f"{self._path} has {node.op_type} ({node.name}), whose shapes depend on values, so no engine can be "
                "built of it; export the model without it"
            )
        return model

    @cached_property
    def _original(self) -> Original:
        return Original(self._path, self._adopted, self.document.model.size)


def bare_graph(path: Path, adopted: Adoption, size: tuple[int, int], batch: int | Dim) -> onnx.ModelProto:
    """The file's graph from the adopted input to the adopted output alone, with names, for one size and batch.

    Raises:
        SpecError: the file has a fixed batch of 1, but another is asked for.
        BackendError: its opset cannot be converted.
    """
    if batch != 1 and not adopted.dynamic_batch:
        raise SpecError("the ONNX file takes one frame per run; leave --batch out, or export it with a dynamic batch")
    model = onnx.utils.Extractor(read_onnx(path)).extract_model([adopted.input], [adopted.output])
    count = batch.name if isinstance(batch, Dim) else batch
    shape = (count, 3, *size) if adopted.layout == "NCHW" else (count, *size, 3)
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.append(onnx.helper.make_tensor_value_info(adopted.input, onnx.TensorProto.FLOAT, shape))
    (answer,) = model.graph.output
    answer.type.tensor_type.ClearField("shape")
    if opset_of(model) < LEAST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, LEAST_OPSET)
        except Exception as error:
            raise BackendError(
                f"opset {opset_of(model)} of {path} cannot be converted to {LEAST_OPSET} ({error}); export it anew"
            ) from error
    _name_nodes(model.graph)
    return model


def _name_nodes(graph: Any) -> None:
    """Give every node a name of its own, by which layers are kept, ranked and reported."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
