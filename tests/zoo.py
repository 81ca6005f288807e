"""Depth networks that others published, as ONNX files with random weights: the files that `depthkit adopt` is for.

Each network has its true architecture, in the published size and in a small one for tests. The files are exported like
those that users have: networks of transformers by the TorchScript exporter, as `optimum` does it, with as many dynamic
dimensions as the network allows.

    python tests/zoo.py FOLDER [NAME ...]      writes FOLDER/NAME.onnx; without names, the four of published size
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from torch import Tensor, nn

IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Final = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Entry:
    """A network and the form of its ONNX file.

    Attributes:
        make: builds the network with random weights.
        size: height and width of the pictures that it is exported for.
        normalisation: mean and standard deviation of each channel, of pixels in 0..1, that its users subtract and
            divide by.
        dynamic: names of the file's dynamic dimensions of the input: batch, and height and width where possible.
        level: what the last layer answers on average, before its activation.
        torchscript: exported by TorchScript in opset 17; otherwise by torch.export in opset 18, which takes seconds.
    """

    make: Callable[[], nn.Module]
    size: tuple[int, int]
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET
    dynamic: tuple[str, ...] = ("batch", "height", "width")
    level: float = 2.0
    torchscript: bool = True


class Answer(nn.Module):
    """A network of transformers that returns the depth alone: N x 3 x H x W -> N x H x W."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        answer: Tensor = self.network(pixel_values).predicted_depth
        return answer


