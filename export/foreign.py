"""Read a foreign ONNX file, and find out how it takes pictures and what it answers. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx

from ..errors import EngineError, UserError, first_line
from ..onnx_graph import METADATA, opset_of, read_onnx
from ..sizes import by
from .original import as_depth, open_session

__all__ = ["Foreign", "Tensor", "choose_input", "choose_output", "read_foreign"]

OLDEST_OPSET: Final = 11
MOST_BYTES: Final = 2**31 - 1
"""Protobuf's limit for a file with its weights."""

_STANDARD: Final = frozenset({"", "ai.onnx"})
_LEAST_SIDE: Final = 8
"""Smaller outputs are no depth maps."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, ONNX's type, and its shape with None for dynamic dimensions."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def describe(self) -> str:
        """For instance `pixels FLOAT [?, 3, 224, 224]`."""
        shape = "of unknown shape" if self.shape is None else [("?" if side is None else side) for side in self.shape]
        return f"{self.name} {self.dtype} {shape}".replace("'", "")


@dataclass(frozen=True)
class Foreign:
    """What a file's graph says.

    Attributes:
        path: of the file.
        opset: of ONNX's own operators.
        inputs, outputs: in the file's order.
        parameters: number of weights in floats.
        external: whether weights are in other files.
    """

    path: Path
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: int
    external: bool


def read_foreign(path: Path) -> Foreign:
    """Read a file's graph, not its weights.

    Raises:
        EngineError: it is missing or no ONNX file, over 2 GB, or has an opset or operators that are not supported;
            weights are missing.
        UserError: depthkit exported it.
    """
    model = read_onnx(path, weights=False)
    if any(entry.key == METADATA.spec for entry in model.metadata_props):
        raise UserError(
            f"{path} is an export of depthkit already; use it as it is, for instance `depthkit export {path}`"
        )
    graph, opset = model.graph, opset_of(model)
    if opset < OLDEST_OPSET:
        raise EngineError(f"{path} has opset {opset}; export it again with opset {OLDEST_OPSET} or later")
    if opset > onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        raise EngineError(f"{path} has opset {opset}, but the installed onnx ends at {newest}; upgrade onnx")
    strange = sorted({f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in _STANDARD})
    if strange:
        raise EngineError(
            f"{path} has operators that are not ONNX's own ({', '.join(strange[:5])}), which engines do not know; "
            "export the model without them"
        )
    external = _external(path, graph)
    if path.stat().st_size + sum(file.stat().st_size for file in external) > MOST_BYTES:
        raise EngineError(
            f"{path} is over 2 GB with its weights, more than an ONNX file may have; adopt a smaller variant"
        )
    constants = {tensor.name for tensor in graph.initializer}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return Foreign(
        path,
        opset,
        tuple(_tensor(value) for value in graph.input if value.name not in constants),
        tuple(_tensor(value) for value in graph.output),
        sum(int(np.prod(each.dims, dtype=np.int64)) for each in graph.initializer if each.data_type in floats),
        bool(external),
    )


def choose_input(
    foreign: Foreign, name: str | None, layout: Literal["auto", "NCHW", "NHWC"]
) -> tuple[Tensor, Literal["NCHW", "NHWC"]]:
    """The input that takes pictures, and its layout.

    Args:
        foreign: the file.
        name: as given; None: the only input that fits.
        layout: as given.

    Raises:
        UserError: none or several fit; a batch other than 1 is fixed; the layout is unclear.
    """
    listed = "; ".join(each.describe() for each in foreign.inputs) or "none"
    named = [each for each in foreign.inputs if name in {None, each.name}]
    if not named:
        raise UserError(f"{foreign.path} has no input {name}; its inputs are: {listed}")
    fit = [(each, found) for each in named if (found := _layouts(each, layout))]
    if len(fit) != 1:
        many = "several inputs that take pictures; choose one with --input" if fit else "no input that takes pictures"
        raise UserError(f"{foreign.path} has {many} (float32 with 3 channels); its inputs are: {listed}")
    if others := [each.name for each in foreign.inputs if each is not fit[0][0]]:
        raise UserError(
            f"{foreign.path} needs other inputs besides {fit[0][0].name}: {', '.join(others)}; make them constants"
        )
    tensor, layouts = fit[0]
    if len(layouts) > 1:
        raise UserError(f"the layout of {tensor.describe()} is unclear; give --layout NCHW or --layout NHWC")
    assert tensor.shape is not None, "_layouts makes sure"
    if tensor.shape[0] not in {None, 1}:
        raise UserError(
            f"{tensor.describe()} has a fixed batch of {tensor.shape[0]}; export it with batch 1 or a dynamic batch"
        )
    return tensor, layouts[0]


def choose_output(foreign: Foreign, given: Tensor, layout: str, name: str | None, size: tuple[int, int]) -> str:
    """The name of the only output that is a depth map: the file is run once on black pictures of `size`.

    Raises:
        UserError: none or several fit.
        EngineError: ONNX Runtime does not load or run the file.
    """
    session = open_session(foreign.path)
    pixels = np.zeros((1, *size, 3), np.float32) if layout == "NHWC" else np.zeros((1, 3, *size), np.float32)
    names = [each.name for each in foreign.outputs]
    if name is not None and name not in names:
        raise UserError(f"{foreign.path} has no output {name}; its outputs are: {', '.join(names)}")
    try:
        answers = dict(zip(names, session.run(names, {given.name: pixels}), strict=True))
    except Exception as error:
        raise EngineError(
            f"{foreign.path} does not compute a picture of {by(size)} (HxW): {first_line(error)}; choose another --size"
        ) from error
    maps = [each for each in names if name in {None, each} and _is_map(answers[each], size)]
    if len(maps) == 1:
        return maps[0]
    listed = "; ".join(f"{each} {getattr(answers[each], 'dtype', '?')} {np.shape(answers[each])}" for each in names)
    if not maps:
        raise UserError(f"{foreign.path} has no output that is a depth map (float32, one channel), but {listed}")
    raise UserError(f"{foreign.path} has several outputs that could be depth; choose one with --output: {listed}")


def _external(path: Path, graph: Any) -> list[Path]:
    """Other files with weights. Raises EngineError if one is missing or outside the file's folder."""
    names = {
        entry.value
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path.parent / name for name in sorted(names)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise EngineError(f"weights of {path} are in {', '.join(missing)}, which is missing; copy it beside the file")
    return files


def _tensor(value: Any) -> Tensor:
    kind = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(kind.elem_type)
    if not kind.HasField("shape"):
        return Tensor(value.name, dtype, None)
    return Tensor(value.name, dtype, tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim))


def _layouts(tensor: Tensor, wanted: str) -> list[Literal["NCHW", "NHWC"]]:
    """The layouts in which an input could take pictures; empty: it cannot."""
    shape = tensor.shape
    if tensor.dtype != "FLOAT" or shape is None or len(shape) != 4:
        return []
    places: dict[Literal["NCHW", "NHWC"], int] = {"NCHW": 1, "NHWC": 3}
    sure: list[Literal["NCHW", "NHWC"]] = [each for each, at in places.items() if shape[at] == 3]
    possible = sure if len(sure) == 1 else [each for each, at in places.items() if shape[at] in {None, 3}]
    return [each for each in possible if wanted in {"auto", each}]


def _is_map(answer: Any, size: tuple[int, int]) -> bool:
    """Whether an answer is a depth map of a picture of this size: one channel, about the same aspect ratio."""
    depth = as_depth(answer, 1) if isinstance(answer, np.ndarray) else None
    if depth is None or min(depth.shape[1:]) < min(_LEAST_SIDE, *size):
        return False
    _, height, width = depth.shape
    return bool(0.8 < (width / height) / (size[1] / size[0]) < 1.25)
