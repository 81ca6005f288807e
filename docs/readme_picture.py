"""Draw docs/images/depth.png, the picture in the README: photographs, measured depth, and depth by torch and an engine.

    depthkit export --int8 --calibrate path/to/nyu --backend openvino compact
    python docs/readme_picture.py --data path/to/nyu runs/compact-pretrained/compact-96x128.int8.ov.blob

Depth is computed here. Latency and AbsRel at the top are those of docs/results/bench.json.gz, as in the README's table;
AbsRel below a tile is that of the frame. The frames are the first, middle and last of NYU's test split, not chosen.
They are shown at the size that the network reads, as a citation: NYU Depth v2, Silberman et al., ECCV 2012.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

import depthkit
from depthkit.bench.results import BenchResult, Row, read_result
from depthkit.data.dataset import evenly_spaced
from depthkit.data.images import resize_depth, resize_image
from depthkit.data.sources import open_dataset
from depthkit.engines.manifest import read_manifest
from depthkit.files import atomic_write
from depthkit.metrics import score_frame, valid_pixels

HERE: Final = Path(__file__).parent
ROWS: Final = 3
NAMES: Final = {"torch": "PyTorch", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}

_DPI: Final = 100
_SCALE: Final = 2  # pixels of the picture for each pixel that the network reads
_GAP, _TOP, _UNDER = 8, 58, 20
_LEVELS: Final = 32  # steps of the colour scale: a third of the bytes of smooth colours


def caption(row: Row, result: BenchResult) -> str:
    """What stands over a column: name, median latency, speed-up, and AbsRel on the bench's test frames."""
    assert row.p50_ms is not None
    assert row.accuracy is not None
    times = result.speedups.get(row.name)
    faster = "" if times is None else f" ({times.middle:.1f}× faster)"
    title = f"{NAMES[row.backend]} {row.precision.upper()}"
    return f"{title}\n{row.p50_ms:.2f} ms{faster}, AbsRel {row.accuracy.scores.pooled.abs_rel:.3f}"


@click.command()
@click.argument("engine", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", required=True, help="NYU Depth v2.")
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "images" / "depth.png", show_default=True)
def main(engine: Path, data: str, out: Path) -> None:
    """Draw the picture."""
    manifest, result = read_manifest(engine), read_result(HERE / "results" / "bench.json.gz")
    network, size = manifest.model.network, manifest.model.size

    def benched(backend: str, precision: str) -> Row:
        return next(r for r in result.rows if (r.network, r.backend, r.precision) == (network, backend, precision))

    test = open_dataset(data, "test")
    torch_model = depthkit.pretrained(network)
    height, width = size[0] * _SCALE, size[1] * _SCALE
    columns = (
        f"photograph\nas the network reads it, {size[0]}x{size[1]}",
        "measured\nKinect",
        caption(benched("torch", "fp32"), result),
        caption(benched(manifest.backend, manifest.precision_found), result),
    )
    whole = (len(columns) * (width + _GAP) + _GAP, _TOP + ROWS * (height + _UNDER) + _GAP)
    figure = Figure(figsize=(whole[0] / _DPI, whole[1] / _DPI), dpi=_DPI, facecolor="white")
    colours = colormaps["turbo_r"].resampled(_LEVELS)
    with depthkit.load(engine) as session:
        for line, index in enumerate(evenly_spaced(test, ROWS)):
            sample = test[index]
            frame = resize_image(sample.image, size)
            depths = [torch_model.predict(frame), session(frame)]
            truth = resize_depth(sample.depth, size, smooth=False)
            low, high = np.percentile(truth[valid_pixels(truth)], (2, 98))
            for column, tile in enumerate((frame, np.where(valid_pixels(truth), truth, np.nan), *depths)):
                left, top = _GAP + column * (width + _GAP), _TOP + line * (height + _UNDER)
                axes = figure.add_axes(
                    (left / whole[0], 1 - (top + height) / whole[1], width / whole[0], height / whole[1])
                )
                axes.imshow(tile, interpolation="nearest", cmap=colours, vmin=low, vmax=high)
                axes.set_axis_off()
                if line == 0:
                    axes.set_title(columns[column], fontsize=9, pad=6)
                under = f"{low:.1f} m (red) to {high:.1f} m (blue)" if column == 1 else ""
                if column > 1:
                    full = resize_depth(tile, sample.depth.shape, smooth=True)
                    under = f"AbsRel {score_frame(full, sample.depth, test.crop).sums.scores().abs_rel:.3f}"
                if column == len(columns) - 1:
                    under += f", mean |Δ| to PyTorch {np.abs(depths[1] - depths[0]).mean() * 1000:.0f} mm"
                axes.text(0.5, -0.02, under, transform=axes.transAxes, ha="center", va="top", fontsize=8)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format="png", pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
