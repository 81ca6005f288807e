"""Atomic writing, with the operating system's own refusals wherever they can be had; and hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthkit.errors import OutputError
from depthkit.files import atomic_folder, atomic_write, make_folder, sha256, write_text

from .support import files_at_most


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(text=st.text())
@settings(max_examples=25)
def test_text_comes_back_byte_for_byte(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    goal = tmp_path_factory.mktemp("text") / "new" / "folder" / "a.txt"
    write_text(goal, text)
    assert goal.read_bytes() == text.encode()
    assert _names(goal.parent) == ["a.txt"]


def test_writer_sees_a_name_beside_the_goal_with_its_suffixes(tmp_path: Path) -> None:
    goal = tmp_path / "compact.fp32.ort.onnx"
    with atomic_write(goal) as temporary:
        assert temporary.parent == goal.parent
        assert temporary.name.endswith(goal.name)
        assert temporary != goal
        temporary.write_bytes(b"new")
        assert not goal.exists()
    assert goal.read_bytes() == b"new"


@pytest.mark.parametrize("old", [(), ("old",)], ids=["new", "old"])
@pytest.mark.parametrize("raised", [ValueError("writer"), KeyboardInterrupt()])
def test_failed_writer_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, raised: BaseException, old: tuple[str, ...]
) -> None:
    goal = tmp_path / "a.txt"
    for text in old:
        goal.write_text(text)
    with pytest.raises(type(raised)) as caught, atomic_write(goal) as temporary:
        temporary.write_text("half of the ne")
        raise raised
    assert caught.value is raised, "what is not the disk's fault passes through as it is"
    assert tuple(path.read_text() for path in tmp_path.iterdir()) == old


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    goal = tmp_path / "best"
    for name in ("old", "new"):
        with atomic_folder(goal) as fresh:
            (fresh / name).write_text(name)
        assert _names(goal) == [name]
    assert _names(tmp_path) == ["best"]


@pytest.mark.parametrize("raised", [OutputError("full"), KeyboardInterrupt()])
def test_failed_writer_of_a_folder_leaves_the_old_one(tmp_path: Path, raised: BaseException) -> None:
    goal = make_folder(tmp_path / "best")
    (goal / "old").write_text("good")
    with pytest.raises(type(raised)), atomic_folder(goal) as fresh:
        (fresh / "old").write_text("ha")
        raise raised
    assert (goal / "old").read_text() == "good"
    assert _names(tmp_path) == ["best"]


def test_folder_that_cannot_be_put_in_its_place_leaves_the_old_one(tmp_path: Path) -> None:
    goal = make_folder(tmp_path / "best")
    (goal / "old").write_text("good")
    with pytest.raises(OutputError, match="best"), atomic_folder(goal) as fresh:
        fresh.rmdir()
    assert _names(goal) == ["old"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="it is a file"), atomic_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.txt"), atomic_write(tmp_path / "a.txt"):
        pass
    assert _names(tmp_path) == []


def test_disk_that_is_full_names_the_goal_and_keeps_the_old_file(tmp_path: Path) -> None:
    """/dev/full is a disk with no space left."""
    goal = tmp_path / "a.txt"
    goal.write_text("old")
    with pytest.raises(OutputError, match=r"a\.txt.*[Nn]o space left") as caught, atomic_write(goal) as temporary:
        temporary.write_text("half")
        Path("/dev/full").write_text("rest")
    assert isinstance(caught.value.__cause__, OSError)
    assert goal.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("read", ["missing.txt", "folder", "file/below"])
def test_error_in_reading_names_the_file_that_was_read(tmp_path: Path, read: str) -> None:
    """The goal is not to blame: another folder, or more space, would not help."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("not a folder")
    source, goal = tmp_path / read, tmp_path / "out" / "a.txt"
    with pytest.raises(OSError, match=source.name) as caught, atomic_write(goal) as temporary:
        shutil.copyfile(source, temporary)
    assert caught.value.filename == str(source)
    with pytest.raises(OSError, match=r".") as caught, atomic_write(goal) as temporary:
        temporary.write_bytes(source.read_bytes())
    assert not isinstance(caught.value, OutputError)
    assert _names(goal.parent) == []


def test_link_to_a_missing_file_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.txt") as temporary:
        temporary.hardlink_to(tmp_path / "missing.txt")
    assert caught.value.filename == str(tmp_path / "missing.txt")


def test_copy_to_a_full_disk_names_the_goal(tmp_path: Path) -> None:
    """Where the source is named in the error as well, as `shutil.copyfile` does."""
    goal = tmp_path / "a.bin"
    source = str(tmp_path / "source.bin")
    with pytest.raises(OutputError, match=r"a\.bin.*[Nn]o space"), atomic_write(goal) as temporary:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, str(temporary))


def test_file_over_the_limit_leaves_no_half(tmp_path: Path) -> None:
    """The kernel refuses the second half of the write, as it does over a quota."""
    goal = tmp_path / "a.bin"
    with files_at_most(4096), pytest.raises(OutputError, match=r"a\.bin"), atomic_write(goal) as temporary:
        temporary.write_bytes(bytes(8192))
    assert _names(tmp_path) == []


def test_rename_that_is_refused_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = tmp_path / "a.txt"
    goal.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OutputError, match=r"a\.txt.*[Rr]ead-only"):
            write_text(goal, "new")
    assert goal.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["file/a.txt", "file/folder/a.txt", "folder"])
def test_goal_below_a_file_or_that_is_a_folder_is_an_output_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=name.partition("/")[0]):
        write_text(tmp_path / name, "new")
    assert _names(tmp_path) == ["file", "folder"]


def test_file_system_that_takes_no_files_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="depthkit-test"):
        write_text(Path("/proc/depthkit-test.txt"), "new")
    with pytest.raises(OutputError, match="depthkit-test"):
        make_folder(Path("/proc/depthkit-test"))


@pytest.mark.parametrize("length", [255, 300])
def test_name_that_is_too_long_is_an_output_error_or_is_written(tmp_path: Path, length: int) -> None:
    """255 bytes are what a file system takes; a name that fits must not fail for the sake of the temporary one."""
    goal = tmp_path / ("a" * length)
    if length <= 255:
        write_text(goal, "new")
        assert goal.read_text() == "new"
    else:
        with pytest.raises(OutputError, match="aaa"):
            write_text(goal, "new")


def test_make_folder_makes_parents_and_accepts_an_existing_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert make_folder(folder) == folder
    assert make_folder(folder).is_dir()


@given(content=st.binary(max_size=5000))
def test_sha256_is_hashlibs(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "hashed.bin"
    path.write_bytes(content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_sha256_reads_files_larger_than_its_block(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) * 2 + 17)
    (tmp_path / "large").write_bytes(content)
    assert sha256(tmp_path / "large") == hashlib.sha256(content).hexdigest()
