"""Vendor libraries are imported without what they would send home, and nothing of the user's is changed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from .support import run_python

PROGRAM = """
import os
before = dict(os.environ)
from depthkit.vendors import import_{name}
module = import_{name}()
assert import_{name}() is module and module.__name__ == "{name}"
assert dict(os.environ) == before
print("openvino_telemetry" in __import__("sys").modules)
"""


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_importing_leaves_no_identity_and_changes_no_setting(name: str, tmp_path: Path) -> None:
    if find_spec(name) is None:  # an import in this process would start OpenVINO's telemetry
        pytest.skip(f"{name} is not installed")
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    # CI=true would keep OpenVINO quiet by itself.
    environment = {key: value for key, value in os.environ.items() if key not in {"CI", "ORT_DISABLE_TELEMETRY"}} | home
    assert run_python("-c", PROGRAM.format(name=name), env=environment).split() == ["False"]
    assert list(tmp_path.rglob("*")) == []
