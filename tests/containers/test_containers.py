"""The Dockerfiles keep their rules; their build steps, run as a script, install what the image needs, and no more."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

from depthkit.engines.store import VARIABLE

from .dockerfile import Stage, read_stages

ROOT: Final = Path(__file__).parents[2]
FILES: Final = sorted((ROOT / "containers").glob("Dockerfile.*"))
LARGEST: Final = 600e6  # bytes of the packages in the image for a CPU


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def stages(request: pytest.FixtureRequest) -> list[Stage]:
    return read_stages(request.param)[1]


def ignored() -> set[str]:
    """Names at the top of the build context that `.dockerignore` leaves out."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_bases_are_pinned(stages: list[Stage]) -> None:
    for stage in stages:
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", stage.base), stage.base


def test_nothing_runs_as_root(stages: list[Stage]) -> None:
    """A number, because Kubernetes' runAsNonRoot cannot tell what a name is."""
    users = [step.rest for step in stages[-1].all("USER")]
    assert users
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert not stages[-1].all("RUN")  # nor does a step of the image itself


def test_files_come_from_the_context_or_an_earlier_stage(stages: list[Stage]) -> None:
    names: list[str] = []
    for stage in stages:
        assert not stage.all("ADD")  # it fetches and unpacks
        for step in stage.all("COPY"):
            assert "from" not in step.flags or step.flags["from"] in names
        names.append(stage.name)
    (copy,) = stages[0].all("COPY")
    assert (copy.rest, stages[0].all("WORKDIR")[0].rest) == (". .", "/src")


def sent() -> list[str]:
    """The files of the build context, in a fresh checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = ignored()
    return [path for path in listed.split("\0") if path and path[0] != "." and path.split("/")[0] not in names]


def test_context_holds_the_package_and_no_more() -> None:
    found = sent()
    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "serve/view.html"} <= set(found)
    assert any(path.startswith("weights/") for path in found)
    assert not [path for path in found if path.startswith(("tests/", "docs/"))]


def test_extras_exist_and_versions_are_pinned(stages: list[Stage]) -> None:
    (argument,) = stages[0].all("ARG")
    extras = argument.rest.removeprefix("EXTRAS=").split(",")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert set(extras) <= set(re.findall(r"^([\w-]+) = \[", text, re.MULTILINE))
    assert "serve" in extras
    (install,) = (step.rest for step in stages[0].all("RUN") if " install " in step.rest)
    assert "--constraint constraints.txt" in install
    assert "--no-cache-dir" in install


def test_what_starts_is_what_is_watched(stages: list[Stage]) -> None:
    final = stages[-1]
    (entry,), (command,), (port,), (health,) = (
        final.all(word) for word in ("ENTRYPOINT", "CMD", "EXPOSE", "HEALTHCHECK")
    )
    assert [*entry.words(), *command.words()] == ["depthkit", "serve", "nano", "--host", "0.0.0.0"]
    assert f"127.0.0.1:{port.rest}/v2/health/ready" in health.rest
    assert health.rest.startswith("CMD [")


def test_only_known_places_are_written(stages: list[Stage], tmp_path: Path) -> None:
    """So that the root file system may be read-only. They are open to any user, as `docker run --user` names one."""
    variables = stages[-1].environment()
    assert variables["HOME"] == "/tmp"
    assert not any("chown" in step.flags for step in stages[-1].all("COPY"))
    (make,) = (step.rest for step in stages[0].all("RUN") if step.rest.startswith("mkdir "))
    subprocess.run(["/bin/sh", "-euc", make.replace("/opt/", f"{tmp_path}/")], check=True)
    open_to_all = [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o7777 == 0o1777]
    copied = dict(step.rest.split() for step in stages[-1].all("COPY"))
    (source,) = (source for source in copied if source in make)
    # In the copied folder: COPY gives that one itself the mode 755.
    places = [f"{copied[source]}{path.relative_to(tmp_path / source.removeprefix('/opt/'))}" for path in open_to_all]
    assert places == [variables[VARIABLE]]


def test_commands_on_mounted_folders_run_as_their_owner() -> None:
    """The image's own user could not write there."""
    text = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
    lines = re.findall(r"docker run [^`\n]*", text)
    assert len(lines) >= 4
    mounting = [line for line in lines if "$PWD" in line]
    assert mounting
    assert [line for line in mounting if '--user "$(id -u):$(id -g)"' not in line] == []


