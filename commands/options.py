"""Option types and options that several commands share."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ..names import NETWORKS

if TYPE_CHECKING:
    from ..data.colours import Span
    from ..spec import ModelSpec

__all__ = [
    "DAY",
    "MOST_FRAMES_A_RUN",
    "ClientsType",
    "CountType",
    "DataType",
    "DevicesType",
    "NetworkType",
    "NumberType",
    "NumbersType",
    "PathType",
    "PercentType",
    "PlaceType",
    "RangeType",
    "SectionedCommand",
    "SizeType",
    "built_in_engine",
    "colormap_option",
    "command_line",
    "data_option",
    "depth_units_option",
    "expand",
    "input_size_option",
    "json_option",
    "near_first",
    "range_option",
    "read_token",
    "runs_option",
    "size_option",
    "timeout_option",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

DAY: Final = 86_400
"""Seconds."""
MOST_FRAMES_A_RUN: Final = 4096
"""Larger batches are typing errors, which would exhaust memory before they fail."""
MOST_PIXELS_A_SIDE: Final = 8192
MOST_TOKEN: Final = 4096
_SCHEME: Final = r"[A-Za-z][A-Za-z0-9+.-]+:/"


def command_line() -> str:
    """The command line, quoted for a shell."""
    return str(click.get_current_context().find_root().obj)


class SectionedCommand(click.Command):
    """A command whose `--help` shows the options under headings.

    Args:
        sections: headings with their options; every option must be in one.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        options = {name: each for each in self.get_params(ctx) for name in each.opts}
        for heading, names in {**self.sections, "Help": ("--help",)}.items():
            with formatter.section(heading):
                records = (options[name].get_help_record(ctx) for name in names)
                formatter.write_dl([record for record in records if record is not None])


class PathType(click.Path):
    """A file or folder. Expands `~`; refuses an empty string or a URL."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse "~/photo.jpg"."""
        return super().convert(_local(self, value, param, ctx), param, ctx)


class PlaceType(click.ParamType[str]):
    """A path, pattern, camera, address, or `-`; stays a string. Expands `~`."""

    name = "PLACE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse "~/clip.mp4" or "rtsp://camera/1"."""
        text = str(value)
        return text if re.match(_SCHEME, text) else _local(self, text, param, ctx)


