"""Vendors without depthkit: each one's own call as its documentation shows it, to be benched beside our sessions.

A peer reads the same ONNX file in FP32, on memory that stands ready, with the same number of threads. All else is the
vendor's default, also where that is not FP32: what it really computes in is read back and stands in its row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from ..engines.fingerprint import usable_cores
from ..engines.ov import bf16_without_kernels, core
from ..errors import BackendError, DepthkitError
from ..onnx_graph import describe_onnx
from ..session import Call, Peer
from ..vendors import import_onnxruntime, import_openvino

__all__ = ["PEERS", "open_onnxruntime", "open_openvino", "open_peer"]


def open_onnxruntime(onnx: Path) -> Peer:
    """ONNX Runtime's CPU provider through IOBinding. Raises BackendError, EngineError."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])

    def prepare(image: np.ndarray, depth: np.ndarray) -> Call:
        binding = session.io_binding()
        binding.bind_input("image", "cpu", 0, image.dtype, image.shape, image.ctypes.data)
        binding.bind_output("depth", "cpu", 0, depth.dtype, depth.shape, depth.ctypes.data)
        return lambda: session.run_with_iobinding(binding)

    provider = f"onnxruntime {onnxruntime.__version__}, {session.get_providers()[0]}, {usable_cores()} threads"
    return Peer(describe_onnx(onnx).model, provider, "fp32", prepare)


def open_openvino(onnx: Path, precision_hint: str | None = None) -> Peer:
    """OpenVINO's CPU plugin for latency, on shared tensors; `precision_hint` None: as it likes.

    Under ONEDNN_MAX_CPU_ISA it likes BF16 where it has no kernels for it, and fails; then it is asked for FP32.

    Raises BackendError, EngineError.
    """
    openvino = import_openvino()
    if precision_hint is None and bf16_without_kernels():
        precision_hint = "f32"
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": usable_cores()}
    hints |= {} if precision_hint is None else {"INFERENCE_PRECISION_HINT": precision_hint}
    compiled = core().compile_model(str(onnx), "CPU", hints)
    computed = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    precision = {"f32": "fp32", "f16": "fp16"}.get(computed, computed)

    def prepare(image: np.ndarray, depth: np.ndarray) -> Call:
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(image, image.shape, compiled.input(0).element_type))
        request.set_output_tensor(openvino.Tensor(depth, depth.shape, compiled.output(0).element_type))
        return lambda: request.infer(share_outputs=True)

    provider = f"openvino {openvino.__version__.partition('-')[0]}, CPU, {computed}, {usable_cores()} threads"
    return Peer(describe_onnx(onnx).model, provider, precision, prepare)


PEERS: Final[dict[str, Callable[[Path], Peer]]] = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}
"""Those that read an ONNX file, by the name of their package. Torch's are in `train.peers`."""


def open_peer(name: str, onnx: Path) -> Peer:
    """Open one of `PEERS`. Raises BackendError where its library is missing or refuses."""
    try:
        return PEERS[name](onnx)
    except ImportError as error:
        raise BackendError(f"{name} cannot be benched as a peer: {error}; pip install {name}") from error
    except DepthkitError:
        raise
    except Exception as error:  # their errors share no base
        raise BackendError(f"{name} cannot be benched as a peer with {onnx}: {error}") from error
