"""Put a run's weights into the package, with a model card: `python docs/ship.py runs/compact evaluation.json`.

The evaluation is what `depthkit evaluate runs/compact --data path/to/nyu --json` printed. Every figure on the card is
read from it or from the run. An FP32 ONNX file with its reference goes there too, for installations without torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from pydantic import TypeAdapter, ValidationError

from depthkit.data.nyu import official_test_frames
from depthkit.export.onnx_file import export_onnx
from depthkit.export.recipe import ExportOptions
from depthkit.files import write_text
from depthkit.metrics import METRICS, DepthScores
from depthkit.pipeline.runs import open_source
from depthkit.train.bundle import read_bundle
from depthkit.train.document import read_document
from depthkit.train.hub import CARD, DepthModel
from depthkit.train.shipped import EVALUATION, SHIPPED

TEMPLATE: Final = Path(__file__).with_name("model_card.md.j2")


def ship(run: Path, evaluation: Path, shipped: Path = SHIPPED) -> Path:
    """Write the weights of `run` to `shipped` under their network's name; the folder. Raises UserError, ValueError."""
    scores = read_scores(evaluation)
    model = DepthModel(read_bundle(run))
    name = model.spec.network
    folder = shipped / name
    for earlier in (*folder.glob("*.onnx"), *folder.glob("*.reference.npz")):
        earlier.unlink()
    model.save_pretrained(folder)
    export_onnx(open_source(folder), ExportOptions())  # for those who have no torch
    write_text(folder / EVALUATION, json.dumps({name: scores}, indent=2) + "\n")
    write_text(folder / CARD, f"{model_card(folder)}\n")
    return folder


def read_scores(evaluation: Path) -> dict[str, object]:
    """The one target's scores. Raises ValueError unless it was scored on the whole official test split."""
    try:
        (scores,) = json.loads(evaluation.read_text(encoding="utf-8")).values()
        frames = TypeAdapter(DepthScores).validate_python(scores).frames
    except (ValueError, AttributeError, ValidationError) as error:
        raise ValueError(f"{evaluation} is not what `depthkit evaluate RUN --json` prints for one run") from error
    if frames != len(official_test_frames()):
        raise ValueError(f"{evaluation} scores {frames} frames, not NYU's {len(official_test_frames())} test frames")
    return dict(scores)


def model_card(folder: Path) -> ModelCard:
    """The card of a shipped folder, from its `model.json` and `evaluation.json`."""
    document = read_document(folder)
    training = document.training
    if training is None:
        raise ValueError(f"{folder} was not trained here; a card says how its weights came to be")
    scores = TypeAdapter(DepthScores).validate_python(read_scores(folder / EVALUATION))
    height, width = document.model.size
    data = ModelCardData(
        license="apache-2.0",
        library_name="depthkit",
        pipeline_tag="depth-estimation",
        tags=["monocular-depth-estimation", "realtime", "onnx", "tensorrt", "openvino"],
        datasets=["nyu_depth_v2"],
        metrics=[metric.name for metric in METRICS],
        model_name=f"depthkit {document.model.network}",
        eval_results=_results(scores),
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model=document.model,
        training=training,
        scores=scores,
        metrics=METRICS,
        size=f"{height}x{width}",
    )


def _results(scores: DepthScores) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="depth-estimation",
            dataset_type="nyu_depth_v2",
            dataset_name="NYU Depth v2, official test split",
            dataset_split="test",
            metric_type=metric.name,
            metric_name=metric.heading if metric.pooled else f"{metric.heading} (depth / 10 m)",
            metric_value=metric.of(scores),
        )
        for metric in METRICS
    ]


if __name__ == "__main__":
    sys.stdout.write(f"wrote {ship(Path(sys.argv[1]), Path(sys.argv[2]))}\n")
