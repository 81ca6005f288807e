"""Optional packages: the extra that installs each, and an early error if one is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from .errors import UserError

__all__ = ["ADOPTING", "EXPORTING", "EXTRAS", "TRAINING", "missing", "require_packages"]

TRAINING: Final = ("torch", "lightning", "kornia", "safetensors")
ADOPTING: Final = ("onnx", "polygraphy", "onnx_graphsurgeon", "sympy", "onnxruntime")
"""For foreign ONNX files: to adopt and to export them."""
EXPORTING: Final = ("torch", "safetensors", "onnxscript", *ADOPTING)
"""For networks in torch."""

EXTRAS: Final = {
    **dict.fromkeys((*TRAINING, "huggingface_hub", "h5py"), "train"),
    **dict.fromkeys(("onnxscript", "polygraphy", "onnx_graphsurgeon"), "train"),
    "sympy": "adopt",
    **dict.fromkeys(("onnx", "onnxruntime"), "cpu"),
    "openvino": "openvino",
    "ray": "ray",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "cuda": "gpu",
    "av": "video",
    **dict.fromkeys(("prometheus_client", "starlette", "uvicorn", "websockets"), "serve"),
}
"""Optional modules, and the extra that installs each."""


def missing(*modules: str, without_torch: bool = False) -> str:
    """The message for missing modules, with the command that installs them; `without_torch`: not by `train`."""
    of = {"train": "adopt"} if without_torch else {}
    extras = ",".join(dict.fromkeys(of.get(EXTRAS[module], EXTRAS[module]) for module in modules))
    which = "which is" if len(modules) == 1 else "which are"
    return f"this needs {', '.join(modules)}, {which} not installed; pip install 'depthkit[{extras}]'"


def require_packages(*modules: str) -> None:
    """Raise UserError if any of these modules of `EXTRAS` is not installed. Imports none of them."""
    if absent := [module for module in modules if find_spec(module) is None]:
        raise UserError(missing(*absent, without_torch=modules == ADOPTING))
