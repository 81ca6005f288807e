"""What looks at all activations of a graph holds few of them at a time: of a large network they would be gigabytes."""

from __future__ import annotations

import sys

import pytest

from ..support import run_code

CODE = """
import re, sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from depthkit.export.half import find_large
from depthkit.export.ranges import calibrate

SIZE = (512, 1024)
ACTIVATION = 8 * 4 * SIZE[0] * SIZE[1]

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs, [output], name=output, **attributes)

names = [f"layer{index}" for index in range(32)]
nodes = [
    node("Cast", ["image"], "pixels", to=TensorProto.FLOAT),
    node("Transpose", ["pixels"], "planes", perm=(0, 3, 1, 2)),
    node("Conv", ["planes", "wide"], names[0]),
    *(node("Conv", [before, "same"], after) for before, after in zip(names, names[1:])),
    node("Conv", [names[-1], "narrow"], "depth"),
]
values = [numpy_helper.from_array(np.full((*shape, 1, 1), 0.1, np.float32), name)
          for name, shape in (("wide", (8, 3)), ("same", (8, 8)), ("narrow", (1, 8)))]
ends = ([helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *SIZE, 3])],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 1, *SIZE])])
model = helper.make_model(helper.make_graph(nodes, "g", *ends, values),
                          opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
frames = [np.full((*SIZE, 3), 200, np.uint8)] * 8
before = peak()
found = find_large(model, frames[:1], 65504.0) if sys.argv[1] == "find_large" else calibrate(model, frames, "minmax")
print((peak() - before) / ACTIVATION)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
@pytest.mark.parametrize("what", ["find_large", "minmax"])
def test_few_activations_are_held_at_a_time(what: str) -> None:
    assert float(run_code(CODE, what)) < 16
