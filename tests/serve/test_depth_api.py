"""`/v1/depth`: each format against what `depthkit predict` writes, and what is refused before it costs anything."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthkit.cli import run
from depthkit.data.colours import colour
from depthkit.data.images import read_image
from depthkit.pipeline.predictor import Predictor
from depthkit.pipeline.proven import prove

from ..data.test_upload import png_that_declares
from ..support import STEM, save_array
from .services import Served, fake, serving

# After `services`, which skips where Starlette is missing.
from depthkit.serve.formats import choose  # isort: skip
from depthkit.serve.repository import signature  # isort: skip

SHAPE = (97, 141)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A smooth picture that lies on its side, as a phone stores it."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 28  # FocalLengthIn35mmFilm
    path = tmp_path / "photo.jpg"
    small.resize(SHAPE, Image.Resampling.BICUBIC).save(path, quality=95, exif=exif)  # 141 rows x 97 columns
    return path


@pytest.fixture
def engine(pristine_exports: Path) -> Path:
    return pristine_exports / f"{STEM}.fp32.ort.onnx"


@pytest.fixture
def served(engine: Path) -> Iterator[Served]:
    with serving({"a": partial(prove, engine, 1), "b": fake()}) as server:
        yield server


def picture_in(body: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(body)) as picture:
        return np.asarray(picture)


def test_every_format_is_what_predict_writes(served: Served, engine: Path, photo: Path, tmp_path: Path) -> None:
    more = ("--intrinsics", "exif", "--colormap", "magma", "--save", "depth16,npy,color,ply")
    assert run(["predict", str(engine), str(photo), "--out", str(tmp_path), *more]) == 0
    client, sent = served.client(), photo.read_bytes()

    def asked(accept: str) -> bytes:
        answer = client.post("/v1/depth?model=a&intrinsics=exif", sent, Accept=accept)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == accept.partition(";")[0]
        assert answer.headers["depth-model"] == "a/1"
        return answer.body

    written = np.load(tmp_path / "photo_depth.npy")
    assert written.shape == SHAPE
    np.testing.assert_array_equal(np.load(io.BytesIO(asked("application/x-npy"))), written)
    np.testing.assert_array_equal(
        picture_in(asked("image/png")), picture_in((tmp_path / "photo_depth16.png").read_bytes())
    )
    colours = picture_in((tmp_path / "photo_depth.png").read_bytes())
    np.testing.assert_array_equal(picture_in(asked("image/png;colormap=magma")), colours)
    assert asked("application/x-ply") == (tmp_path / "photo_depth.ply").read_bytes()


def test_without_a_wish_it_is_a_16_bit_png_by_the_first_model(served: Served, engine: Path, photo: Path) -> None:
    answer = served.client().post("/v1/depth", photo.read_bytes())
    with Predictor(engine) as predictor:
        expected = predictor(read_image(photo))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["depth-unit"] == "millimetres"
    found = picture_in(answer.body)
    assert found.dtype == np.uint16
    assert np.abs(found / 1000 - expected).max() <= 0.00051
    phases = [entry.partition(";dur=") for entry in answer.headers["server-timing"].split(", ")]
    assert {name for name, _, _ in phases} == {"decode", "queue", "run", "encode"}
    assert all(float(milliseconds) >= 0 for _, _, milliseconds in phases)


def test_json_is_at_the_engines_size(served: Served, engine: Path, photo: Path) -> None:
    found = served.client().post("/v1/depth?model=a&version=1", photo.read_bytes(), Accept="application/json").json
    with Predictor(engine) as predictor:
        expected = predictor(read_image(photo), predictor.size)
    assert (found["picture"], found["shape"], found["unit"]) == (list(SHAPE), [32, 48], "metres")
    assert np.abs(np.array(found["depth"]) - expected).max() <= 0.00005 + 1e-6
    assert found["min"] <= found["median"] <= found["max"]
    assert (found["model_name"], found["model_version"]) == ("a", "1")


def test_depth_at_the_engines_size_and_a_range_of_colours(served: Served, photo: Path) -> None:
    client, sent = served.client(), photo.read_bytes()
    small = client.post("/v1/depth?size=engine", sent, Accept="application/x-npy")
    assert np.load(io.BytesIO(small.body)).shape == (32, 48)
    near, far = (
        picture_in(client.post(f"/v1/depth?range={span}", sent, Accept="image/png;colormap=gray").body)
        for span in ("0.1,1000", "0.01,0.1")
    )
    assert near.max() < 10
    assert far.min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_format_of_pictures_is_read(served: Served, kind: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (80, 0, 0)).save(stream, kind, quality=100)
    answer = served.client().post("/v1/depth?model=b&size=engine", stream.getvalue(), Accept="application/x-npy")
    assert np.load(io.BytesIO(answer.body)) == pytest.approx(8.0, abs=0.2)


PIXEL = io.BytesIO()
Image.new("RGB", (4, 4)).save(PIXEL, "PNG")


@pytest.mark.parametrize(
    ("query", "accept", "body", "status", "words"),
    [
        ("", "*/*", b"", 400, "the picture is no JPEG, PNG or WebP"),
        ("", "*/*", b"GIF89a" + bytes(99), 400, "the picture is no JPEG, PNG or WebP"),
        ("", "*/*", PIXEL.getvalue()[:45], 400, "the picture cannot be decoded"),
        ("", "*/*", png_that_declares(50_001, 1000), 400, "more than 50 million"),
        ("model=c", "*/*", None, 404, "there is no model 'c'; choose one of a, b"),
        ("model=a&version=2", "*/*", None, 404, "no version '2'"),
        ("modell=a", "*/*", None, 400, "no parameter 'modell'; choose from intrinsics, model, range"),
        ("timeout_ms=soon", "*/*", None, 400, "timeout_ms is 'soon'; give milliseconds"),
        ("timeout_ms=-1", "*/*", None, 400, "timeout_ms is '-1'"),
        ("size=huge", "*/*", None, 400, "size is 'huge'; choose picture or engine"),
        ("range=5,1", "*/*", None, 400, "range is '5,1'; give the nearest"),
        ("range=nan,1", "*/*", None, 400, "range is 'nan,1'"),
        ("", "text/html", None, 406, "no format for Accept: text/html; choose image/png, image/png;colormap=NAME"),
        ("", "image/png;q=0", None, 406, "no format for Accept"),
        ("", "image/png;Q=0", None, 406, "no format for Accept"),
        ("intrinsics=", "application/x-ply", None, 400, "needs the camera: add intrinsics="),
        ("", "image/png;colormap=rainbows", None, 400, "no colormap 'rainbows'"),
        ("", "application/x-ply", None, 400, "needs the camera: add intrinsics="),
        ("intrinsics=fov=200", "*/*", None, 400, "the horizontal field of view is 200"),
        ("intrinsics=/etc/passwd", "*/*", None, 400, "is none of"),
        ("intrinsics=/etc/K.json", "*/*", None, 400, "is none of"),
        ("intrinsics=exif", "*/*", None, 400, "no focal length in its EXIF tags"),
    ],
)
def test_what_is_refused(served: Served, query: str, accept: str, body: bytes | None, status: int, words: str) -> None:
    client = served.client()
    answer = client.post(f"/v1/depth?{query}", PIXEL.getvalue() if body is None else body, Accept=accept)
    assert answer.status == status, answer.body
    assert words in answer.error
    assert client.post("/v1/depth", PIXEL.getvalue()).status == 200


def test_a_form_is_refused_with_the_next_step(served: Served) -> None:
    answer = served.client().post("/v1/depth", b"--x", Content_Type="multipart/form-data; boundary=x")
    assert answer.status == 415
    assert "curl --data-binary @photo.jpg" in answer.error


def test_an_engine_of_a_fixed_batch_answers_one_picture() -> None:
    with serving({"a": fake(batch=3)}) as served:
        answer = served.client().post("/v1/depth", PIXEL.getvalue(), Accept="application/x-npy")
        assert np.load(io.BytesIO(answer.body)).shape == (4, 4)


def test_depth_without_a_number_is_null_in_json() -> None:
    def hole(frame: np.ndarray) -> np.ndarray:
        return np.where(np.arange(frame.shape[1]) < 3, np.nan, np.ones(frame.shape[:2])).astype(np.float32)

    with serving({"a": fake(answer=hole)}) as served:
        found = served.client().post("/v1/depth", PIXEL.getvalue(), Accept="application/json").json
    assert found["depth"][0][:4] == [None, None, None, 1.0]
    assert (found["min"], found["max"]) == (1.0, 1.0)


def test_a_model_without_metres_has_them_by_the_scale_of_its_run(
    inverse: Path, pristine_exports: Path, photo: Path, tmp_path: Path
) -> None:
    sent = photo.read_bytes()
    with serving({"a": partial(prove, inverse, 1)}) as server:
        client = server.client()
        plain = client.post("/v1/depth", sent, Accept="application/x-npy")
        assert plain.headers["Depth-Unit"] == "inverse depth without unit"
        assert client.post("/v1/depth", sent).status == 400
        near, far = (float(np.percentile(np.load(io.BytesIO(plain.body)), share)) for share in (98, 2))
        by_range = client.post(f"/v1/depth?range={far},{near}", sent, Accept="image/png;colormap=turbo")
        np.testing.assert_array_equal(
            picture_in(by_range.body), colour(np.load(io.BytesIO(plain.body)), (near, far)), "near is blue"
        )
    answer = np.load(io.BytesIO(plain.body))
    metres = np.rint(2000 / (answer - 1)).astype(np.uint16)
    Image.fromarray(read_image(photo)).save(tmp_path / "upright.png")
    points = save_array(tmp_path / "points.png", metres)
    command = ["predict", str(inverse), str(tmp_path / "upright.png"), "--calibrate-scale", str(points)]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    with serving({"a": partial(prove, inverse, 1)}) as server:
        client = server.client()
        scaled = client.post("/v1/depth", sent, Accept="application/x-npy")
        assert scaled.headers["Depth-Unit"] == "metres"
        written = np.load(tmp_path / "out" / "upright_depth.npy")
        np.testing.assert_allclose(np.load(io.BytesIO(scaled.body)), written, rtol=1e-3)
        assert client.post("/v1/depth", sent).headers["Depth-Unit"] == "millimetres"
        described = client.get("/v2/models/a").json
        assert described["parameters"]["unit"] == "inverse depth without unit", "tensors are what the engine answers"
        assert described["parameters"]["v1_depth"] == {"unit": "metres", "answers": "metres"}


def test_a_signature_changes_with_the_scale(inverse: Path) -> None:
    before = signature(inverse)
    inverse.with_name("scale.json").write_text("{}")
    assert signature(inverse) != before


def test_a_signature_changes_with_the_scale_of_an_onnx_file(inverse: Path) -> None:
    target = inverse.with_name(f"{STEM}.fp32.onnx")
    before = signature(target)
    target.with_name("scale.json").write_text("{}")
    assert len(before) == 1
    assert signature(target) != before


@pytest.mark.parametrize(
    ("accept", "kind", "colormap"),
    [
        ("application/*", "application/x-npy", ""),
        ("image/*", "image/png", ""),
        ("image/png;q=0, */*", "application/x-npy", ""),
        ("image/png;q=0.5, application/json;q=0.9", "application/json", ""),
        ('image/png;colormap="magma"', "image/png", "magma"),
        ("image/*; ColorMap=magma", "image/png", "magma"),
        ("", "image/png", ""),
    ],
)
def test_what_a_client_accepts(accept: str, kind: str, colormap: str) -> None:
    found, colours = choose(accept)
    assert (found.media_type, colours) == (kind, colormap)
