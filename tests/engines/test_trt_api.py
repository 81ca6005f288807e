"""The code's own use of TensorRT's Python API, against a table of the names that each release has.

`tensorrt` cannot be installed without NVIDIA's package index, so nothing else tells that a name is gone in one of its
releases. The code is read as it stands: names on the vendor's module (which is called `trt` or `vendor`), names on
objects whose class is known (from how they were made, or from what a parameter is called), and names on all others.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from ..support import needs_rtx

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = sorted([*(ROOT / "engines").glob("trt*.py"), *(ROOT / "runtime").glob("trt*.py")])
TABLE: Final[Mapping[str, Mapping[str, list[str]]]] = {
    owner: names
    for owner, names in json.loads((Path(__file__).parent / "tensorrt_api.json").read_text()).items()
    if owner != "_about"
}
"""Class or function -> name in it ("": itself) -> releases that have it."""
MODULES: Final = frozenset({"trt", "vendor", "_vendor"})

TENSORRT: Final = ("10.13", "10.16", "11.4")
RTX: Final = ("rtx1.7",)
FOR_ONE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"TensorRTOptions": TENSORRT, "RtxOptions": RTX})
"""Classes whose code runs with one of the two libraries; all other code runs with both."""

UNLISTED: Final = frozenset({"IConvolutionLayer.kernel"})
"""The table has no classes of single layers; these are in all its releases (NVIDIA/TensorRT, pyGraph.cpp)."""

MADE_BY: Final[Mapping[str, str]] = MappingProxyType({
    "create_network": "INetworkDefinition", "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile", "build_serialized_network": "IHostMemory",
    "create_timing_cache": "ITimingCache", "get_timing_cache": "ITimingCache", "get_layer": "ILayer",
    "get_input": "ITensor", "get_output": "ITensor", "get_error": "ParserError", "load_runtime": "Runtime",
    "deserialize_cuda_engine": "ICudaEngine", "create_engine_inspector": "EngineInspector",
    "create_execution_context": "IExecutionContext",
})  # fmt: skip
CALLED: Final[Mapping[str, str]] = MappingProxyType({
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "parser": "OnnxParser",
    "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext", "inspector": "EngineInspector",
    "profile": "IOptimizationProfile", "layer": "ILayer", "tensor": "ITensor",
})  # fmt: skip
"""What unannotated objects and parameters of type Any are, by name."""

TAKES_ENUM: Final = frozenset({
    "create_network", "set_flag", "clear_flag", "get_flag", "set_memory_pool_limit", "get_memory_pool_limit",
    "set_compute_capability", "set_preview_feature", "set_tactic_sources", "get_engine_information",
    "create_execution_context",
})  # fmt: skip
"""Methods whose first argument is an enumerator, or flags made of some."""
IS_ENUM: Final = frozenset({
    "flags", "profiling_verbosity", "hardware_compatibility_level", "engine_capability", "default_device_type",
    "runtime_platform", "tiling_optimization_level", "tempfile_control_flags", "nvtx_verbosity",
})  # fmt: skip


@cache
def _ours() -> frozenset[str]:
    """Names of fields and methods of our own classes, in the folders of these sources and on the ground floor."""
    files = (path for folder in (ROOT, ROOT / "engines", ROOT / "runtime") for path in folder.glob("*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    return frozenset(
        {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        | {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
        | {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_set_on_self(node)}
    )


def _is_set_on_self(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and _chain(node) == ["self", node.attr]


def _has(owner: str, name: str, releases: tuple[str, ...]) -> bool:
    return set(releases) <= set(_names(owner).get(name, ()))


def _names(owner: str) -> Mapping[str, list[str]]:
    """The table's entry of a class; of one that it lacks, that of ILayer and what is unlisted."""
    if owner in TABLE:
        return TABLE[owner]
    unlisted = {name.partition(".")[2]: [*TENSORRT, *RTX] for name in UNLISTED if name.startswith(f"{owner}.")}
    return {"": [*TENSORRT, *RTX], **TABLE["ILayer"], **unlisted} if unlisted else {}


