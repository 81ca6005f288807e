"""`depthkit predict --ray`: what it checks before Ray starts, shows while the workers write, and says afterwards."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..data.colours import palette
from ..errors import DataError
from ..files import atomic_write, remove
from ..packages import require_packages
from ..pipeline.cluster import connected, find_pictures, pack_engine, start_record
from ..pipeline.inputs import Input, require_fitting, require_folder, require_goals
from ..pipeline.outputs import FOR_PICTURES
from ..pipeline.prediction import Options
from ..pipeline.scaling import find_scale
from ..pipeline.targets import describe_target
from .console import out as console
from .console import progress
from .options import near_first
from .predict_output import describe_goals, terminable

if TYPE_CHECKING:
    from ..pipeline.picture_worker import Picture

__all__ = ["FAILED", "predict_by_ray"]

FAILED: Final = "failed.csv"


def predict_by_ray(
    address: str,
    engine: Path,
    places: Sequence[str],
    chosen: tuple[str, ...],
    out: Path,
    options: dict[str, Any],
) -> None:
    """Write the depth of pictures by the workers of a Ray cluster.

    Args:
        address: see `connected`; empty: its default.
        engine: see `pack_engine`.
        places: see `find_pictures`.
        chosen: keys of `OUTPUTS`; none: the default of pictures.
        out: folder of the results.
        options: the others of `Options`.

    Raises:
        UserError: the request cannot be carried out; nothing was written.
        DataError: pictures are bad, and listed in `failed.csv`; all others were written.
    """
    require_packages("ray")
    chosen = chosen or FOR_PICTURES
    pictures = find_pictures(places, chosen)
    files = tuple(Path(picture.place) for picture in pictures)
    given = Input("the pictures", "pictures", "", files, tuple(picture.name for picture in pictures))
    require_fitting([given], input_size=options["input_size"], fps=options["fps"], smooth=options["smooth"])
    require_folder(out)
    palette(options["colormap"])
    require_goals([given], chosen, out)
    packed = pack_engine(engine)
    if find_scale(engine) is None:  # with a scale, it answers metres
        options["span"] = near_first(options["span"], describe_target(engine)[0])
    if (intrinsics := options["intrinsics"]) is not None and Path(intrinsics).is_file():
        options["intrinsics"] = str(Path(intrinsics).absolute())
    wishes = Options(out.absolute(), chosen, **options)
    with connected(address or None, options["timeout"]) as cluster, terminable():
        workers, cores = cluster.workers(packed)
        place = "a GPU" if packed.on_gpu else "1 core" if cores == 1 else f"{cores} cores"
        console.print(f"workers on Ray: {workers}, each with {place}", markup=False)
        answers = cluster.predict(pictures, packed, wishes, start_record(packed, wishes))
        counts = _show(answers, pictures, chosen, out)
    before = f"; {counts['kept']} were written before" if counts["kept"] else ""
    console.print(f"{counts['written']} of {len(pictures)} pictures written{before}", markup=False)
    if counts["failed"]:
        what = "1 picture was" if counts["failed"] == 1 else f"{counts['failed']} pictures were"
        raise DataError(f"{what} not computed; {out / FAILED} says why, and all others are written")


def _show(answers: Any, pictures: Sequence[Picture], chosen: Sequence[str], out: Path) -> Counter[str]:
    """Print an answer for each picture as it comes; list the bad ones in `failed.csv`, also if it is interrupted."""
    counts: Counter[str] = Counter()
    failed: list[tuple[str, str]] = []
    try:
        with progress() as bar, closing(answers):
            task = bar.add_task("depth", total=len(pictures))
            for picture, answer in answers:
                bar.advance(task)
                counts[answer.state] += 1
                if answer.state == "failed":
                    failed.append((picture.place, answer.text))
                elif answer.state == "written":
                    goals = describe_goals(chosen, out / picture.name)
                    console.print(f"{picture.place}: {answer.text}  ->  {goals}", markup=False)
    finally:
        _list_failed(out / FAILED, failed)
    return counts


def _list_failed(path: Path, failed: Sequence[tuple[str, str]]) -> None:
    """Write the bad pictures; without any, an earlier list is removed."""
    if not failed:
        remove(path)
        return
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        csv.writer(stream).writerows([("picture", "reason"), *failed])
