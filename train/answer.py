"""What a network returns, and how it becomes depth.

A network returns depth alone, or among other tensors in a dict, list, dataclass or Hugging Face `ModelOutput`; as
N x 1 x h x w, N x h x w or N x h x w x 1; at the picture's resolution or another; in metres or not, see `spec.Answers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import SpecError
from ..spec import ModelSpec

__all__ = ["as_depth", "as_share", "choose_depth", "depth_in", "describe_shape", "tensors_in"]

_SHOWN: Final = 10  # outputs that an error lists; it only counts the rest


def tensors_in(returned: object) -> dict[str, Tensor]:
    """The tensors in what a network returned, by name; a tensor alone is named "".

    Names are keys, fields and indices, joined by dots where containers are nested.

    >>> list(tensors_in({"depth": [torch.ones(2), torch.ones(1)], ("disp", 0): torch.ones(1)}))
    ['depth.0', 'depth.1', 'disp.0']
    """
    if isinstance(returned, Tensor):
        return {"": returned}
    found = {}
    for key, part in _parts(returned):
        name = ".".join(map(str, key)) if isinstance(key, tuple) else str(key)
        found.update({f"{name}.{inner}" if inner else name: tensor for inner, tensor in tensors_in(part).items()})
    return found


def _parts(container: Any) -> Iterable[tuple[object, object]]:
    if isinstance(container, Mapping):  # `ModelOutput` is one, without what is None
        return container.items()
    if isinstance(container, tuple | list):
        return zip(getattr(container, "_fields", range(len(container))), container, strict=True)
    if isinstance(container, SimpleNamespace):
        return vars(container).items()
    if is_dataclass(container):
        return ((field.name, getattr(container, field.name)) for field in fields(container))
    return ()


def choose_depth(
    network: str, returned: object, frames: int, size: tuple[int, int], output: str | None
) -> tuple[str | None, tuple[int, int]]:
    """Find depth in what a network returned for frames.

    Args:
        network: its name, for messages.
        returned: by its forward.
        frames: their number.
        size: their height and width.
        output: name of depth; None: the only tensor that may be depth.

    Returns:
        The name of depth for `depth_in`, and its height and width.

    Raises:
        SpecError: there is no such tensor, it is no depth map, or several may be depth.
    """
    found = tensors_in(returned)
    asked = f"{network} returns {{}} for {describe_shape((frames, 3, *size))}"
    if not found:
        kind = type(returned).__name__
        raise SpecError(f"{asked.format(f'a {kind}')}, without a tensor; its forward must return depth, N x 1 x H x W")
    if isinstance(returned, Tensor):
        if output is not None:
            raise SpecError(f"{network} returns one tensor and has no output {output}; leave --output out")
        output = ""
    listed = _list(found)
    if output is not None and output not in found:
        raise SpecError(f"{network} has no output {output}; it returns {listed}; choose one of these with --output")
    named = found if output is None else {output: found[output]}
    sizes = {name: _map_size(tensor, frames) for name, tensor in named.items() if tensor.dtype in _FLOATS}
    maps = {name: answered for name, answered in sizes.items() if answered is not None and _covers(size, answered)}
    if len(maps) > 1:
        raise SpecError(
            f"{network} has {len(maps)} outputs that may be depth: it returns {listed}; choose with --output"
        )
    if not maps:
        raise SpecError(
            f"{asked.format(_list(named))}, but must return depth for each frame, a floating-point tensor of "
            f"{describe_shape((frames, 1, *size))} or {describe_shape((frames, *size))}, or of a whole fraction or "
            "multiple of this height and width; choose another size or output, or change its forward"
        )
    ((name, answered),) = maps.items()
    return name or None, answered


_FLOATS: Final = {torch.float32, torch.float16, torch.bfloat16}


def _map_size(tensor: Tensor, frames: int) -> tuple[int, int] | None:
    """Height and width of a tensor with a map for each frame; None: it is something else."""
    shape = tuple(tensor.shape)
    if len(shape) == 4:
        shape = (shape[0], *shape[2:]) if shape[1] == 1 else shape[:3] if shape[3] == 1 else ()
    return shape[1:] if len(shape) == 3 and shape[0] == frames and min(shape[1:]) > 1 else None


def _covers(size: tuple[int, int], answered: tuple[int, int]) -> bool:
    """Whether a map covers the whole picture: both sides are divided (rounded up) or multiplied by one whole number.

    >>> [_covers((99, 132), answered) for answered in ((50, 66), (198, 264), (98, 126))]
    [True, True, False]
    """
    (height, width), (rows, columns) = size, answered
    smaller = any(answered == (-(-height // ratio), -(-width // ratio)) for ratio in range(1, height + 1))
    return smaller or (rows % height == 0 and columns == width * (rows // height))


def _list(tensors: Mapping[str, Tensor]) -> str:
    """Name, shape and type of tensors, for messages."""
    listed = []
    for name, tensor in tensors.items():
        kind = "" if tensor.dtype == torch.float32 else f" {str(tensor.dtype).removeprefix('torch.')}"
        described = describe_shape(tensor.shape) + kind
        listed.append(f"{name} ({described})" if name else described)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest


def describe_shape(shape: Iterable[int]) -> str:
    """A shape as a person writes it.

    >>> describe_shape((2, 3, 96, 128))
    '2 x 3 x 96 x 128'
    """
    return " x ".join(map(str, shape))


def depth_in(returned: object, output: str | None) -> Tensor:
    """The network's answer, N x h x w, as it is.

    Args:
        returned: by its forward.
        output: `ModelSpec.network_output`.

    Raises:
        SpecError: there is no such tensor, although `choose_depth` found it. Some networks return more in training.
    """
    answer = tensors_in(returned).get(output or "")
    if answer is None:
        wanted, found = output or "a tensor alone", _list(tensors_in(returned)) or f"a {type(returned).__name__}"
        raise SpecError(
            f"the network returns {found} and not always {wanted}; its forward must return the same in training and in "
            "evaluation"
        )
    if answer.ndim == 4:
        return answer.squeeze(1) if answer.shape[1] == 1 else answer.squeeze(3)
    return answer


def as_depth(answer: Tensor, spec: ModelSpec) -> Tensor:
    """Depth as `ModelSpec.output` says, in FP32, of a network's answer: metres within the range if it has metres."""
    depth = answer.float()
    if spec.answers == "share":
        depth = depth * spec.depth_range[1]
    return depth.clamp(*spec.depth_range) if spec.is_metric else depth


def as_share(returned: object, spec: ModelSpec, size: tuple[int, int]) -> Tensor:
    """N x 1 x H x W for training: what a network returned as a share of the depth range's upper end, not clamped.

    It is resized to `size` (height, width) as `resize.Resample` does. The network must answer in metres or a share.
    """
    share = depth_in(returned, spec.network_output)[:, None].float()
    if spec.answers == "metres":
        share = share / spec.depth_range[1]
    if share.shape[-2:] == size:
        return share
    return interpolate(share, size, mode="bilinear", antialias=True, align_corners=False)
