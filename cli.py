"""The command line: a click group that imports each command on use, and the only place that exits.

Exit codes: 0 success; 1 a fault of depthkit; 2 the request cannot be met; 3 a gate failed; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Final, TextIO

import click

from . import __version__
from .errors import DepthkitError, UserError
from .files import is_refused_write
from .packages import EXTRAS, missing

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["COMMANDS", "EXTRAS", "cli", "main"]

COMMANDS: Final = (
    "data",
    "train",
    "adopt",
    "evaluate",
    "export",
    "engines",
    "bench",
    "tune",
    "predict",
    "view",
    "serve",
    "doctor",
    "demo",
)


class _LazyGroup(click.Group):
    """Loads command `x` from the function `x` in `commands/x.py`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f".commands.{cmd_name}", __package__), cmd_name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="depthkit")
def cli() -> None:
    """Train a monocular-depth network, turn it into a realtime engine, and verify the engine against the network.

    \b
    The main line, on NYU Depth v2:
      depthkit train --data path/to/nyu --size 96x128     both networks -> runs/compact, runs/unet
      depthkit export --fp16                              runs/* -> ONNX, checked -> engine
      depthkit bench --data path/to/nyu                   latency, parity, accuracy; exit 3 if a gate fails

    No data? `depthkit demo` does all of it on built-in scenes.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    code = run(arguments)
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Lasting) and raw.refusal is not None:
        _complain(f"the output is incomplete: {raw.refusal.strerror}")
        code = code or UserError.exit_code
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; known errors become one line on stderr, without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        typed = shlex.join(["depthkit", *arguments])
        with _warnings_in_one_line():
            code = cli.main(args=arguments, prog_name="depthkit", standalone_mode=False, obj=typed)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except DepthkitError as error:
        _complain(str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _complain(missing(package))
        return UserError.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("depthkit: interrupted", err=True)
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        _complain(f"{error.filename}: {error.strerror}")  # e.g. permission denied
        return UserError.exit_code
    return code if isinstance(code, int) else 0


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print depthkit's own warnings like errors, without their line of code; other warnings stay unchanged."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category.__module__.startswith(f"{__package__}."):
                click.secho(f"depthkit: {message}", fg="yellow", err=True)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _complain(sentence: str) -> None:
    click.secho("depthkit: ", fg="red", bold=True, nl=False, err=True)
    click.echo(sentence, err=True)


class _Lasting(io.FileIO):
    """Standard output that becomes /dev/null when its reader closes the pipe, as `head` does, or the disk is full.

    The command then still finishes: it writes its files, and its gates decide the exit code. A full disk is an error.

    Attributes:
        refusal: why output was not written; None: all was written, or the pipe was closed.
    """

    refusal: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write; a closed pipe or full disk discards everything."""
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            pass  # nobody reads it
        except OSError as error:
            if not is_refused_write(error):
                raise
            self.refusal = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return memoryview(data).nbytes


def _lasting(stream: TextIO) -> TextIO:
    """Wrap an output so that a closed pipe or an unencodable character raises no error; None stays None."""
    try:
        file = stream.fileno()
    except (AttributeError, OSError):  # None, or not a file
        return stream
    buffer = io.BufferedWriter(_Lasting(file, "w", closefd=False))
    return io.TextIOWrapper(buffer, stream.encoding, "replace", line_buffering=True)
