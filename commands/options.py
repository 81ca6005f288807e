"""Option types and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["SizeType", "command_line", "data_option", "depth_units_option", "json_option", "runs_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def command_line() -> str:
    """What was typed, as a shell would take it again."""
    return str(click.get_current_context().find_root().obj)


class SizeType(click.ParamType[tuple[int, int]]):
    """`HxW`, both divisible by 16."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse "240x320" into (240, 320)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+)[xX](\d+)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size; write height x width, for instance 240x320", param, ctx)
        from ..spec import check_size

        size = int(match[1]), int(match[2])
        check_size(*size)
        return size


def data_option(help_text: str, *, default: str | None = None) -> Callable[[_Command], _Command]:
    """`--data`."""
    return click.option(
        "--data", default=default, metavar="scenes|PATH", show_default=default is not None, help=help_text
    )


depth_units_option = click.option(
    "--depth-units",
    type=click.FloatRange(min=0, min_open=True),
    default=1000.0,
    show_default=True,
    help="Units per metre in the 16-bit PNG of an images/ + depth/ folder.",
)
runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