def services() -> dict[str, Any]:
    """The InferenceServices by name."""
    text = (ROOT / "containers" / "inferenceservice.yaml").read_text(encoding="utf-8")
    return {each["metadata"]["name"]: each for each in yaml.safe_load_all(text)}


def test_kserve_runs_the_image_as_it_is_made() -> None:
    (container,) = services()["depth"]["spec"]["predictor"]["containers"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    _, stages = read_stages(ROOT / "containers" / "Dockerfile.cpu")
    variables = stages[-1].environment()
    assert mounted == {variables["HOME"], variables[VARIABLE]}
    assert container["args"][0] == "serve"
    port = container["ports"][0]["containerPort"]
    assert str(port) in container["args"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": port}


@pytest.mark.slow
@pytest.mark.skipif("DEPTHKIT_KSERVE" not in os.environ, reason="DEPTHKIT_KSERVE names no Python with kserve")
def test_inference_services_fit_kserves_schema(tmp_path: Path) -> None:
    """See kserve_schema.py, which also says how to make that Python."""
    check = [os.environ["DEPTHKIT_KSERVE"], str(ROOT / "tests" / "kserve_schema.py")]
    good = ROOT / "containers" / "inferenceservice.yaml"
    done = subprocess.run([*check, str(good)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        good.read_text().replace("minReplicas", "minReplica").replace("containerPort: 8080", "containerPort: x")
    )
    done = subprocess.run([*check, str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no field minReplica" in done.stdout
    assert "'x' is no int" in done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that the build stage for a CPU makes, by its own lines; its folder stands for /opt."""
    place = tmp_path_factory.mktemp("image")
    for path in sent():
        (place / "src" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, place / "src" / path)
    _, stages = read_stages(ROOT / "containers" / "Dockerfile.cpu")
    (argument,) = stages[0].all("ARG")
    name, _, default = argument.rest.partition("=")
    first = str(Path(sys.executable).parent)
    environment = os.environ | {name: default, "PATH": f"{first}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    for step in stages[0].all("RUN"):
        line = step.rest.replace("/opt/", f"{place}/opt/")
        subprocess.run(["/bin/sh", "-euc", line], cwd=place / "src", check=True, env=environment)
    return place / "opt"


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_image_for_a_cpu_is_small(built: Path) -> None:
    assert _bytes(built / "depthkit") <= LARGEST
    (packages,) = (built / "depthkit" / "lib").glob("*/site-packages")
    assert not {"torch", "pip", "setuptools"} & {path.name for path in packages.iterdir()}


@pytest.fixture
def container(built: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The image's command in its environment, which nobody may write but the places for it."""
    _, stages = read_stages(ROOT / "containers" / "Dockerfile.cpu")
    store = tmp_path / "store"
    path = f"{built}/depthkit/bin:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(tmp_path), VARIABLE: str(store), "OMP_NUM_THREADS": "1"}
    words = [word for kind in ("ENTRYPOINT", "CMD") for word in stages[-1].all(kind)[0].words()]
    process = subprocess.Popen(words, env=environment, cwd=tmp_path)
    yield process
    process.terminate()
    process.wait(60)


@pytest.mark.slow
def test_image_for_a_cpu_becomes_healthy(container: subprocess.Popen[bytes], built: Path) -> None:
    """By its own HEALTHCHECK. Only the file system is not read-only here."""
    _, stages = read_stages(ROOT / "containers" / "Dockerfile.cpu")
    (health,) = stages[-1].all("HEALTHCHECK")
    words = type(health)("CMD", {}, health.rest.removeprefix("CMD ")).words()
    check = [str(built / "depthkit" / "bin" / words[0]), *words[1:]]
    end = time.monotonic() + 120
    while subprocess.run(check, capture_output=True, check=False).returncode:
        assert container.poll() is None
        assert time.monotonic() < end
        time.sleep(0.5)
