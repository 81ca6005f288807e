"""NVIDIA's libraries `tensorrt` and `tensorrt_rtx`: find and import them, collect their log, and read plans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import BackendError

__all__ = ["Vendor", "lean_runtime", "numbers", "words"]


class Vendor:
    """One of the two libraries, by the name of its backend. `vendor` imports it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._module = name.replace("-", "_")

    def installed(self) -> str | None:
        """The installed version; None if the library is missing, or `onnx`, which every build needs."""
        return _installed(self.name) if find_spec(self._module) and find_spec("onnx") else None

    def vendor(self) -> Any:
        """Import the module. Raises BackendError if that fails."""
        try:
            return import_module(self._module)
        except Exception as error:  # its start-up code loads libraries and may raise anything
            remedy = f"pip install --upgrade 'depthkit[{self.name}]'"
            raise BackendError(f"{self._module} cannot be imported ({error}); {remedy}") from error

    @cached_property
    def fault(self) -> str:
        """The library's error if it does not start on this machine's GPU; empty if it starts. Checked once."""
        try:
            trt = self.vendor()
            with self.listening("cannot start"):
                trt.Runtime(self.logger())
        except BackendError as error:
            return str(error)
        return ""

    def logger(self) -> Any:
        """The one logger for all objects of the module; it prints nothing. See `listening`."""
        return _logger(self._module)

    @contextmanager
    def listening(self, what: str) -> Iterator[list[str]]:
        """Yield a list that collects the vendor's warnings and errors, because it logs them and returns None or False.

        The vendor's exceptions become BackendError here, with a message that begins with `what`.
        """
        logger, messages = self.logger(), list[str]()
        logger.listeners[id(messages)] = messages
        try:
            yield messages
        except (RuntimeError, TypeError, ValueError) as error:  # from pybind11, also if a constructor fails
            raise BackendError(f"{self.name} {what}: {words([*messages, str(error)])}") from error
        finally:
            del logger.listeners[id(messages)]

    def deserialize(self, plan: Any, built: str | None = None) -> Any:
        """Deserialise a plan to an `ICudaEngine`; host code in it is not allowed to run.

        Args:
            plan: bytes or a buffer.
            built: the version that built it; None: the installed version.

        Raises:
            BackendError: the vendor rejects the plan; the message quotes it.
        """
        trt = self.vendor()
        with self.listening("cannot read the engine") as messages:
            if built in {None, _installed(self.name)}:
                runtime = trt.Runtime(self.logger())
            else:
                runtime = _lean(self._module, str(built))
            engine = None
            if runtime is not None:
                runtime.engine_host_code_allowed = False
                engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"{self.name} cannot read the engine: {words(messages)}")
        return engine


def lean_runtime(built: str) -> Path | None:
    """The library of TensorRT's lean runtime of exactly version `built`, if pip installed it."""
    spec = find_spec("tensorrt_lean_libs")
    if spec is None or _installed("tensorrt-lean") != built:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return next((path for folder in folders for path in folder.glob("libnvinfer_lean.so*")), None)


def words(messages: Iterable[str]) -> str:
    """The vendor's messages in one line, without repetitions.

    >>> words(["no kernel", "In catchCudaError: no driver"]), words([])
    ('no kernel', 'no reason given')
    """
    lines = dict.fromkeys(line.strip() for text in messages for line in text.splitlines() if line.strip())
    # Without a driver, a builder adds this to every error; it is useful only if there is no other message.
    useful = [line for line in lines if "catchCudaError" not in line] or list(lines)
    return "; ".join(useful) or "no reason given"


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparison.

    >>> numbers("10.12") <= numbers("10.12.0.36") < numbers("11.4.0.106")
    True
    """
    return tuple(int(each) for each in re.findall(r"\d+", version))


def _installed(name: str) -> str | None:
    """The version of one of NVIDIA's distributions, whose names may have the CUDA release as a suffix."""
    for distribution in (name, f"{name}-cu13", f"{name}-cu12"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


@cache
def _logger(module: str) -> Any:
    """The module's logger. It must live for ever: the vendor keeps a raw pointer to it, not a reference."""
    trt = import_module(module)
    recorded = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 does not support super().__init__()
            self.listeners: dict[int, list[str]] = {}

        def log(self, severity: Any, message: str) -> None:
            if severity in recorded:
                for listener in list(self.listeners.values()):
                    listener.append(message)

    return Logger()


def _lean(module: str, built: str) -> Any:
    library = lean_runtime(built)
    if library is None:
        raise BackendError(f"the engine needs TensorRT's lean runtime {built}; pip install tensorrt-lean=={built}")
    return _loader(module).load_runtime(str(library))


@cache
def _loader(module: str) -> Any:
    """The runtime that loads lean runtimes. It must live for ever: they need it, but hold no reference to it."""
    trt = import_module(module)
    return trt.Runtime(_logger(module))
