"""Names and defaults that `--help` shows, in one file that imports nothing."""

from __future__ import annotations

from typing import Final

__all__ = ["BACKENDS", "DEPTH_UNITS", "NETWORKS", "PEERS", "file_name", "is_import_path"]

NETWORKS: Final = ("compact", "unet")
"""What `train.networks.NETWORKS` builds."""

BACKENDS: Final = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-tensorrt",
    "onnxruntime-cuda",
    "openvino",
    "onnxruntime",
    "null",
)
"""What `engines.build.BACKENDS` builds by: the fastest first, and last the one that computes nothing."""

PEERS: Final = ("torch", "torch-compile", "onnxruntime", "openvino")
"""What `bench --vs` takes: torch by `train.peers`, the others by `runtime.runner.open_peer`."""

DEPTH_UNITS: Final = 1000.0
"""Units of stored depth per metre where neither the user nor a run says otherwise: millimetres."""


def is_import_path(network: str) -> bool:
    """Whether `network` is to be imported, as `package.module:Network`, and no built-in name.

    >>> is_import_path("mypackage.module:MyNet"), is_import_path("compact"), is_import_path("runs/a:b")
    (True, False, False)
    """
    module, _, attribute = network.partition(":")
    return attribute.isidentifier() and all(word.isidentifier() for word in module.split("."))


def file_name(network: str) -> str:
    """What the run folder and the files of a network are called.

    >>> file_name("compact"), file_name("mypackage.module:MyNet")
    ('compact', 'MyNet')
    """
    return network.rpartition(":")[2]