class Checker(ast.NodeVisitor):
    """Collects faults of one source file."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.releases: tuple[str, ...] = (*TENSORRT, *RTX)
        self.classes: dict[str, str] = {}

    def fault(self, node: ast.expr, what: str) -> None:
        self.faults.append(f"line {node.lineno}: {ast.unparse(node)}: {what}")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self.releases = self.releases, FOR_ONE.get(node.name, self.releases)
        self.generic_visit(node)
        self.releases = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = dict(self.classes)
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            known = CALLED.get(argument.arg)
            if known and (argument.annotation is None or ast.unparse(argument.annotation) == "Any"):
                self.classes[argument.arg] = known
            else:
                self.classes.pop(argument.arg, None)
        self.generic_visit(node)
        self.classes = before

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name) and (known := self.class_of(node.value)):
                self.classes[target.id] = known
            elif isinstance(target, ast.Attribute) and target.attr == "__class__" and (names := _of_module(node.value)):
                self.classes[ast.unparse(target.value)] = names[0]
            elif isinstance(target, ast.Attribute) and target.attr in IS_ENUM:
                self.check_enum(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Name) and called.id in {"getattr", "hasattr", "setattr", "vars"}:
            self.fault(node, "names of the API are written out, so that they can be checked")
        if isinstance(called, ast.Attribute) and node.args:
            if called.attr in TAKES_ENUM:
                self.check_enum(node.args[0])
            if _of_module(called) and _is_number(node.args[0]):
                self.check_enum(node.args[0])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        names = _of_module(node.value)
        if names and isinstance(node.slice, ast.Constant):
            self.check_names(node, [names[0], str(node.slice.value)])
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if names := _of_module(node):
            self.check_names(node, [name for name in names if not name.startswith("__")])
            return
        if _chain(node) == ["self", node.attr] or node.attr.startswith("__"):
            return  # of a class of ours
        if owner := self.class_of(node.value):
            if not _has(owner, node.attr, self.releases):
                self.fault(node, f"{owner} has it in {_names(owner).get(node.attr, 'no release')}")
        elif (
            any(node.attr in names for names in TABLE.values())
            and node.attr not in _ours()
            and not any(_has(each, node.attr, self.releases) for each in TABLE)
        ):
            self.fault(node, "no class has it in every release")
        self.generic_visit(node)

    def check_names(self, node: ast.expr, names: list[str]) -> None:
        owner, *members = names or [""]
        if names and not _has(owner, "", self.releases):
            self.fault(node, f"there is no trt.{owner} in every release")
        elif members and not _has(owner, members[0], self.releases):
            self.fault(node, f"{owner} has {members[0]} in {_names(owner).get(members[0], 'no release')}")

    def check_enum(self, node: ast.expr) -> None:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            self.check_enum(node.left)
            self.check_enum(node.right)
        elif any(map(_is_number, ast.walk(node))) and not any(map(_of_module, ast.walk(node))):
            self.fault(node, "enumerators are named: their numbers differ between releases")

    def class_of(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return self.classes.get(node.id)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return None
        names = _of_module(node.func)
        return names[0] if len(names) == 1 and names[0] in TABLE else MADE_BY.get(node.func.attr)


def _of_module(node: ast.AST) -> list[str]:
    """The names after the vendor's module: of `self._vendor.DataType.HALF`, DataType and HALF."""
    chain = _chain(node)
    after = [index for index, name in enumerate(chain, start=1) if name in MODULES]
    return chain[after[0] :] if after else []


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _chain(node: ast.AST) -> list[str]:
    """`a.b.c` as its names; empty for an expression that is no such chain."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _chain(node.value)):
        return [*before, node.attr]
    return []


def _faults(source: str) -> list[str]:
    checker = Checker()
    checker.visit(ast.parse(source))
    return checker.faults


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_name_of_the_api_is_there_in_every_release(path: Path) -> None:
    assert _faults(path.read_text()) == []


def test_checker_sees_the_builder() -> None:
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    names = {".".join(_of_module(node)) for node in nodes}
    assert {"Builder", "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.TF32"} <= names
    assert set(FOR_ONE) <= {node.name for node in nodes if isinstance(node, ast.ClassDef)}


@needs_rtx
def test_the_table_agrees_with_the_library_that_is_installed() -> None:
    import tensorrt_rtx

    listed = {f"{owner}.{name}" for owner in TABLE for name in TABLE[owner] if name and "rtx1.7" in TABLE[owner][name]}
    assert len(listed) > 400
    assert [name for name in listed | UNLISTED if not _is_in(tensorrt_rtx, name)] == []


def _is_in(module: object, name: str) -> bool:
    owner, _, member = name.partition(".")
    return hasattr(getattr(module, owner, None), member)


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag has FP16 in"),
        ("if builder.platform_has_fast_fp16: pass", "Builder has it in"),
        ("config.int8_calibrator = None", "IBuilderConfig has it in"),
        ("trt.Builder(None).create_builder_config().int8_calibrator", "IBuilderConfig has it in"),
        ("made = trt.Builder(None).create_builder_config(); made.quantization_flags", "IBuilderConfig has it in"),
        ("something.int8_calibrator", "no class has it in every release"),
        ("self.context.all_shape_inputs_specified", "no class has it in every release"),
        ("layer.precision = trt.DataType.HALF", "ILayer has it in"),
        ("layer.kernel", "ILayer has it in no release"),
        ("layer.__class__ = trt.IConvolutionLayer; layer.colonel", "IConvolutionLayer has it in no release"),
        ("trt.BuilderFlag.__members__['FP16']", "BuilderFlag has FP16 in"),
        ("trt.Logger2", "there is no trt.Logger2"),
        ("self._vendor.Logger2", "there is no trt.Logger2"),
        ("made = self._vendor.BuilderFlag; made.FP16", "no class has it in every release"),
        ("trt.ComputeCapability.SM89", "there is no trt.ComputeCapability in every release"),
        ("config.set_frag(trt.BuilderFlag.TF32)", "IBuilderConfig has it in no release"),
        ("getattr(trt.BuilderFlag, 'FP16', None)", "are written out"),
        ("builder.create_network(1)", "enumerators are named"),
        ("builder.create_network(1 << 1)", "enumerators are named"),
        (
            "builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) | 4)",
            "enumerators are named",
        ),
        ("config.set_flag(7)", "enumerators are named"),
        ("config.set_memory_pool_limit(0, 1 << 30)", "enumerators are named"),
        ("config.profiling_verbosity = 2", "enumerators are named"),
        ("trt.BuilderFlag(7)", "enumerators are named"),
    ],
)
def test_missing_names_and_hard_coded_numbers_are_found(planted: str, says: str) -> None:
    source = f"def build(trt: Any, builder: Any, network: Any, config: Any, layer: Any):\n    {planted}\n"
    (fault,) = _faults(source)
    assert says in fault


@pytest.mark.parametrize(
    "written",
    [
        "config.set_flag(trt.BuilderFlag.TF32)",
        "builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))",
        "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)",
        "config.builder_optimization_level = 3",
        "path.write_bytes(builder.build_serialized_network(network, config))",
        "self.precision = 'fp16'",
        "path.write_text(str(path.parent))",
    ],
)
def test_names_of_every_release_are_accepted(written: str) -> None:
    assert _faults(f"def build(trt: Any, builder: Any, network: Any, config: Any):\n    {written}\n") == []


def test_code_for_one_library_may_use_its_own_names() -> None:
    only_rtx = (
        "class {}:\n    def configure(self, trt: Any, config: Any):\n        config.num_compute_capabilities = 1\n"
    )
    assert _faults(only_rtx.format("RtxOptions")) == []
    assert _faults(only_rtx.format("TensorRTOptions"))
    only_tensorrt = "class {}:\n    def configure(self, trt: Any, tensor: Any):\n        tensor.location\n"
    assert _faults(only_tensorrt.format("TensorRTOptions")) == []
    assert _faults(only_tensorrt.format("Anything"))
