"""depthkit: from a monocular-depth network in PyTorch to a realtime engine, with proof that nothing was lost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import DepthkitError
    from .pipeline.predictor import Predictor
    from .runtime.cameras import Intrinsics
    from .runtime.clouds import unproject
    from .runtime.load import load
    from .session import Session
    from .spec import ModelSpec
    from .train.hub import DepthModel, pretrained

__version__ = "0.1.0"
__all__ = [
    "DepthModel",
    "DepthkitError",
    "Intrinsics",
    "ModelSpec",
    "Predictor",
    "Session",
    "__version__",
    "load",
    "pretrained",
    "unproject",
]

_HOME = {
    "DepthModel": ".train.hub",
    "DepthkitError": ".errors",
    "Intrinsics": ".runtime.cameras",
    "ModelSpec": ".spec",
    "Predictor": ".pipeline.predictor",
    "Session": ".session",
    "load": ".runtime.load",
    "pretrained": ".train.hub",
    "unproject": ".runtime.clouds",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access (PEP 562), so that `import depthkit` stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name], __name__), name)
    except ModuleNotFoundError as error:
        from .errors import UserError

        raise UserError(
            f"depthkit.{name} needs {error.name}, which is not installed; pip install 'depthkit[train]'"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
