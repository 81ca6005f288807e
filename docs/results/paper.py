"""docs/results/paper.md: measure runs into `paper/numbers.json`, and render the page from that file alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from depthkit.commands.options import data_option, size_option
from depthkit.errors import DepthkitError

FOLDER = Path(__file__).with_name("paper")


@click.group()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    help="Of numbers.json, failures.json, template and pictures; the page stands beside it.  [default: paper/]",
)
@click.pass_context
def cli(context: click.Context, folder: Path) -> None:
    """Measure the comparison with the paper, and write its page.

    \b
    python docs/results/paper.py measure --data path/to/nyu RUN…
    python docs/results/paper.py time RUN|ENGINE…
    python docs/results/paper.py ablate --data path/to/nyu LABEL=RUN…
    python docs/results/paper.py render
    """
    context.obj = folder


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_option("Data set whose test split is used.", default="scenes")
@click.option("--frames", type=click.IntRange(min=1), help="Only so many of it, evenly spaced.  [default: all]")
@click.option("--again", is_flag=True, help="Score also weights that are in numbers.json.")
@click.pass_obj
def measure(folder: Path, runs: tuple[Path, ...], data: str, frames: int | None, again: bool) -> None:
    """Score RUNS on the test split and draw the sheets; weights that met it before keep their scores."""
    from paper_measure import measure_runs

    measure_runs(folder, runs, data, frames, again=again)


@cli.command()
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path))
@size_option("Of runs, beside their own.", default="480x640")
@click.option("--seconds", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Steady: for each row.")
@click.pass_obj
def time(folder: Path, targets: tuple[Path, ...], size: tuple[int, int], seconds: float) -> None:
    """Time TARGETS by both protocols: runs by torch, at two sizes, and engines in run folders, at their own.

    It wants a machine that has nothing else to do. All rows are measured anew.
    """
    from paper_measure import time_targets

    time_targets(folder, targets, size, seconds)


@cli.command()
@click.argument("rows", metavar="LABEL=RUN…", nargs=-1, required=True)
@data_option("Data set whose validation split is used.", default="scenes")
@click.pass_obj
def ablate(folder: Path, rows: tuple[str, ...], data: str) -> None:
    """Score runs on the validation split; runs of one LABEL are its seeds. All rows are measured anew."""
    from paper_measure import ablate_runs

    pairs = [row.rpartition("=") for row in rows]
    if not all(label and run for label, _, run in pairs):
        raise click.UsageError("every row is LABEL=RUN")
    ablate_runs(folder, [(label, Path(run)) for label, _, run in pairs], data)


@cli.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 unless the page is what would be written.")
@click.pass_obj
def render(folder: Path, check: bool) -> int:
    """Write the page and the curve from numbers.json alone."""
    from paper_numbers import group, read_numbers
    from paper_page import render_page
    from paper_pictures import draw_curve

    from depthkit.files import write_text

    numbers = read_numbers(folder)
    text, page = render_page(numbers, folder), folder.with_suffix(".md")
    if not check:
        draw_curve(folder / "curve.png", group(numbers.runs))
        write_text(page, text)
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        return 0
    click.echo(f"{page} is not what numbers.json says; run `make paper`", err=True)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a step and return its exit code; a known error becomes one line on stderr."""
    try:
        code = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except DepthkitError as error:
        click.echo(f"paper.py: {error}", err=True)
        return error.exit_code
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
