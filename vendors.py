"""Import vendor libraries without telemetry.

On import, OpenVINO and ONNX Runtime report usage and store an identifier in the user's home. depthkit uses each
library's own opt-out, for the import only: no setting of the user is changed.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any, Final

__all__ = ["import_onnxruntime", "import_openvino"]

_ORT_SWITCH: Final = "ORT_DISABLE_TELEMETRY"


@cache
def import_onnxruntime() -> Any:
    """The module `onnxruntime`.

    Its import writes `~/.cache/Microsoft/DeveloperTools` and reports to Microsoft, unless ORT_DISABLE_TELEMETRY is set
    (ONNX Runtime, docs/Privacy.md). A value that the user has set is kept.
    """
    asked = os.environ.get(_ORT_SWITCH)
    os.environ.setdefault(_ORT_SWITCH, "1")
    try:
        import onnxruntime
    finally:
        if asked is None:
            del os.environ[_ORT_SWITCH]
    return onnxruntime


@cache
def import_openvino() -> Any:
    """The module `openvino`.

    Its import starts a process that reports to Google Analytics, and writes an identifier into `~/intel`, unless
    `opt_in_out --opt_out` was run once. If its telemetry package cannot be imported, it uses a stub instead.
    """
    package = "openvino_telemetry"
    imported = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules[package]
        if imported is not None:
            sys.modules[package] = imported
    return openvino
