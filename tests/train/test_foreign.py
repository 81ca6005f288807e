"""Networks of other packages: imported, tried out, and refused with one sentence; docs/networks.md works as written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from depthkit.cli import run as depthkit
from depthkit.data.scenes.scene_dataset import Scenes
from depthkit.errors import BundleError, SpecError, UserError
from depthkit.files import sha256, sha256_text
from depthkit.onnx_graph import describe_onnx
from depthkit.reference import read_reference
from depthkit.spec import Preprocessing
from depthkit.train.bundle import import_weights, load_weights, read_bundle
from depthkit.train.document import read_document
from depthkit.train.networks import build_network, check_network, count_macs, count_parameters

from ..support import run_python

Captured = pytest.CaptureFixture[str]
Write = Callable[[str], str]
PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 1, 3, padding=1)
    def forward(self, image):
        return self.conv(image).sigmoid()
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Write]:
    """Write a module into the current folder, and return its name."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    prefix = "m" + sha256_text(request.node.nodeid)[:8]

    def write_module(source: str) -> str:
        name = f"{prefix}_{len(list(tmp_path.glob('*.py')))}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield write_module
    for name in set(sys.modules) - before:
        if name.startswith(prefix):
            del sys.modules[name]


def test_network_of_the_current_folder_is_a_new_one_each_time(write: Write) -> None:
    module = write(f"{NET}\ndef make():\n    return Net()\n")
    path = list(sys.path)
    first, second, made = (build_network(f"{module}:{name}") for name in ("Net", "Net", "make"))
    assert first is not second
    assert type(first) is type(second) is type(made)
    assert sys.path == path


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        (NET, "nowhere.at_all:Net", ["no module nowhere.at_all", "install it"]),
        (NET, "{}.deeper:Net", ["no module", "deeper"]),
        (NET, "{}:Nett", ["has no Nett", "it has Net"]),
        ("x = 1", "{}:Net", ["has no Net", "torch.nn.Module"]),
        (NET + "SIZE = 7", "{}:SIZE", ["is a int", "it has Net"]),
        ("def make(): return [1]", "{}:make", ["returned a list", "torch.nn.Module"]),
        ("def make(width): pass", "{}:make", ["TypeError", "width", "without arguments"]),
        ("import timber_of_mine", "{}:Net", ["ModuleNotFoundError", "timber_of_mine", "python -c 'import"]),
        ("x = 1 / 0", "{}:Net", ["ZeroDivisionError", "python -c 'import"]),
        ("def oh no", "{}:Net", ["SyntaxError", "python -c 'import"]),
    ],
)
def test_network_that_cannot_be_built_is_one_sentence(write: Write, source: str, name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_network(name.format(write(source)))
    assert all(word in str(caught.value) for word in words), caught.value


class _Answers(nn.Module):
    """A network that answers what `change` makes of a good answer."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.change = change

    def forward(self, image: Tensor) -> object:
        return self.change(self.norm(self.conv(image)))


def _depends_on_values(depth: Tensor) -> Tensor:
    return depth if float(depth.sum()) < 1e9 else depth.neg()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda depth: depth.repeat(1, 2, 1, 1), ["2 x 2 x 10 x 14", "2 x 1 x 10 x 14"]),
        (lambda depth: depth[..., ::2, :], ["2 x 1 x 5 x 14"]),
        (lambda depth: depth.mean(0, keepdim=True), ["returns 1 x 1 x 10 x 14"]),
        (lambda depth: (depth, depth), ["0 (2 x 1 x 10 x 14), 1 (2 x 1 x 10 x 14)", "--output"]),
        (lambda _: None, ["NoneType"]),
        (
            lambda depth: depth + torch.zeros(3, device=depth.device),
            ["does not accept", "2 x 3 x 10 x 14", "RuntimeError"],
        ),
        (lambda depth: _depends_on_values(depth)[..., 1:], ["returns 2 x 1 x 10 x 13 "]),
    ],
    ids=["channels", "half", "one for all", "tuple", "none", "fails", "by values"],
)
def test_output_that_is_no_depth_is_named(change: Callable[[Tensor], object], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        check_network(_Answers(change), (10, 14))
    assert "_Answers" in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_network_that_cannot_run_without_values_is_tried_and_counted_for_real() -> None:
    plain, values = _Answers(lambda depth: depth), _Answers(_depends_on_values)
    assert count_macs(values, (10, 14)) == count_macs(plain, (10, 14)) == 10 * 14 * 27
    assert count_parameters(values) == 28 + 2


@pytest.mark.parametrize("change", [lambda depth: depth, _depends_on_values], ids=["meta", "cpu"])
def test_trial_leaves_the_network_as_it_was(change: Callable[[Tensor], Tensor]) -> None:
    network = _Answers(change).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check_network(network, (11, 13))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def _wide(layers: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(layers)])


def test_weights_that_do_not_fit_are_named_ten_at_most(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({**_wide(1).state_dict(), "0.weight": torch.zeros(3, 3, 2, 2), "odd": torch.zeros(1)}, path)
    with pytest.raises(BundleError) as caught:
        load_weights(_wide(12), path)
    message = str(caught.value)
    assert all(word in message for word in ("lacks", "1.weight", "12 more", "tensors: odd", "0.weight (3, 3, 2, 2)"))
    assert message.count("weight") + message.count("bias") < 15
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(BundleError, match=r"w\.safetensors.*save_file\(torch\.load"):
        load_weights(_wide(1), path)


def test_tied_weights_come_back_from_all_names_or_one(tmp_path: Path, write: Write) -> None:
    tied = NET.replace("padding=1)\n", "padding=1)\n        self.twin = self.conv\n", 1)
    network = f"{write(tied)}:Net"
    weights = build_network(network).state_dict()
    save_file({name: tensor for name, tensor in weights.items() if "twin" not in name}, tmp_path / "w.safetensors")
    _import(tmp_path / "run", network, tmp_path / "w.safetensors")
    found = read_bundle(tmp_path / "run").network.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def _import(folder: Path, network: str, weights: Path, high: float = 10.0, std: float = 1.0) -> None:
    preprocessing = Preprocessing("RGB", (0.0, 0.0, 0.0), (std, std, std))
    data = Scenes("val", size=(20, 28), count=9)
    import_weights(folder, network, weights, (10, 14), data, preprocessing=preprocessing, depth_range=(0.0, high))


def _weights(network: str, path: Path) -> Path:
    save_file(build_network(network).state_dict(), path)
    return path


def test_imported_weights_are_a_run_that_is_brought_up_to_date(tmp_path: Path, write: Write) -> None:
    network, folder = f"{write(NET)}:Net", tmp_path / "runs" / "Net"
    first, second = (_weights(network, tmp_path / f"{n}.safetensors") for n in "ab")
    _import(folder, network, first)
    bundle = read_bundle(folder)
    assert bundle.training is None
    assert (bundle.spec.network, bundle.spec.widths, bundle.spec.size) == (network, (), (10, 14))
    assert (bundle.spec.depth_range, bundle.spec.preprocessing.mean) == ((0.0, 10.0), (0.0, 0.0, 0.0))
    assert bundle.frames.images.shape == (8, 20, 28, 3)
    before = {path.name: sha256(path) for path in folder.iterdir()}
    _import(folder, network, first)
    assert {path.name: sha256(path) for path in folder.iterdir()} == before, "nothing has changed"
    _import(folder, network, second, high=20.0)
    assert read_bundle(folder).spec.depth_range == (0.0, 20.0)
    assert torch.equal(read_bundle(folder).network.state_dict()["conv.bias"], load_file(second)["conv.bias"])


def test_run_that_was_trained_or_is_of_another_is_not_overwritten(run: Path, tmp_path: Path, write: Write) -> None:
    one, other = (f"{write(NET)}:Net" for _ in range(2))
    weights, folder = _weights(one, tmp_path / "w.safetensors"), tmp_path / "Net"
    before = {path.name: sha256(path) for path in run.iterdir()}
    with pytest.raises(BundleError, match=r"compact that was trained here.*--runs"):
        _import(run, one, weights)
    assert {path.name: sha256(path) for path in run.iterdir()} == before
    _import(folder, one, weights)
    with pytest.raises(BundleError, match=rf"{one} that was imported.*--runs"):
        _import(folder, other, weights)
    assert read_document(folder).model.network == one


@pytest.mark.parametrize(("scale", "words"), [({"high": -1.0}, "LOW < HIGH"), ({"std": 0.0}, "std")], ids=str)
def test_invalid_range_or_std_is_refused(tmp_path: Path, write: Write, scale: dict[str, float], words: str) -> None:
    network = f"{write(NET)}:Net"
    with pytest.raises(SpecError, match=words):
        _import(tmp_path / "run", network, _weights(network, tmp_path / "w.safetensors"), **scale)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "{}:Net"], ["no run runs/Net", "depthkit adopt {}:Net", "depthkit train --network {}:Net"]),
        (["adopt", "{}:Net"], ["--weights"]),
        (["adopt", "runs/x", "--weights", "w.safetensors"], ["package.module:Network"]),
        (["adopt", "{}:Net", "--weights", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["adopt", "{}:Net", "--weights", "w.safetensors", "--std", "1,1"], ["R,G,B", "1,1"]),
        (["adopt", "{}:Net", "--weights", "w.safetensors", "--depth-range", "0,nan"], ["LOW,HIGH", "0,nan"]),
        (["adopt", "{}:Net", "--weights", "w.safetensors", "--depth-range", "10,1"], ["10,1", "LOW < HIGH"]),
        (["adopt", "{}:Net", "--weights", "w.safetensors", "--focal", "518.9"], ["518.9", "pixels", "width"]),
        (["adopt", "{}:Net", "--weights", "w.safetensors", "--focal", "0"], ["--focal"]),
    ],
)
def test_command_line_refuses_what_it_cannot_adopt(
    write: Write, capsys: Captured, arguments: list[str], words: list[str]
) -> None:
    module = write(NET)
    _weights(f"{module}:Net", Path("w.safetensors"))
    assert depthkit([word.format(module) for word in arguments]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert all(word.format(module) in message for word in words), message
    assert not Path("runs").exists()


def test_command_line_imports_a_run_and_keeps_it_for_its_network(write: Write, capsys: Captured) -> None:
    network, other = (f"{write(NET)}:Net" for _ in range(2))
    _weights(network, Path("w.safetensors"))
    export = ["export", network, "--onnx-only"]
    adopt = ["adopt", network, "--weights", "w.safetensors", "--size", "30x42", "--depth-range", "1,80"]
    assert depthkit(adopt) == 0
    assert "next: depthkit export runs/Net" in capsys.readouterr().out
    assert depthkit(export) == 0
    assert Path("runs/Net/Net-30x42.fp32.onnx").is_file()
    depths = read_reference(Path("runs/Net/Net-30x42.reference.npz")).depths
    assert 1 <= depths.min() < depths.max() <= 80
    assert "wrote" in capsys.readouterr().out
    assert depthkit(adopt) == depthkit(export) == 0
    assert "kept" in capsys.readouterr().out
    assert read_document(Path("runs/Net")).model.focal is None
    assert depthkit([*adopt, "--focal", "0.9"]) == depthkit(export) == 0
    assert "wrote" in capsys.readouterr().out, "the ONNX file has another focal length"
    assert describe_onnx(Path("runs/Net/Net-30x42.fp32.onnx")).model.focal == 0.9
    assert depthkit(["export", other]) == 2
    assert f"a run of {network}" in " ".join(capsys.readouterr().err.split())


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_page_about_networks_works_as_written(tmp_path: Path) -> None:
    """By the console script, which does not put the current folder on Python's path by itself."""
    for source in _blocks("python"):
        path = tmp_path / source.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    scripts = {"depthkit": [str(Path(sysconfig.get_path("scripts")) / "depthkit")], "python": [sys.executable]}
    seeded = "import torch, mypackage.module, mypackage.glpn; torch.manual_seed(0); "
    run_python("-c", seeded + "torch.save(mypackage.module.MyNet().state_dict(), 'checkpoint.pt')", cwd=tmp_path)
    run_python("-c", seeded + "mypackage.glpn.small().save_pretrained('glpn')", cwd=tmp_path)
    for typed in "".join(_blocks("console")).splitlines():
        command, *arguments = shlex.split(typed.removeprefix("$ "))
        line = [*scripts[command], *arguments]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "FAIL" not in done.stdout
    assert (tmp_path / "runs" / "MyNet" / "MyNet-52x72.fp16.onnx").is_file()
    metric = read_reference(tmp_path / "runs" / "MetricNet" / "MetricNet-52x72.reference.npz")
    assert 1 <= metric.depths.min() < metric.depths.max() <= 80
    disparity = describe_onnx(tmp_path / "runs" / "DisparityNet" / "DisparityNet-56x72-from-112x144.fp32.onnx").model
    assert (disparity.answers, disparity.network_output, disparity.size) == ("inverse", "disparity", (112, 144))
    assert read_document(tmp_path / "runs" / "small").model.network_output == "predicted_depth"
