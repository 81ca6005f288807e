"""Every option that takes a number refuses invalid ones before anything is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from depthkit.cli import COMMANDS, cli
from depthkit.commands import options
from depthkit.spec import Dim

from ..support import Cli

NO_NUMBERS = (
    click.Choice,
    click.Path,
    click.types.StringParamType,
    click.types.BoolParamType,
    click.types.FuncParamType,
    options.DataType,
    options.PathType,
)
NO_NUMBERS_BY_NAME = {"--network", "--option", "--ray", "--vs"}
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


def test_every_command_is_visited() -> None:
    found = {(words[0], option.opts[0]) for words, option in _numeric()}
    assert {words[0] for words, _ in _commands(cli)} == set(COMMANDS)
    assert len(found) > 30
    assert {("bench", "--duration"), ("train", "--devices"), ("adopt", "--mean"), ("data", "--size")} <= found


@pytest.mark.parametrize(
    ("words", "option"), [pytest.param(*each, id=" ".join((*each[0], each[1].opts[0]))) for each in _numeric()]
)
def test_invalid_number_is_refused(words: tuple[str, ...], option: click.Option, here: Path, cli: Cli) -> None:
    for text in MADE_UP:
        message = cli(*words, f"{option.opts[0]}={text}", code=2).err
        assert "Invalid value for" in message, text
        assert option.opts[0] in message, text
    assert list(here.iterdir()) == []


def test_valid_values_are_accepted() -> None:
    convert = options.NumberType(0, 1, above=True).convert
    assert convert("1e-3", None, None) == 0.001
    assert options.SizeType().convert("480x640", None, None) == (480, 640)
    assert options.SizeType().convert("8192X8192", None, None) == (8192, 8192)
    assert options.DevicesType().convert("8", None, None) == "8"
    from depthkit.commands.export import _BatchType

    assert _BatchType().convert("1,8,4096", None, None) == Dim("batch", 1, 8, 4096)
