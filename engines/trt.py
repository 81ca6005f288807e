"""TensorRT and TensorRT-RTX: one builder for two vendor modules, which have one API and do not read each other's plans.

The network is strongly typed, so precision is what the ONNX file stores: TensorRT 11 knows no other way, and TensorRT
10 has it, too. TensorRT times kernels on the GPU that will run the engine. TensorRT-RTX compiles for compute
capabilities, without a GPU, and chooses kernels when the engine is opened.
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
    """What both take.

    Attributes:
        tf32: multiply FP32 with 10 bits of mantissa, on GPUs that do; TensorRT's own default.
        workspace_mib: GPU memory that a kernel may use for itself, in MiB; 0: all there is.
    """

    tf32: bool = False
    workspace_mib: Annotated[int, Field(ge=0)] = 0

    def target(self) -> Fingerprint:
        """The device that is built for. Raises BackendError."""
        raise NotImplementedError

    def configure(self, trt: Any, config: Any) -> None:
        """Set an `IBuilderConfig`."""
        set_or_clear = config.set_flag if self.tf32 else config.clear_flag
        set_or_clear(trt.BuilderFlag.TF32)
        if self.workspace_mib:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace_mib << 20)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the inspector tells names only

    @contextmanager
    def timings(self, config: Any, version: str) -> Iterator[None]:
        """What is to be kept of this build for the next one."""
        yield

    def accepts_version(self, built: str, here: str) -> bool:
        """See `Backend.accepts_version`."""
        return built == here


@dataclass(frozen=True, config=STRICT)
class TensorRTOptions(_Options):
    """How TensorRT builds.

    Attributes:
        optimization_level: 0 (builds fast) to 5 (looks for the fastest kernels).
        hardware_compatibility: GPUs that may run the engine: "none": this model of GPU; "same-compute-capability";
            "ampere+": all of compute capability 8.0 and later. The wider, the slower.
        version_compatible: later TensorRT releases of the same major version may run the engine, where the lean runtime
            of the building release is installed beside them (`pip install tensorrt-lean==VERSION`).
        timing_cache: keep what kernels took, and do not time them again.
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
            # By default such a plan carries the lean runtime, which is host code, and no plan may run host code here.
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)

    @contextmanager
    def timings(self, config: Any, version: str) -> Iterator[None]:
        """See `_Options.timings`: the cache of this release and GPU, which all builds share."""
        if not self.timing_cache:
            yield
            return
        name = f"tensorrt-{version}-{gpu_fingerprint().name}.cache"
        path = timing_cache_path(re.sub(r"[^\w.-]+", "-", name))
        cache = _stored_timings(config, path)
        if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another driver or GPU
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
        # version" (support matrix); without host code in them, by the lean runtime of the release that built them.
        before, now = numbers(built), numbers(here)
        return before[0] == now[0] and before < now and lean_runtime(built) is not None


@dataclass(frozen=True, config=STRICT)
class RtxOptions(_Options):
    """How TensorRT-RTX builds.

    Attributes:
        compute_capability: GPUs that may run the engine, for instance "89" or "75,86,89,120"; "": this machine's, or
            where it has none every architecture from Ampere on that the library knows. Turing (75) is left out as it is
            by TensorRT-RTX's own default: its support matrix says that it makes an engine for several slower. `target`
            refuses what the library does not list.
    """

    compute_capability: str = ""

    def target(self) -> Fingerprint:
        """See `_Options.target`."""
        return Fingerprint("gpu", "", " ".join(f"sm_{each}" for each in self._architectures(TENSORRT_RTX.vendor())))

    def configure(self, trt: Any, config: Any) -> None:
        """See `_Options.configure`."""
        super().configure(trt, config)
        # RTX may otherwise allocate while it runs, and what allocates cannot be recorded as a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        architectures = self._architectures(trt)
        config.num_compute_capabilities = len(architectures)
        for index, each in enumerate(architectures):
            if not config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{each}"], index):
                raise BackendError(f"tensorrt-rtx does not build for compute capability {each}")

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
                f"tensorrt-rtx has no compute capability {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(map(str, listed))}, written as in compute_capability=86,89"
            )
        return sorted(map(int, asked))


_O = TypeVar("_O", bound=_Options)


class TensorRT(Vendor, Backend[_O]):
    """Either of the two; see `Backend`. Its session reads plans through `Vendor`, too."""

    def __init__(self, name: str, extension: str, options: type[_O], *, oldest: str, cross_builds: bool) -> None:
        super().__init__(name)
        self.extension = extension
        self.options = options
        self._oldest = oldest
        self._cross_builds = cross_builds

    def availability(self) -> Availability:
        """See `Backend.availability`. Only where there is a GPU the library is imported, and started once."""
        installed = self.installed()
        extra = f"'depthkit[{self.name}]'"
        if installed is None:
            return Availability(None, f"{self._module} or onnx is not installed", f"pip install {extra}")
        if numbers(installed) < numbers(self._oldest):
            reason = f"{installed} is installed, and {self._oldest} or later is needed"
            return Availability(None, reason, f"pip install --upgrade {extra}")
        builds = installed if self._cross_builds else None
        gpu = find_gpu()
        if isinstance(gpu, str):
            does = "builds here, for other machines; runs on a GPU" if builds else "builds and runs on a GPU"
            remedy = f"pip install {extra} on a machine with an NVIDIA GPU and its driver"
            return Availability(builds, f"{does}, and {gpu}", remedy, runs=False)
        if self.fault:
            return Availability(None, self.fault)
        try:
            self.options().target()
        except BackendError as error:
            return Availability(builds, str(error), runs=False)
        return Availability(installed, f"on {gpu.name}")

    def here(self) -> Fingerprint:
        """This machine's GPU."""
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
        with self.listening(f"cannot build {onnx}") as said:
            builder = trt.Builder(self.logger())
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            parser = trt.OnnxParser(network, self.logger())  # owns the weights until the engine is built
            if not parser.parse_from_file(str(onnx)):
                raise BackendError(f"{self.name} cannot build {onnx}: {_parser_errors(parser)}")
            layers = network_layers(trt, network)
            self.found_precision(attribute(layers, description.convolutions), asked)  # before minutes are spent
            config = builder.create_builder_config()
            options.configure(trt, config)
            if isinstance(spec.shape[0], Dim):
                _add_profile(builder, config, spec)
            with options.timings(config, trt.__version__):
                plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise BackendError(f"{self.name} cannot build {onnx}: {words(said)}")
        readable = not isinstance(find_gpu(), str) and self.here().accepts(options.target())
        built = self.inspect_plan(plan, layers) if readable else Built(layers, layers_from="network")
        engine.write_bytes(plan)
        return built

    def inspect_plan(self, plan: Any, network: tuple[Layer, ...] = ()) -> Built:
        """What a plan, as bytes or a buffer, tells of itself: see `read_layers`. Raises BackendError."""
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
    """An `ITimingCache` of a file, empty where that cannot be read: a cache may be lost, a build may not."""
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    return config.create_timing_cache(stored) or config.create_timing_cache(b"")


def _parser_errors(parser: Any) -> str:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "; ".join(f"node {each.node_name()} ({each.node_operator()}): {words([each.desc()])}" for each in errors)