def depth_anything(hidden: int, heads: int, layers: int, fusion: int, size: int) -> nn.Module:
    """Depth Anything V2 (Yang et al., NeurIPS 2024): DINOv2 and the decoder of DPT; relative inverse depth."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone: dict[str, Any] = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "image_size": size,
        "patch_size": 14,
        "out_indices": [layers * quarter // 4 for quarter in (1, 2, 3, 4)],
        "reshape_hidden_states": False,
    }
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(**backbone),
        reassemble_hidden_size=hidden,
        neck_hidden_sizes=[hidden // 8, hidden // 4, hidden // 2, hidden],
        fusion_hidden_size=fusion,
        head_hidden_size=fusion // 2,
    )
    return Answer(DepthAnythingForDepthEstimation(config))


def dpt(**config: Any) -> nn.Module:
    """DPT, also called MiDaS 3 (Ranftl et al., ICCV 2021); relative inverse depth."""
    from transformers import DPTConfig, DPTForDepthEstimation

    return Answer(DPTForDepthEstimation(DPTConfig(**config)))


def glpn(**config: Any) -> nn.Module:
    """GLPN (Kim et al., 2022), with the encoder of SegFormer; metres from 0 to 10."""
    from transformers import GLPNConfig, GLPNForDepthEstimation

    return Answer(GLPNForDepthEstimation(GLPNConfig(**config)))


class FastDepth(nn.Module):
    """MobileNet with NNConv5, depthwise layers and additive skips (Wofk et al., ICRA 2019); metres.

    Input N x 3 x H x W, H and W multiples of 32; output N x 1 x H x W.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        widths = [int(each * width) for each in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
        strides = (1, 2, 1, 2, 1, 2, *[1] * 5, 2, 1)
        self.stem = _layer(3, widths[0], 3, 2)
        self.encoder = nn.ModuleList(map(_separable, widths[:-1], widths[1:], strides))
        widths = [widths[-1], *(int(each * width) for each in (512, 256, 128, 64, 32))]
        self.decoder = nn.ModuleList(map(partial(_separable, kernel=5), widths[:-1], widths[1:]))
        self.last = _layer(widths[-1], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        features, skips = self.stem(image), []
        for index, layer in enumerate(self.encoder):
            features = layer(features)
            if index in {0, 2, 4}:  # of 1/2, 1/4 and 1/8 of the picture's size
                skips.append(features)
        for index, layer in enumerate(self.decoder):
            features = nn.functional.interpolate(layer(features), scale_factor=2, mode="nearest")
            if index in {1, 2, 3}:
                features = features + skips.pop()
        answer: Tensor = self.last(features)
        return answer


def _layer(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(after)
    # With 0, 38 random layers in a row would amplify any change of their input a hundredfold, and with 1, rounding to
    # INT8 still so much that the gate fails at the published size. Trained networks do not.
    nn.init.constant_(norm.bias, 2.0)
    return nn.Sequential(convolution, norm, nn.ReLU())


def _separable(before: int, after: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(_layer(before, before, kernel, stride, before), _layer(before, after, 1))


_HYBRID: Final = {
    "is_hybrid": True, "neck_hidden_sizes": [256, 512, 768, 768], "reassemble_factors": [1, 1, 1, 0.5],
}  # fmt: skip
_SMALL_DPT: Final = {
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 192, "image_size": 64,
    "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [12, 24, 48, 48], "fusion_hidden_size": 16,
}  # fmt: skip
_GLPN: Final = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3], "decoder_hidden_size": 64}
_SMALL_GLPN: Final = {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}

ZOO: Final[dict[str, Entry]] = {
    # Depth-Anything-V2-Small-hf, dpt-hybrid-midas and glpn-nyu of Hugging Face's hub; FastDepth before pruning.
    "dav2s": Entry(partial(depth_anything, 384, 6, 12, 64, 518), (518, 518)),
    "dpt": Entry(partial(dpt, **_HYBRID), (384, 384), HALF, dynamic=("batch",)),
    "glpn": Entry(partial(glpn, **_GLPN), (480, 640), level=0.0),
    "fastdepth": Entry(FastDepth, (224, 224), dynamic=("batch",), level=1.0, torchscript=False),
    "dav2s-small": Entry(partial(depth_anything, 48, 3, 4, 16, 70), (56, 70)),
    "dpt-small": Entry(partial(dpt, **_SMALL_DPT), (64, 64), HALF, dynamic=("batch",)),
    "glpn-small": Entry(partial(glpn, **_SMALL_GLPN), (64, 96), level=0.0),
    "fastdepth-small": Entry(partial(FastDepth, 0.125), (64, 96), level=1.0),
}
PUBLISHED: Final = ("dav2s", "dpt", "glpn", "fastdepth")
SMALL: Final = tuple(name for name in ZOO if name not in PUBLISHED)


def build(name: str) -> nn.Module:
    """A network of `ZOO` in evaluation mode; the same weights every time."""
    entry = ZOO[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(19)
        network = entry.make().eval()
        _enliven(network, torch.cat([_draw(entry.size) for _ in range(4)]), entry.level)
    return network


def _draw(size: tuple[int, int]) -> Tensor:
    """A picture with structure at all scales, 1 x 3 x H x W, of mean 0 and variance 1."""
    scales = [nn.functional.interpolate(torch.randn(1, 3, n, n), size, mode="bicubic") for n in (2, 4, 8, 16, 32, 64)]
    picture = torch.stack(scales).sum(0)
    return (picture - picture.mean()) / picture.std()


def _enliven(network: nn.Module, pictures: Tensor, level: float) -> None:
    """Scale each layer, in the order in which they run, so that its output has unit variance on these pictures.

    With plain random weights, depth would hardly vary over a picture. (LSUV: Mishkin and Matas, "All you need is a good
    init", ICLR 2016.)
    """

    def scale(layer: Any, _inputs: object, output: Tensor) -> Tensor:
        layer.weight /= output.std()
        if layer.bias is not None:
            layer.bias /= output.std()
        return output / output.std()

    for name, parameter in network.named_parameters():
        if name.endswith(("position_embeddings", "cls_token")):
            nn.init.normal_(parameter, std=0.3)  # DPT has zeros before training
    layers = [each for each in network.modules() if isinstance(each, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0  # its statistics become those of the pictures
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    network(pictures)
    for hook in hooks:
        hook.remove()
    network.eval()
    last = ([each for each in norms if each.num_features == 1] or layers)[-1]
    assert last.bias is not None
    last.bias += level


def write(name: str, path: Path) -> Path:
    """Export a network of `ZOO` to an ONNX file, which contains its weights; returns the path."""
    entry, network = ZOO[name], build(name)
    dynamic = {axis: each for axis, each in {0: "batch", 2: "height", 3: "width"}.items() if each in entry.dynamic}
    form: dict[str, Any] = {"dynamo": True, "opset_version": 18, "verbose": False, "external_data": False}
    if entry.torchscript:
        height = 1 if isinstance(network, Answer) else 2
        answer = {0: "batch", height: "height", height + 1: "width"}
        axes = {"pixel_values": dynamic, "predicted_depth": answer}
        form = {"dynamo": False, "opset_version": 17, "dynamic_axes": axes}
    else:
        form["dynamic_shapes"] = ({axis: torch.export.Dim(each) for axis, each in dynamic.items()},)
    with warnings.catch_warnings(), _sizes_as_tensors():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, *entry.size),),
            path,
            input_names=["pixel_values"],
            output_names=["predicted_depth"],
            **form,
        )
    return path


def _sizes_as_tensors() -> Any:
    """Keeps the size of Depth Anything's answer dynamic, which transformers 5 makes a constant by `int()`."""
    from transformers.models.depth_anything import modeling_depth_anything
    from transformers.utils.generic import torch_int

    return mock.patch.object(modeling_depth_anything, "int", torch_int, create=True)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or PUBLISHED:
        print(write(chosen, Path(sys.argv[1]) / f"{chosen}.onnx"))
