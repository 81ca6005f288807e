"""Every option that takes a number refuses what is none and what cannot be meant, before anything is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from depthkit.cli import COMMANDS, cli
from depthkit.cli import run as depthkit
from depthkit.commands import options
from depthkit.spec import Dim

NO_NUMBERS = (
    click.Choice,
    click.Path,
    click.types.StringParamType,
    click.types.BoolParamType,
    click.types.FuncParamType,
    options.DataType,
    options.PathType,
)
NO_NUMBERS_BY_NAME = {"--network", "--option", "--vs"}
HUGE = "9" * 400
MADE_UP = (
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "",
    "five",
    HUGE,
    f"{HUGE}x{HUGE}",
    f"1,1,{HUGE}",
    "nan,nan,nan",
    "0,inf",
)


def _commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(command)
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from _commands(found, (*words, name))


def _numeric() -> list[tuple[tuple[str, ...], click.Option]]:
    return [
        (words, option)
        for words, command in _commands(cli)
        for option in command.params
        if isinstance(option, click.Option)
        and not option.is_flag
        and not option.count
        and not isinstance(option.type, NO_NUMBERS)
        and option.opts[0] not in NO_NUMBERS_BY_NAME
    ]


def test_every_command_is_walked() -> None:
    found = {(words[0], option.opts[0]) for words, option in _numeric()}
    assert {words[0] for words, _ in _commands(cli)} == set(COMMANDS)
    assert len(found) > 30
    assert {("bench", "--duration"), ("train", "--devices"), ("export", "--mean"), ("data", "--size")} <= found


@pytest.mark.parametrize(
    ("words", "option"), [pytest.param(*each, id=" ".join((*each[0], each[1].opts[0]))) for each in _numeric()]
)
def test_what_is_no_number_or_cannot_be_meant_is_refused(
    words: tuple[str, ...],
    option: click.Option,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in MADE_UP:
        assert depthkit([*words, f"{option.opts[0]}={text}"]) == 2, text
        said = capsys.readouterr().err
        assert "Invalid value for" in said, text
        assert option.opts[0] in said, text
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["bench", "--streams"], "99999"),
        (["bench", "--seconds"], "1e300"),
        (["bench", "--batch"], "999999999"),
        (["data", "prepare", "--size"], "999999999x999999999"),
        (["data", "prepare", "--size"], "8193x16"),
        (["train", "--batch"], "999999999"),
        (["train", "--devices"], "99999"),
        (["export", "--batch"], "1,2,999999999"),
        (["export", "--std"], "0,1,1"),
        (["tune", "--max-memory"], "9e99gb"),
        (["tune", "--minutes"], "1e300"),
    ],
)
def test_absurd_sizes_are_refused(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert depthkit([*words, wanted]) == 2
    assert "Invalid value for" in capsys.readouterr().err


def test_what_can_be_meant_is_taken() -> None:
    convert = options.NumberType(0, 1, above=True).convert
    assert convert("1e-3", None, None) == 0.001
    assert options.SizeType().convert("480x640", None, None) == (480, 640)
    assert options.SizeType().convert("8192X8192", None, None) == (8192, 8192)
    assert options.DevicesType().convert("8", None, None) == "8"
    from depthkit.commands.export import _BatchType

    assert _BatchType().convert("1,8,4096", None, None) == Dim("batch", 1, 8, 4096)