class RangeType(click.ParamType["tuple[float, float] | None"]):
    """`A,B`, or `auto`, which is None. What the numbers are depends on the model: see `near_first`."""

    name = "A,B|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float] | None:
        """Parse "0.5,5" into (0.5, 5.0)."""
        if isinstance(value, tuple) or value == "auto":
            return value if isinstance(value, tuple) else None
        try:
            near, far = (float(word) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a range; write the nearest and farthest metres, as 0.5,5, or auto", param, ctx)
        if not (isfinite(near) and isfinite(far) and near < far):
            self.fail(f"{value!r} is no range; write the smaller number first, as 0.5,5", param, ctx)
        return near, far


class DataType(click.ParamType[str]):
    """A path like `PathType`'s, or a word such as `scenes`; stays a string."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse "~/nyu"."""
        return _local(self, value, param, ctx)


def _local(kind: click.ParamType[Any], value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
    text = str(value)
    if not text.strip():
        kind.fail("the path is empty; name a file or folder (`.` is the current one)", param, ctx)
    if re.match(_SCHEME, text):
        kind.fail(f"{text} is a URL, not a local file; download it and name the file", param, ctx)
    return text if os.path.lexists(text) else os.path.expanduser(text)  # noqa: PTH111 - Path raises for an unknown user


def expand(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """A callback that expands patterns which the shell did not expand (`"photos/*.jpg"`)."""
    found: list[Path] = []
    for path in paths:
        if os.path.lexists(path) or not glob.has_magic(str(path)):
            found.append(path)
            continue
        matching = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - takes absolute patterns too
        if not matching:
            raise click.BadParameter(f"no file or folder matches {path}", ctx, param)
        found += map(Path, matching)
    return tuple(found)


class SizeType(click.ParamType[tuple[int, int]]):
    """`HxW`; the network checks whether it takes that size."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse "240x320" into (240, 320)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a size; write height x width, for instance 240x320", param, ctx)
        if any(len(digits) > 4 or int(digits) > MOST_PIXELS_A_SIDE for digits in match.groups()):
            self.fail(f"{value!r} is too large; a side has at most {MOST_PIXELS_A_SIDE} pixels", param, ctx)
        return int(match[1]), int(match[2])


class CountType(click.IntRange):
    """An integer from `least` to `most`."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__(least, most)


class NumberType(click.FloatRange):
    """A number from `least` to `most`, exclusive with `above` or `below`; refuses `nan`, unlike click."""

    def __init__(self, least: float, most: float, *, above: bool = False, below: bool = False) -> None:
        super().__init__(least, most, min_open=above, max_open=below)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse "1e-3"."""
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}", param, ctx)
        return number


class DevicesType(click.ParamType[str]):
    """`auto`, or the number of devices per node."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Accept "auto" or "8"."""
        if not re.fullmatch(r"auto|[1-9]\d?", str(value), re.ASCII):
            self.fail(f"{value!r} is not a number of devices; write 1 to 99, or auto", param, ctx)
        return str(value)


class PercentType(click.ParamType[float]):
    """`5%`, or a share: `0.05`."""

    name = "PERCENT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse "5%" into 0.05."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            self.fail(f"{value!r} is not between 0 and 100 %; write 5% or 0.05", param, ctx)
        return share


class ClientsType(click.ParamType["tuple[int, ...]"]):
    """`8`, or `1:16`: doubled from the first to the last."""

    name = "N|A:B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse "1:16" into (1, 2, 4, 8, 16)."""
        match = re.fullmatch(r"([1-9]\d{0,3})(?::([1-9]\d{0,3}))?", str(value), re.ASCII)
        least, most = (0, 0) if match is None else (int(match[1]), int(match[2] or match[1]))
        if not 1 <= least <= most:
            self.fail(f"{value!r} is not a number of clients; write 8, or 1:16 for 1 to 16", param, ctx)
        doubled = [least * 2**power for power in range(most.bit_length()) if least * 2**power < most]
        return (*doubled, most)


class NetworkType(click.ParamType[str]):
    """A built-in network, or `package.module:Network`."""

    name = "|".join((*NETWORKS, "package.module:Network"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Accept names that may be networks; importing is only tried when the network is built."""
        from ..names import is_import_path

        if value not in NETWORKS and not is_import_path(value):
            names = ", ".join(NETWORKS)
            self.fail(f"{value!r} is not a network; choose {names}, or your own: package.module:Network", param, ctx)
        return str(value)


class NumbersType(click.ParamType["tuple[float, ...]"]):
    """Numbers from `least` to `most` separated by commas, one for each word of `name`, e.g. "R,G,B"."""

    def __init__(self, name: str, least: float, most: float) -> None:
        self.name = name
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse "0.1,10" into (0.1, 10.0)."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(word) for word in value.split(","))
        except ValueError:
            numbers = ()
        fit = all(self._least <= number <= self._most for number in numbers)
        if len(numbers) != len(self.name.split(",")) or not fit:
            between = f"numbers from {self._least:g} to {self._most:g}"
            self.fail(f"{value!r} is not {self.name}; write {between}, separated by commas", param, ctx)
        return numbers


def built_in_engine(alternative: str) -> Path:
    """The most accurate built-in weights, which is said on stderr, with the `alternative` to them."""
    from ..train.shipped import best_shipped, shipped_run
    from .console import err

    name, delta1 = best_shipped()
    err.print(
        f'Using built-in weights "{name}", the most accurate here (δ1 {delta1:.3f} on NYU Depth v2); {alternative}'
    )
    return shipped_run(name)


def read_token(path: Path) -> str:
    """The text of a file without the blanks around it. Raises UserError: it is none, or not one word."""
    from ..errors import UserError

    try:
        text = path.read_bytes()[: MOST_TOKEN + 1].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token {path} cannot be read as text ({error}); name a file with the token") from error
    if not text.isprintable() or " " in text or not 1 <= len(text) <= MOST_TOKEN:
        raise UserError(f"--token {path} has to hold one word; make one: `openssl rand -hex 32 > {path}`")
    return text


def range_option(auto: str) -> Callable[[_Command], _Command]:
    """`--range`, whose help says what `auto` is."""
    return click.option(
        "--range",
        "span",
        type=RangeType(),
        metavar="A,B|auto",
        default="auto",
        show_default=True,
        help=f"Metres from which to which colours reach, or answers of a model without metres; auto: {auto}.",
    )


def near_first(span: tuple[float, float] | None, spec: ModelSpec) -> Span | None:
    """`--range` as nearest and farthest depth of a model. Raises UserError for metres below 0."""
    from ..data.colours import oriented
    from ..errors import UserError

    if span is not None and spec.is_metric and span[0] < 0:
        raise UserError(f"--range {span[0]:g},{span[1]:g} is no range in metres; begin at 0 or more")
    return None if span is None else oriented(span, spec.answers)


colormap_option = click.option("--colormap", default="turbo", show_default=True, help="One of matplotlib's.")
input_size_option = click.option(
    "--input-size", type=SizeType(), metavar="HxW", help="Of raw rgb24 frames (`-`), or to ask a camera for."
)
timeout_option = click.option(
    "--timeout",
    type=NumberType(0, DAY, above=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait for a camera or address.",
)


def size_option(help_text: str, *, default: str) -> Callable[[_Command], _Command]:
    """`--size` with a fixed default."""
    return click.option("--size", type=SizeType(), metavar="HxW", default=default, show_default=True, help=help_text)


def data_option(help_text: str, *, default: str | None = None) -> Callable[[_Command], _Command]:
    """`--data`."""
    return click.option(
        "--data",
        type=DataType(),
        default=default,
        metavar="scenes|PATH",
        show_default=default is not None,
        help=help_text,
    )


depth_units_option = click.option(
    "--depth-units",
    type=NumberType(0.001, 1_000_000),
    help="Units per metre in the 16-bit PNG of an images/ + depth/ folder.  [default: the run's, else 1000]",
)
runs_option = click.option(
    "--runs",
    type=PathType(file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
