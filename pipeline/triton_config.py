"""`config.pbtxt` of a model in a Triton model repository, as text: pure functions, which touch no file.

The configuration is complete, so that Triton's auto-completion changes nothing. Completed by Triton, a graph with a
dynamic batch would get `max_batch_size` 4 (triton-inference-server/server, issue 1889).

The fields are those of `model_config.proto` (triton-inference-server/common), and the backends' parameters those of
their READMEs (onnxruntime_backend, openvino_backend).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ..engines.manifest import Manifest
from ..errors import BackendError
from ..spec import Dim, TensorSpec

__all__ = ["FRAME_FILE", "SERVINGS", "Serving", "Word", "model_config", "serving", "to_text"]

FRAME_FILE: Final = "reference_frame"
"""Name of the file in `warmup/` whose bytes are the input of a warm-up run."""

Message: TypeAlias = Mapping[str, Any]
"""A protobuf message: strings, integers, words and messages by the names of fields; a sequence is a repeated field."""


Settings: TypeAlias = tuple[dict[str, Any], dict[str, str]]
"""Fields of a configuration, and its parameters."""


class Word(str):
    """The name of an enum's value, which text format writes without quotes."""

    __slots__ = ()


@dataclass(frozen=True)
class Serving:
    """How Triton runs the engines of one backend.

    Attributes:
        backend: Triton's name of the backend.
        kind: of the device.
        file: name of the model file in a version's folder.
        settings: fields and parameters that make Triton compute as the engine does.
        unknown: a value of the backend's options that Triton has no setting for.
        notes: what the user must know of a precision.
    """

    backend: str
    kind: Word
    file: str
    settings: Callable[[Manifest], Settings]
    unknown: tuple[str, str] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


def _onnxruntime(manifest: Manifest) -> Settings:
    threads = manifest.options["threads"]
    return {}, {"intra_op_thread_count": str(threads)} if threads else {}


def _cuda(manifest: Manifest) -> Settings:
    # Without `use_tf32`, ONNX Runtime rounds FP32 to TF32, which is not what passed the gate. The search is a parameter
    # of the model: Triton sets it to EXHAUSTIVE otherwise, whatever the accelerator says.
    accelerator = {"name": "cuda", "parameters": _pairs({"use_tf32": str(int(bool(manifest.options["tf32"])))})}
    search = {"exhaustive": "0", "heuristic": "1", "default": "2"}[str(manifest.options["cudnn_search"])]
    return (
        {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}},
        {"cudnn_conv_algo_search": search},
    )


def _openvino(manifest: Manifest) -> Settings:
    options = manifest.options
    found = {"PERFORMANCE_HINT": str(options["hint"]).upper()}
    if options["threads"]:
        found["INFERENCE_NUM_THREADS"] = str(options["threads"])
    if manifest.precision_asked == "bf16":
        found["HINT_BF16"] = "YES"
    if isinstance(manifest.model.batch, Dim):
        found["ENABLE_BATCH_PADDING"] = "YES"  # it refuses every batch but the largest otherwise
    return {}, found


def _tensorrt(_: Manifest) -> Settings:
    return {"platform": "tensorrt_plan"}, {}


SERVINGS: Final = {
    "onnxruntime": Serving("onnxruntime", Word("KIND_CPU"), "model.onnx", _onnxruntime),
    "onnxruntime-cuda": Serving("onnxruntime", Word("KIND_GPU"), "model.onnx", _cuda),
    "openvino": Serving(
        "openvino",
        Word("KIND_CPU"),
        "model.onnx",
        _openvino,
        ("inference_precision", "f16"),
        {
            "fp32": "Triton's OpenVINO backend has no setting for FP32: on a CPU with BF16 it computes in BF16, which "
            "fails this gate; serve the onnxruntime model there"
        },
    ),
    "tensorrt": Serving("tensorrt", Word("KIND_GPU"), "model.plan", _tensorrt),
}
"""The backends whose engines Triton can run."""

_WHY_NOT: Final = {
    "tensorrt-rtx": "its TensorRT backend does not load plans of TensorRT-RTX",
    "onnxruntime-tensorrt": "it would build the TensorRT engine anew, and nothing would check that one",
    "null": "it computes nothing",
}


