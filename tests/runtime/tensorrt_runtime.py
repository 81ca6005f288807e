"""A stand-in for the part of `tensorrt` and `tensorrt_rtx` that runs engines, on top of the stand-in for CUDA.

An engine of it answers `answer`. A test proves that it has no name which one of the supported releases lacks.
"""

from __future__ import annotations

import enum
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.engines import trt_vendor
from depthkit.engines.fingerprint import Fingerprint
from depthkit.engines.manifest import Layer, Manifest
from depthkit.files import sha256
from depthkit.runtime.trt import TensorRTSession
from depthkit.spec import Dim, ModelSpec

from ..support import model_spec, sample_manifest
from .cudart import FakeCudart

VERSION = "10.13.3"
HEIGHT, WIDTH = 16, 32
MODES = ("pinned", "mapped", "device")
Open = Callable[..., TensorRTSession]
"""The fixture that opens a session."""


def answer(image: np.ndarray) -> np.ndarray:
    """What stands for a network: depth N x H x W of frames N x H x W x 3."""
    depth: np.ndarray = image.sum(-1, dtype=np.float32) / 8
    return depth


def spec(batch: int | Dim = 1) -> ModelSpec:
    return model_spec(HEIGHT, WIDTH, batch)


def image_of(seed: int, batch: int = 1) -> np.ndarray:
    shape = (batch, HEIGHT, WIDTH, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def blank(batch: int = 1) -> np.ndarray:
    return np.zeros((batch, HEIGHT, WIDTH), np.float32)


def plan(spec: ModelSpec) -> bytes:
    """The engine file of a spec."""
    shapes = [[-1 if isinstance(size, Dim) else size for size in tensor.shape] for tensor in (spec.input, spec.output)]
    batch = spec.batch
    return json.dumps({
        "tensors": {
            "image": ["INPUT", "UINT8", shapes[0]],
            "depth": ["OUTPUT", "FLOAT", shapes[1]],
        },
        "batch": [batch.min, batch.max] if isinstance(batch, Dim) else [batch, batch],
        "host_code": False,
    }).encode()  # fmt: skip


def manifest(path: Path, model: ModelSpec, backend: str = "tensorrt") -> Manifest:
    return replace(
        sample_manifest(),
        model=model,
        backend=backend,
        backend_version=VERSION,
        device=Fingerprint("gpu", "Stand-in", "sm_89"),
        precision_found="fp16",
        layers=(Layer("conv", "CONVOLUTION", "fp16"),),
        engine_sha256=sha256(path),
        options={},
    )


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    UINT8 = 2


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ComputeCapability(enum.Enum):
    SM89 = 89


class ILogger:
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = True  # the real default is False; nobody should rely on it

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        try:
            document = json.loads(serialized_engine)
        except ValueError:
            self._logger.log(ILogger.ERROR, "Magic tag does not match")
            return None
        if document["host_code"] or self.engine_host_code_allowed:
            self._logger.log(ILogger.ERROR, "host code")
            return None
        return ICudaEngine(self._logger, document)


class ICudaEngine:
    def __init__(self, logger: ILogger, document: dict[str, Any]) -> None:
        World.now.engines += 1
        self._contexts = [0]
        self._logger = logger
        self._tensors = document["tensors"]
        self._batch = document["batch"]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._tensors)[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self._tensors[name][0]]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name][1]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name][2])

    def create_execution_context(self) -> Any:
        if World.now.no_context:
            self._logger.log(ILogger.ERROR, "out of memory")
            return None
        return IExecutionContext(self)

    def __del__(self) -> None:
        World.now.engines -= 1
        if self._contexts != [0]:
            World.now.faults.append("an engine went before its context")


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        # Not the engine itself: who makes a context has to keep its engine.
        self._siblings, self._logger = engine._contexts, engine._logger
        self._ranks = {name: len(shape) for name, (_, _, shape) in engine._tensors.items()}
        self._least, self._most = ([batch, *engine._tensors["image"][2][1:]] for batch in engine._batch)
        self._siblings[0] += 1
        self._pending = [0]
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._has_run = False

    def __del__(self) -> None:
        self._siblings[0] -= 1
        if self._pending != [0]:
            World.now.faults.append("a context went before its work was done")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        accepted = all(least <= size <= most for least, size, most in zip(self._least, shape, self._most, strict=True))
        if accepted and shape != self._shape:
            self._shape, self._has_run = shape, False
        return accepted

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 256 == 0
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape is not None
        return (*self._shape[: self._ranks[name] - 1], self._shape[self._ranks[name] - 1] + World.now.wider)

    def execute_async_v3(self, stream_handle: int) -> bool:
        world, cudart, shape = World.now, World.now.cudart, self._shape
        assert shape is not None and self._addresses.keys() == self._ranks.keys()
        recording = cudart.streams[stream_handle].recording is not None
        if recording and not (world.capturable and self._has_run):
            cudart.streams[stream_handle].broken = True
            self._logger.log(ILogger.ERROR, "operation not permitted when stream is capturing")
            return False
        if world.failing:
            self._logger.log(ILogger.ERROR, "illegal memory access")
            return False
        source, target = self._addresses["image"], self._addresses["depth"]
        pending = [0] if recording else self._pending
        pending[0] += 1

        def compute() -> None:
            pending[0] -= 1
            image = cudart.on_device(source, math.prod(shape)).reshape(shape)
            depth = answer(image)
            cudart.on_device(target, depth.nbytes)[:] = depth.reshape(-1).view(np.uint8)

        cudart.enqueue(stream_handle, compute)
        self._has_run = True
        world.executed += 1
        return True


class World:
    """What the module does, to be changed by tests."""

    now: World

    def __init__(self, cudart: FakeCudart) -> None:
        self.cudart = cudart
        self.capturable = True
        self.failing = False
        self.no_context = False
        self.wider = 0
        self.executed = 0
        self.engines = 0
        self.faults: list[str] = []


CLASSES = (ComputeCapability, DataType, TensorIOMode, ILogger, Runtime, ICudaEngine, IExecutionContext)


@contextmanager
def installed(cudart: FakeCudart, name: str) -> Iterator[World]:
    """Let `import tensorrt` or `import tensorrt_rtx` find this stand-in."""
    module = module_from_spec(ModuleSpec(name, None))
    module.__dict__.update({each.__name__: each for each in CLASSES}, __version__=VERSION)
    world = World.now = World(cudart)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        patch.setattr(trt_vendor, "_installed", lambda _: VERSION)
        trt_vendor._logger.cache_clear()
        yield world
    trt_vendor._logger.cache_clear()
    assert not world.faults
