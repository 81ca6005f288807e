"""Names and defaults that `--help` shows. This module imports nothing, so that help stays fast."""

from __future__ import annotations

from typing import Final

__all__ = ["BACKENDS", "DEPTH_RANGE", "DEPTH_UNITS", "NETWORKS", "PEERS", "file_name", "is_import_path"]

NETWORKS: Final = ("nano", "compact", "unet")
"""Built-in networks, the keys of `train.networks.NETWORKS`."""

BACKENDS: Final = {
    "tensorrt": "trt:TENSORRT",
    "tensorrt-rtx": "trt:TENSORRT_RTX",
    "onnxruntime-tensorrt": "ort:TENSORRT",
    "onnxruntime-cuda": "ort:CUDA",
    "openvino": "ov:OPENVINO",
    "onnxruntime": "ort:CPU",
    "null": "null:NULL",
}
"""Backend -> module (of this name in `engines/` and `runtime/`) and object in the one in `engines/`; fastest first.

The last, "null", computes nothing.
"""

PEERS: Final = ("torch", "torch-compile", "onnxruntime", "openvino")
"""Values of `bench --vs`: `train.peers` opens torch's, `runtime.runner.open_peer` the others."""

DEPTH_RANGE: Final = (0.1, 10.0)
"""Default smallest and largest depth of a network, in metres; it answers a share of the largest."""

DEPTH_UNITS: Final = 1000.0
"""Default units of stored depth per metre: millimetres."""


def is_import_path(network: str) -> bool:
    """Whether `network` has the form `package.module:Network`, and is not a built-in name.

    >>> is_import_path("mypackage.module:MyNet"), is_import_path("compact"), is_import_path("runs/a:b")
    (True, False, False)
    """
    module, _, attribute = network.partition(":")
    return attribute.isidentifier() and all(word.isidentifier() for word in module.split("."))


def file_name(network: str) -> str:
    """The name of a network's run folder and files.

    >>> file_name("compact"), file_name("mypackage.module:MyNet")
    ('compact', 'MyNet')
    """
    return network.rpartition(":")[2]
