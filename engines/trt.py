"""TensorRT and TensorRT-RTX: one builder for two vendor modules with the same API but different plan formats.

The network is strongly typed, so its precision is the ONNX file's. TensorRT 11 supports only this, TensorRT 10 also
does. TensorRT times kernels on the GPU that will run the engine. TensorRT-RTX compiles for compute capabilities,
without a GPU, and chooses kernels when the engine is opened.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..documents import STRICT
from ..errors import BackendError, OutputError
from ..files import atomic_write
from ..onnx_graph import describe_onnx
from ..precisions import Precision
from ..spec import Dim, TensorSpec
from .backend import Availability, Backend, Built, attribute
from .fingerprint import Fingerprint
from .gpu import find_gpu, gpu_fingerprint
from .manifest import Layer
from .store import locked, timing_cache_path
from .trt_inspect import inspect_engine, network_layers, read_layers
from .trt_vendor import Vendor, lean_runtime, numbers, words

__all__ = ["TENSORRT", "TENSORRT_RTX", "RtxOptions", "TensorRT", "TensorRTOptions"]

_AMPERE: Final = 80  # compute capability 8.0


@dataclass(frozen=True, config=STRICT)
class _Options:
    """Options of both backends.

    Attributes:
        tf32: multiply FP32 with 10 bits of mantissa, on GPUs that support it. TensorRT's own default is to do so.
        workspace_mib: GPU memory in MiB that a kernel may use as workspace; 0: no limit.
    """

    tf32: bool = False
    workspace_mib: Annotated[int, Field(ge=0)] = 0

    def target(self) -> Fingerprint:
        """The device to build for. Raises BackendError."""
        raise NotImplementedError

    def configure(self, trt: Any, config: Any) -> None:
        """Set the options in an `IBuilderConfig`. Raises BackendError."""
        set_or_clear = config.set_flag if self.tf32 else config.clear_flag
        set_or_clear(trt.BuilderFlag.TF32)
        if self.workspace_mib:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace_mib << 20)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise the inspector reports names only

    @contextmanager
    def timings(self, config: Any, version: str) -> Iterator[None]:
        """Use the timing cache of earlier builds in the block, and save it afterwards; without a cache, do nothing."""
        yield

    def accepts_version(self, built: str, here: str) -> bool:
        """See `Backend.accepts_version`."""
        return built == here


@dataclass(frozen=True, config=STRICT)
class TensorRTOptions(_Options):
    """How TensorRT builds.

    Attributes:
        optimization_level: 0 (fast build) to 5 (fastest kernels).
        hardware_compatibility: GPUs that may run the engine: "none": this model of GPU; "same-compute-capability";
            "ampere+": compute capability 8.0 and later. The more GPUs, the slower.
        version_compatible: later TensorRT releases of the same major version may run the engine, if the lean runtime
            of the building release is installed too (`pip install tensorrt-lean==VERSION`).
        timing_cache: save the timings of kernels and reuse them in later builds.
    """

    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    hardware_compatibility: Literal["none", "same-compute-capability", "ampere+"] = "none"
    version_compatible: bool = False
    timing_cache: bool = True

    def target(self) -> Fingerprint:
        """See `_Options.target`."""
        here = gpu_fingerprint()
        if self.hardware_compatibility == "ampere+":
            return Fingerprint("gpu", "", f"sm_{_AMPERE}+")
        return here if self.hardware_compatibility == "none" else replace(here, name="")

    def configure(self, trt: Any, config: Any) -> None:
        """See `_Options.configure`."""
        super().configure(trt, config)
        config.builder_optimization_level = self.optimization_level
        config.hardware_compatibility_level = {
            "none": trt.HardwareCompatibilityLevel.NONE,
            "same-compute-capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
            "ampere+": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        }[self.hardware_compatibility]
        if self.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            # By default such a plan contains the lean runtime, which is host code, and depthkit forbids host code.
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)

    @contextmanager
    def timings(self, config: Any, version: str) -> Iterator[None]:
        """See `_Options.timings`: all builds by this release on this GPU share a cache."""
        if not self.timing_cache:
            yield
            return
        name = f"tensorrt-{version}-{gpu_fingerprint().name}.cache"
        path = timing_cache_path(re.sub(r"[^\w.-]+", "-", name))
        cache = _stored_timings(config, path)
        if not config.set_timing_cache(cache, ignore_mismatch=False):  # made with another driver or GPU
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        yield
        try:
            with locked(path):
                meanwhile = _stored_timings(config, path)  # another build may have added to it
                cache.combine(meanwhile, ignore_mismatch=False)
                with atomic_write(path) as temporary:
                    temporary.write_bytes(cache.serialize())
        except (OutputError, OSError) as error:
            warnings.warn(f"the next build has to time its kernels again: {error}", stacklevel=3)

    def accepts_version(self, built: str, here: str) -> bool:
        """See `Backend.accepts_version`."""
        if built == here or not self.version_compatible:
            return built == here
        # "Engines built with the version-compatible flag can run with newer TensorRT versions within the same major
        # version" (support matrix). As they contain no host code, they need the building release's lean runtime.
        before, now = numbers(built), numbers(here)
        return before[0] == now[0] and before < now and lean_runtime(built) is not None


@dataclass(frozen=True, config=STRICT)
class RtxOptions(_Options):
    """How TensorRT-RTX builds.

    Attributes:
        compute_capability: GPUs that may run the engine, for instance "89" or "75,86,89,120"; "": this machine's GPU,
            or without a GPU every architecture from Ampere on that the library supports. Turing (75) is not included,
            as in TensorRT-RTX's own default: by its support matrix, Turing slows down an engine for several
            architectures. `target` rejects values that the library does not list.
    """

    compute_capability: str = ""

    def target(self) -> Fingerprint:
        """See `_Options.target`."""
        return Fingerprint("gpu", "", " ".join(f"sm_{each}" for each in self._architectures(TENSORRT_RTX.vendor())))

    def configure(self, trt: Any, config: Any) -> None:
        """See `_Options.configure`."""
        super().configure(trt, config)
        # Otherwise RTX may allocate memory during a run, which cannot be recorded as a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        architectures = self._architectures(trt)
        config.num_compute_capabilities = len(architectures)
        for index, each in enumerate(architectures):
            if not config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{each}"], index):
                raise BackendError(f"tensorrt-rtx cannot build for compute capability {each}")

    def _architectures(self, trt: Any) -> list[int]:
        """Compute capabilities times ten, sorted. Raises BackendError for one that the library does not list."""
        names = (re.fullmatch(r"SM(\d+)", name) for name in trt.ComputeCapability.__members__)
        listed = sorted(int(name[1]) for name in names if name)
        gpu = find_gpu()
        if self.compute_capability:
            asked = set(self.compute_capability.split(","))
        elif isinstance(gpu, str):
            asked = {str(each) for each in listed if each >= _AMPERE}
        else:
            asked = {gpu.architecture.removeprefix("sm_")}
        if unknown := sorted(asked.difference(map(str, listed))):
            raise BackendError(
                f"tensorrt-rtx does not support compute capability {', '.join(map(repr, unknown))}; "
                f"choose from {', '.join(map(str, listed))}, for example compute_capability=86,89"
            )
        return sorted(map(int, asked))


_O = TypeVar("_O", bound=_Options)


class TensorRT(Vendor, Backend[_O]):
    """TensorRT or TensorRT-RTX; see `Backend`. Its session also reads plans through `Vendor`."""

    def __init__(self, name: str, extension: str, options: type[_O], *, oldest: str, cross_builds: bool) -> None:
        super().__init__(name)
        self.extension = extension
        self.options = options
        self._oldest = oldest
        self._cross_builds = cross_builds

    def availability(self) -> Availability:
        """See `Backend.availability`. Imports and starts the library only if there is a GPU."""
        installed = self.installed()
        extra = f"'depthkit[{self.name}]'"
        if installed is None:
            return Availability(None, f"{self._module} or onnx is not installed", f"pip install {extra}")
        if numbers(installed) < numbers(self._oldest):
            reason = f"{installed} is installed, but {self._oldest} or later is needed"
            return Availability(None, reason, f"pip install --upgrade {extra}")
        builds = installed if self._cross_builds else None
        gpu = find_gpu()
        if isinstance(gpu, str):
            does = "builds here for other machines; running needs a GPU" if builds else "needs a GPU to build and run"
            remedy = f"pip install {extra} on a machine with an NVIDIA GPU and its driver"
            return Availability(builds, f"{does}, but {gpu}", remedy, runs=False)
        if self.fault:
            return Availability(None, self.fault)
        try:
            self.options().target()
        except BackendError as error:
            return Availability(builds, str(error), runs=False)
        return Availability(installed, f"on {gpu.name}")

    def here(self) -> Fingerprint:
        """See `Backend.here`: this machine's GPU."""
        return gpu_fingerprint()

    def target(self, options: _O) -> Fingerprint:
        """See `Backend.target`."""
        return options.target()

    def accepts_version(self, built: str, here: str, options: _O) -> bool:
        """See `Backend.accepts_version`."""
        return options.accepts_version(built, here)

    def build(self, onnx: Path, engine: Path, asked: Precision, options: _O) -> Built:
        """See `Backend.build`."""
        trt = self.vendor()
        description = describe_onnx(onnx)
        spec = description.model.input
        with self.listening(f"cannot build {onnx}") as messages:
            builder = trt.Builder(self.logger())
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            parser = trt.OnnxParser(network, self.logger())  # owns the weights until the engine is built
            if not parser.parse_from_file(str(onnx)):
                raise BackendError(f"{self.name} cannot build {onnx}: {_parser_errors(parser)}")
            layers = network_layers(trt, network)
            self.found_precision(attribute(layers, description.products), asked)  # fail before a build of minutes
            config = builder.create_builder_config()
            options.configure(trt, config)
            if isinstance(spec.shape[0], Dim):
                _add_profile(builder, config, spec)
            with options.timings(config, trt.__version__):
                plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise BackendError(f"{self.name} cannot build {onnx}: {words(messages)}")
        readable = not isinstance(find_gpu(), str) and self.here().accepts(options.target())
        built = self.inspect_plan(plan, layers) if readable else Built(layers, layers_from="network")
        engine.write_bytes(plan)
        return built

    def inspect_plan(self, plan: Any, network: tuple[Layer, ...] = ()) -> Built:
        """Read the layers of a plan, given as bytes or a buffer; see `read_layers`. Raises BackendError."""
        engine = self.deserialize(plan)
        with self.listening("cannot inspect the engine"):
            return read_layers(inspect_engine(self.vendor(), engine), network)


TENSORRT: Final = TensorRT("tensorrt", "plan", TensorRTOptions, oldest="10.12", cross_builds=False)
TENSORRT_RTX: Final = TensorRT("tensorrt-rtx", "rtx", RtxOptions, oldest="1.2", cross_builds=True)


def _add_profile(builder: Any, config: Any, spec: TensorSpec) -> None:
    batch, *rest = spec.shape
    assert isinstance(batch, Dim)
    profile = builder.create_optimization_profile()
    profile.set_shape(spec.name, *((frames, *rest) for frames in (batch.min, batch.opt, batch.max)))
    config.add_optimization_profile(profile)


def _stored_timings(config: Any, path: Path) -> Any:
    """Read an `ITimingCache` from a file; an empty one if that fails, because a build must not fail for its cache."""
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    return config.create_timing_cache(stored) or config.create_timing_cache(b"")


def _parser_errors(parser: Any) -> str:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "; ".join(f"node {each.node_name()} ({each.node_operator()}): {words([each.desc()])}" for each in errors)