def serving(backend: str, options: Mapping[str, object], batch: int | Dim) -> Serving:
    """How Triton runs an engine of a backend with these options (`Backend.record`) and this batch.

    Raises:
        BackendError: it does not.
    """
    if backend not in SERVINGS:
        raise BackendError(
            f"Triton cannot serve engines of {backend}: {_WHY_NOT.get(backend, 'it has no such backend')}; with "
            f"--triton, choose one of {', '.join(SERVINGS)} by --backend"
        )
    found = SERVINGS[backend]
    if found.unknown is not None and options.get(found.unknown[0]) == found.unknown[1]:
        raise BackendError(
            f"Triton's backend {found.backend} has no setting for {'='.join(found.unknown)}; leave it out with --triton"
        )
    if isinstance(batch, Dim) and batch.min > 1:
        raise BackendError(
            f"Triton may run a single frame, and this engine takes {batch.min} to {batch.max}; export it with "
            f"--batch 1,{batch.opt},{batch.max}"
        )
    return found


def model_config(name: str, manifest: Manifest, facts: Mapping[str, str]) -> Message:
    """The `ModelConfig` of an engine's model.

    A graph with a static batch gets `max_batch_size` 0 and the batch in its dims. A dynamic batch gets dims without it,
    and Triton's dynamic batcher, which prefers the batch that the engine is tuned for, and the largest.

    Args:
        name: of the model, and of its folder.
        manifest: of the engine.
        facts: further parameters, which Triton only shows.

    Raises:
        BackendError: see `serving`.
    """
    model, batch = manifest.model, manifest.model.batch
    how = serving(manifest.backend, manifest.options, batch)
    fields, parameters = how.settings(manifest)
    config: dict[str, Any] = {
        "name": name,
        "backend": how.backend,
        **fields,
        "default_model_filename": how.file,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": batch.max if isinstance(batch, Dim) else 0,
        "input": [_tensor(model.input)],
        "output": [_tensor(model.output)],
        "instance_group": [{"count": 1, "kind": how.kind}],
    }
    batches = [1]
    if isinstance(batch, Dim):
        preferred = sorted({batch.opt, batch.max} - {1})  # preferring 1 would mean never to wait for a second
        config["dynamic_batching"] = {"preferred_batch_size": preferred}
        batches += preferred
    frame = {"data_type": _type(model.input), "dims": _dims(model.input), "input_data_file": FRAME_FILE}
    config["model_warmup"] = [
        {"name": f"batch of {size}", "batch_size": size, "inputs": [{"key": model.input.name, "value": frame}]}
        for size in batches
    ]
    values = {key: {"string_value": text} for key, text in (parameters | dict(facts)).items()}
    return {**config, "parameters": _pairs(values)}


def _tensor(spec: TensorSpec) -> Message:
    return {"name": spec.name, "data_type": _type(spec), "dims": _dims(spec)}


def _type(spec: TensorSpec) -> Word:
    return Word({"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}[spec.dtype])


def _dims(spec: TensorSpec) -> list[int]:
    """The shape, without a dynamic batch."""
    return [size for size in spec.shape if not isinstance(size, Dim)]


def _pairs(values: Mapping[str, Any]) -> list[Message]:
    """A map field: its entries, each a message with `key` and `value`."""
    return [{"key": key, "value": value} for key, value in values.items()]


def to_text(message: Message, indent: str = "") -> str:
    r"""A message in protobuf's text format.

    >>> print(to_text({"name": 'a"b', "kind": Word("KIND_CPU"), "dims": [1, 2], "group": [{"count": 1}]}), end="")
    name: "a\"b"
    kind: KIND_CPU
    dims: [1, 2]
    group {
      count: 1
    }
    """
    lines = []
    for key, value in message.items():
        several: Sequence[Any] = [value] if isinstance(value, str | int | Mapping) else value
        if all(isinstance(each, Mapping) for each in several):
            lines += [f"{indent}{key} {{\n{to_text(each, indent + '  ')}{indent}}}\n" for each in several]
        else:
            words = ", ".join(_scalar(each) for each in several)
            lines.append(f"{indent}{key}: {words if isinstance(value, str | int) else f'[{words}]'}\n")
    return "".join(lines)


def _scalar(value: str | int) -> str:
    if isinstance(value, Word | int):
        return str(value)
    # Protobuf's strings are UTF-8; a file name may hold bytes that are not.
    text = value.encode(errors="replace").decode()
    return '"' + "".join(_ESCAPES.get(letter, letter) for letter in text) + '"'


_ESCAPES: Final = {chr(code): f"\\{code:03o}" for code in (*range(32), 127)} | {"\\": "\\\\", '"': '\\"'}
