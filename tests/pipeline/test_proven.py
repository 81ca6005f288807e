"""What passes its gate may serve, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from depthkit.engines.build import BuildOptions, build
from depthkit.errors import GateError, UserError
from depthkit.pipeline.proven import prove
from depthkit.reference import read_reference
from depthkit.runtime.load import load

from ..support import STEM, build_null, flip_bit, seal_graph


def change_one_weight(path: Path) -> None:
    """Change a weight of an ONNX file, as if it had been exported so."""
    model = onnx.load(path)
    weight = next(each for each in model.graph.initializer if each.name.endswith("weight"))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 3
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    seal_graph(model)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("name", ["fp32.ort.onnx", "fp16.ort.onnx", "fp32.onnx"])
def test_every_session_is_proven_and_answers_as_the_engine_does(exports: Path, name: str) -> None:
    path = exports / f"{STEM}.{name}"
    reference = read_reference(exports / f"{STEM}.reference.npz")
    found = prove(path, 2)
    with load(path) as session:
        expected = session(reference.images[:1])
    for session in found.sessions:
        np.testing.assert_array_equal(session(reference.images[:1]), expected)
    assert (found.asked, found.parity.frames) == (name[:4], 8)
    assert found.hashes["weights"] == reference.weights_sha256
    found.close()


def test_built_in_weights_are_proven_by_name_without_torch() -> None:
    found = prove(Path("nano"), 1)
    assert found.sessions[0].spec.network == "nano"
    assert set(found.hashes) == {"engine", "onnx", "weights"}
    found.close()


def test_an_engine_of_one_changed_weight_fails(exports: Path) -> None:
    path = exports / f"{STEM}.fp32.onnx"
    change_one_weight(path)
    with pytest.raises(GateError, match=r"max \|Δ\| .* mm > "):
        prove(build(path, BuildOptions("onnxruntime")).path, 1)
    with pytest.raises(GateError, match=r"max \|Δ\| .* mm > "):
        prove(path, 1)


def test_a_changed_file_fails_before_a_library_reads_it(exports: Path) -> None:
    path = exports / f"{STEM}.fp32.ort.onnx"
    flip_bit(path)
    with pytest.raises(GateError, match="is not the file that its manifest describes"):
        prove(path, 1)


def test_a_constant_fails(exports: Path) -> None:
    with pytest.raises(GateError, match=r"mm > 1 mm"):
        prove(build_null(exports / f"{STEM}.fp32.onnx").path, 1)


def test_weights_that_were_trained_on_fail(exports: Path) -> None:
    with (exports / "model.safetensors").open("ab") as weights:
        weights.write(b" ")
    with pytest.raises(GateError, match=r"made from other weights than model\.safetensors"):
        prove(exports / f"{STEM}.fp32.ort.onnx", 1)


def test_what_cannot_be_opened_is_the_users_mistake(exports: Path) -> None:
    with pytest.raises(UserError, match="no run, ONNX file or engine"):
        prove(exports / "nowhere.onnx", 1)
    (exports / f"{STEM}.reference.npz").unlink()
    with pytest.raises(UserError, match="no reference"):
        prove(exports / f"{STEM}.fp32.ort.onnx", 1)
