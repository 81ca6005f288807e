"""NVIDIA's two libraries `tensorrt` and `tensorrt_rtx`: found, imported, listened to, and asked to read plans."""

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
    """One of the two, by the name of its backend. Nothing is imported before `vendor` is called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._module = name.replace("-", "_")

    def installed(self) -> str | None:
        """The version that is installed; None: none, or no `onnx`, which every build reads the file's metadata with."""
        return _installed(self.name) if find_spec(self._module) and find_spec("onnx") else None

    def vendor(self) -> Any:
        """The module. Raises BackendError where it cannot be imported."""
        try:
            return import_module(self._module)
        except Exception as error:  # its start-up code loads libraries in ways of its own
            remedy = f"pip install --upgrade 'depthkit[{self.name}]'"
            raise BackendError(f"{self._module} cannot be imported ({error}); {remedy}") from error

    @cached_property
    def fault(self) -> str:
        """Why the library does not start on this machine's GPU, in its own words; empty: it does. Found out once."""
        try:
            trt = self.vendor()
            with self.listening("cannot start"):
                trt.Runtime(self.logger())
        except BackendError as error:
            return str(error)
        return ""

    def logger(self) -> Any:
        """The module's one logger, for all that takes one; it keeps silent. See `listening`."""
        return _logger(self._module)

    @contextmanager
    def listening(self, what: str) -> Iterator[list[str]]:
        """Yield a list to which the vendor's warnings and errors go, for it logs them and answers None or False.

        The one boundary at which its exceptions become BackendError, which begins with `what`.
        """
        logger, said = self.logger(), list[str]()
        logger.listeners[id(said)] = said
        try:
            yield said
        except (RuntimeError, TypeError, ValueError) as error:  # what pybind11 raises, also where a constructor fails
            raise BackendError(f"{self.name} {what}: {words([*said, str(error)])}") from error
        finally:
            del logger.listeners[id(said)]

    def deserialize(self, plan: Any, built: str | None = None) -> Any:
        """An `ICudaEngine` of a plan, host code in which is not allowed to run.

        Args:
            plan: bytes or a buffer.
            built: the version that built it; None: the one that is installed.

        Raises:
            BackendError: the vendor refuses, in its own words.
        """
        trt = self.vendor()
        with self.listening("cannot read the engine") as said:
            if built in {None, _installed(self.name)}:
                runtime = trt.Runtime(self.logger())
            else:
                runtime = _lean(self._module, str(built))
            engine = None
            if runtime is not None:
                runtime.engine_host_code_allowed = False
                engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"{self.name} cannot read the engine: {words(said)}")
        return engine


def lean_runtime(built: str) -> Path | None:
    """The library of TensorRT's lean runtime of exactly the version `built`, where pip installed it."""
    spec = find_spec("tensorrt_lean_libs")
    if spec is None or _installed("tensorrt-lean") != built:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return next((path for folder in folders for path in folder.glob("libnvinfer_lean.so*")), None)


def words(said: Iterable[str]) -> str:
    """What the vendor said, on one line and each line once.

    >>> words(["no kernel", "In catchCudaError: no driver"]), words([])
    ('no kernel', 'it does not say why')
    """
    lines = dict.fromkeys(line.strip() for text in said for line in text.splitlines() if line.strip())
    # A builder without a driver adds this to every error; it tells only where nothing else does.
    telling = [line for line in lines if "catchCudaError" not in line] or list(lines)
    return "; ".join(telling) or "it does not say why"


def numbers(version: str) -> tuple[int, ...]:
    """A version to compare.

    >>> numbers("10.12") <= numbers("10.12.0.36") < numbers("11.4.0.106")
    True
    """
    return tuple(int(each) for each in re.findall(r"\d+", version))


def _installed(name: str) -> str | None:
    """The version of one of NVIDIA's distributions, whose names also come with the CUDA release they are for."""
    for distribution in (name, f"{name}-cu13", f"{name}-cu12"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


@cache
def _logger(module: str) -> Any:
    """It lives for ever: the vendor keeps a pointer to it, and no reference."""
    trt = import_module(module)
    worth_telling = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants it by name
            self.listeners: dict[int, list[str]] = {}

        def log(self, severity: Any, message: str) -> None:
            if severity in worth_telling:
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
    """The runtime that loads lean ones. It lives for ever: they need it, and hold no reference to it."""
    trt = import_module(module)
    return trt.Runtime(_logger(module))
