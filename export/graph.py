"""From a network to an ONNX graph: fold batch norm in FP32, set the precision, export, fold constants.

The order matters. A batch norm folded after the conversion would apply its scale in half precision; one that is not
folded leaves Float kernels beside Half inputs, which TensorRT rejects.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection
from typing import TypeGuard, TypeVar, cast

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ..errors import BackendError
from ..precisions import PRECISIONS, Precision
from ..spec import Dim, ModelSpec
from ..train.camera_ready import DTYPES, CameraReady
from .finish import fold

__all__ = ["build_graph", "fold_batch_norm", "prepare"]

_Network = TypeVar("_Network", bound=nn.Module)


def build_graph(
    network: nn.Module, spec: ModelSpec, precision: Precision, kept: Collection[str] = ()
) -> onnx.ModelProto:
    """The camera-ready graph of `network`; see `Source.graph`.

    Args:
        network: in evaluation mode; not changed.
        spec: size, batch (a `Dim` makes the batch dynamic), preprocessing, range.
        precision: of the network; input, output and depth range stay as in the spec. For "int8" the graph is FP32, and
            `export.quantize` quantises it.
        kept: names of modules that stay in FP32.

    Raises:
        BackendError: torch cannot export this network to ONNX.
    """
    return fold(_export(prepare(network, spec, precision, kept), spec, PRECISIONS[precision].opset))


def prepare(network: nn.Module, spec: ModelSpec, precision: Precision, kept: Collection[str] = ()) -> CameraReady:
    """The torch module that `build_graph` exports, computing in `precision`."""
    camera = CameraReady(fold_batch_norm(network), spec, DTYPES[precision]).eval()
    if kept:
        for name, module in list(camera.network.named_modules()):
            if not any(module.children()) and any(True for _ in module.parameters()):
                dtype = torch.float32 if name in kept else camera.dtype
                camera.network.set_submodule(name, _Reading(dtype, module.to(dtype)))
    return camera


class _Reading(nn.Module):
    """A layer that casts its input to its own type."""

    def __init__(self, dtype: torch.dtype, layer: nn.Module) -> None:
        super().__init__()
        self.dtype = dtype
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        return cast("Tensor", self.layer(features.to(self.dtype)))


def fold_batch_norm(network: _Network) -> _Network:
    """A copy without batch norm.

    A batch norm after a convolution in a Sequential is folded into it. Any other becomes a multiplication and an
    addition, which need no knowledge of its input. Subclasses of `nn.BatchNorm2d` may do more, and stay.
    """
    folded = copy.deepcopy(network).eval()
    for sequence in [module for module in folded.modules() if isinstance(module, nn.Sequential)]:
        for name, follower in zip(list(sequence._modules), list(sequence._modules)[1:], strict=False):
            convolution, norm = sequence._modules[name], sequence._modules[follower]
            if isinstance(convolution, nn.Conv2d) and _is_fixed(norm):
                sequence._modules[name] = fuse_conv_bn_eval(convolution, norm)
                sequence._modules[follower] = nn.Identity()
    for name, module in list(folded.named_modules(remove_duplicate=False)):
        if _is_fixed(module):
            folded.set_submodule(name, _Affine(module))
    return folded


def _is_fixed(module: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Whether `module` is exactly an `nn.BatchNorm2d`, with running statistics."""
    return type(module) is nn.BatchNorm2d and module.running_var is not None


class _Affine(nn.Module):
    """A batch norm with fixed statistics: `x * scale + shift` for each channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.detach())
        shift = (0 if norm.bias is None else norm.bias.detach()) - norm.running_mean * scale
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("shift", shift.view(-1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale + self.shift


def _export(camera: CameraReady, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    batch, (height, width) = spec.batch, spec.size
    # torch.export treats a size of 1 as a constant, so a dynamic batch is traced with at least 2.
    frames = max(batch.opt, 2) if isinstance(batch, Dim) else batch
    example = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim(batch.name, min=batch.min, max=batch.max)},) if isinstance(batch, Dim) else None
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is missing, which is not used
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                camera,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[spec.input.name],
                output_names=[spec.output.name],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        # The whole message has pages about what torch tried and how to report it.
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise BackendError(
            f"torch cannot export {spec.network} to ONNX ({reason}); rewrite code that torch.export does not support, "
            "such as control flow that depends on values, or a constant batch with a --batch range"
        ) from error
    finally:
        logger.setLevel(level)
    assert program is not None
    return program.model_proto
