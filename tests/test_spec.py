"""ModelSpec: a JSON document that is read strictly; tensors and sizes that are checked before a vendor sees them."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthkit.documents import from_json, to_json
from depthkit.errors import FrameError, SpecError
from depthkit.sizes import check_size
from depthkit.spec import Answers, Dim, ModelSpec, Preprocessing, TensorSpec, camera_ready

from .support import Place, at, before_answers, before_camera, before_focal, places

FLOATS = st.floats(-1e6, 1e6, allow_nan=False)
TRIPLES = st.tuples(FLOATS, FLOATS, FLOATS)
DIMS = st.lists(st.integers(1, 64), min_size=3, max_size=3).map(lambda sizes: Dim("batch", *sorted(sizes)))
COLORS: Any = st.sampled_from(["RGB", "BGR"])
POSITIVE = st.floats(0, 1e6, exclude_min=True)
SIZES = st.integers(1, 1000)
FOCALS = st.floats(0, exclude_min=True, allow_infinity=False)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    image, depth = camera_ready(draw(SIZES), draw(SIZES), draw(st.integers(1, 64) | DIMS))
    spec = ModelSpec(
        network=draw(st.text(max_size=8)),
        widths=tuple(draw(st.lists(st.integers(1, 2048), max_size=9))),
        input=image,
        output=depth,
        preprocessing=Preprocessing(*draw(st.tuples(COLORS, TRIPLES, TRIPLES, POSITIVE))),
        depth_range=draw(st.tuples(FLOATS, FLOATS)),
        parameters=draw(st.integers(0, 10**9)),
        macs=draw(st.integers(0, 10**13)),
        focal=draw(st.none() | FOCALS),
        answers=draw(st.sampled_from(get_args(Answers))),
        network_output=draw(st.none() | st.text(max_size=8)),
    )
    larger = draw(st.none() | st.tuples(st.integers(0, 2000), st.integers(0, 2000)))
    return spec.with_camera(None if larger is None else (spec.size[0] + larger[0], spec.size[1] + larger[1]))


EXAMPLE = ModelSpec(
    "compact",
    (24, 96),
    *camera_ready(32, 48, Dim("batch", 1, 2, 4)),
    Preprocessing("RGB", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    (0.5, 10.0),
    100,
    1000,
    0.75,
    network_output="depth",
)
DOCUMENT: dict[str, Any] = json.loads(to_json(EXAMPLE))


PLACES = list(places(DOCUMENT))
KEYS = [path for path, _ in PLACES if path and isinstance(path[-1], str)]
OBJECTS = [path for path, node in PLACES if isinstance(node, dict)]


def _named(path: Place) -> str:
    return ".".join(map(str, path)) or "root"


def _refusal(document: Any) -> str:
    """What SpecError says of a document."""
    with pytest.raises(SpecError) as caught:
        from_json(ModelSpec, json.dumps(document), source="it.json")
    return str(caught.value)


@given(spec=specs())
def test_json_round_trip_is_exact(spec: ModelSpec) -> None:
    text = to_json(spec)
    assert from_json(ModelSpec, text, source="it") == spec
    assert to_json(from_json(ModelSpec, text, source="it")) == text
    assert text.endswith("}\n")


@pytest.mark.parametrize("path", KEYS, ids=_named)
def test_missing_key_is_named(path: Place) -> None:
    document = copy.deepcopy(DOCUMENT)
    del at(document, path[:-1])[path[-1]]
    message = _refusal(document)
    assert "it.json" in message
    assert str(path[-1]).replace("_", " ") in message.replace("_", " ")


@pytest.mark.parametrize("path", OBJECTS, ids=_named)
def test_unknown_key_is_named(path: Place) -> None:
    document = copy.deepcopy(DOCUMENT)
    at(document, path)["colour_of_the_sky"] = "blue"
    assert "colour_of_the_sky" in _refusal(document)


@pytest.mark.parametrize("path", [path for path, _ in PLACES if path], ids=_named)
def test_value_of_another_type_is_named(path: Place) -> None:
    nothing: list[Any] = [] if path in {("focal",), ("resized_to",), ("network_output",)} else [None]
    others = [*nothing, True, "1", {}, [], {"x": 1}]
    place = "schema version" if path == ("schema_version",) else str(path[0])
    for value in others:
        document = copy.deepcopy(DOCUMENT)
        if type(value) is not type(at(document, path)):
            at(document, path[:-1])[path[-1]] = value
            assert place in _refusal(document)


def test_every_fault_is_named_at_once() -> None:
    document = {**DOCUMENT, "sky": 1, "network": 7, "macs": "many"}
    del document["widths"]
    message = _refusal(document)
    assert all(word in message for word in ("sky", "network", "macs", "widths"))


@given(version=st.integers().filter(lambda n: n != 4))
def test_other_schema_version_is_one_sentence_with_both(version: int) -> None:
    message = _refusal({**DOCUMENT, "schema_version": version})
    assert re.search(rf"it\.json.*version {version}\b.*version 4\b", message)


@given(spec=specs())
def test_spec_of_an_older_version_has_an_unknown_camera_and_resizes_nothing(spec: ModelSpec) -> None:
    preprocessing = replace(spec.preprocessing, scale=255.0)
    spec = replace(spec, answers="share", network_output=None, preprocessing=preprocessing)
    assert from_json(ModelSpec, json.dumps(before_answers(to_json(spec))), source="it") == spec
    plain = replace(spec, resized_to=None)
    assert from_json(ModelSpec, json.dumps(before_camera(to_json(spec))), source="it") == plain
    assert from_json(ModelSpec, json.dumps(before_focal(to_json(spec))), source="it") == replace(plain, focal=None)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_what_an_older_version_did_not_have_is_not_dropped(version: int) -> None:
    assert f"version {version}" in _refusal({**DOCUMENT, "schema_version": version})


@given(spec=specs(), size=st.tuples(SIZES, SIZES))
def test_camera_is_at_least_as_large_as_the_network(spec: ModelSpec, size: tuple[int, int]) -> None:
    network = spec.network_size
    assert spec.with_camera(None).size == network
    if any(given < needed for given, needed in zip(size, network, strict=True)):
        with pytest.raises(SpecError, match=f"camera {size[0]}x{size[1]} .*smaller.*{network[0]}x{network[1]}"):
            spec.with_camera(size)
        return
    found = spec.with_camera(size)
    assert (found.size, found.network_size, found.batch) == (size, network, spec.batch)
    assert found.with_batch(7).with_camera(spec.size).with_batch(spec.batch) == spec
    assert found.describe_sizes().startswith(f"{network[0]}x{network[1]}")


@pytest.mark.parametrize("network", [[32, 48], [33, 48], [16], [16, 16, 16], [0, 16]])
def test_graph_does_not_enlarge_frames_or_resize_to_their_own_size(network: list[int]) -> None:
    assert "it.json" in _refusal({**DOCUMENT, "resized_to": network})


@pytest.mark.parametrize("focal", [0, -0.5, float("nan"), float("inf"), "0.8", True])
def test_focal_length_that_is_none_is_refused(focal: Any) -> None:
    assert "focal" in _refusal({**DOCUMENT, "focal": focal})
    with pytest.raises(ValueError, match="focal"):
        replace(EXAMPLE, focal=focal)


@given(focal=st.floats(0.1, 20))
def test_camera_is_described_by_focal_length_and_field_of_view(focal: float) -> None:
    said = replace(EXAMPLE, focal=focal).describe_camera()
    length, degrees = re.findall(r"length of ([\d.]+) .*\((\d+)° wide\)", said)[0]
    assert float(length) == pytest.approx(focal, abs=5e-4)
    assert 2 * focal * math.tan(math.radians(int(degrees)) / 2) == pytest.approx(1, rel=0.3 if focal > 2 else 0.03)
    assert said.endswith(f"multiply depth by its focal length / {length}.")
    assert "unknown" in replace(EXAMPLE, focal=None).describe_camera()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"spec"', "{}", "\0", "[" * 100_000])
def test_what_is_no_document_is_a_spec_error(text: str) -> None:
    with pytest.raises(SpecError, match=r"it\.json"):
        from_json(ModelSpec, text, source="it.json")


@pytest.mark.parametrize("shape", [[1, 32, 48], [1, 32, 48, 3, 1], [1, 32, 48, 4], [1, 48, 32, 3], [2, 32, 48, 3]])
def test_document_whose_ends_do_not_fit_each_other_is_refused(shape: list[int]) -> None:
    """A manifest edited by hand must not surface later as an assertion or as a frame with swapped axes."""
    document = json.loads(to_json(EXAMPLE.with_batch(1)))
    document["input"]["shape"] = shape
    assert "it.json" in _refusal(document)


@given(height=st.integers(-40, 3000), width=st.integers(-40, 3000))
def test_size_is_refused_with_the_nearest_sizes_that_are_taken(height: int, width: int) -> None:
    if height > 0 and width > 0 and height % 16 == 0 and width % 16 == 0:
        check_size(height, width)
        return
    with pytest.raises(SpecError, match=f"{height}x{width}.*16") as caught:
        check_size(height, width)
    _, _, remedy = str(caught.value).partition(";")
    nearest = [(int(h), int(w)) for h, w in re.findall(r"(\d+)x(\d+)", remedy)]
    assert 1 <= len(nearest) <= 2
    assert len(set(nearest)) == len(nearest)
    for h, w in nearest:
        check_size(h, w)
        assert abs(h - max(height, 1)) < 16
        assert abs(w - max(width, 1)) < 16


@given(sizes=st.tuples(*[st.integers(1, 100)] * 3))
def test_dim_takes_only_an_ordered_range(sizes: tuple[int, int, int]) -> None:
    if sizes == tuple(sorted(sizes)):
        assert Dim("batch", *sizes).opt == sizes[1]
    else:
        with pytest.raises(ValueError, match="min <= opt <= max"):
            Dim("batch", *sizes)
        document = copy.deepcopy(DOCUMENT)
        document["input"]["shape"][0] = {"name": "batch", "min": sizes[0], "opt": sizes[1], "max": sizes[2]}
        assert "min <= opt <= max" in _refusal(document)


@given(batch=DIMS, frames=st.integers(0, 80))
def test_dynamic_batch_takes_its_range_and_no_more(batch: Dim, frames: int) -> None:
    _, depth = camera_ready(16, 32, batch)
    array = np.broadcast_to(np.float32(1), (frames, 16, 32))
    if batch.min <= frames <= batch.max:
        depth.check(array)
    else:
        with pytest.raises(FrameError, match="depth must have shape"):
            depth.check(array)


@given(shape=st.lists(st.sampled_from([1, 3, 4, 16, 32]), min_size=0, max_size=5).map(tuple))
def test_only_the_specs_own_shape_passes(shape: tuple[int, ...]) -> None:
    image, _ = camera_ready(16, 32, 4)
    array = np.zeros(shape, np.uint8)
    if shape == (4, 16, 32, 3):
        image.check(array)
    else:
        with pytest.raises(FrameError, match=re.escape("(4, 16, 32, 3)")) as caught:
            image.check(array)
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "float64", "bool", "object"])
def test_other_dtype_is_named_with_the_one_that_is_taken(dtype: str) -> None:
    image, _ = camera_ready(16, 32)
    with pytest.raises(FrameError, match=f"image.*uint8.*{dtype}"):
        image.check(np.zeros((1, 16, 32, 3), dtype))


def test_other_byte_order_is_refused() -> None:
    _, depth = camera_ready(16, 32)
    with pytest.raises(FrameError, match="depth"):
        depth.check(np.zeros((1, 16, 32), ">f4"))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 16, 32), np.float32, order="F"),
        np.zeros((1, 16, 64), np.float32)[:, :, ::2],
        np.zeros((1, 16, 32), np.float32)[:, ::-1],
    ],
    ids=["fortran", "strided", "flipped"],
)
def test_buffer_that_is_not_contiguous_is_refused(array: np.ndarray) -> None:
    _, depth = camera_ready(16, 32)
    depth.check(array)
    with pytest.raises(FrameError, match=r"depth.*contiguous"):
        depth.check_buffer(array, written=False)


def test_read_only_buffer_may_be_read_and_not_written() -> None:
    _, depth = camera_ready(16, 32)
    array = np.zeros((1, 16, 32), np.float32)
    array.flags.writeable = False
    depth.check_buffer(array, written=False)
    with pytest.raises(FrameError, match=r"depth.*read-only"):
        depth.check_buffer(array, written=True)


@given(spec=specs(), batch=st.integers(1, 64) | DIMS)
def test_with_batch_changes_nothing_but_the_batch(spec: ModelSpec, batch: int | Dim) -> None:
    other = spec.with_batch(batch)
    assert other.batch == batch
    assert other.output.shape[0] == batch
    assert other.size == spec.size
    assert replace(other, input=spec.input, output=spec.output) == spec
    assert other.with_batch(spec.batch) == spec


@pytest.mark.parametrize("batch", [0, -1])
def test_shapes_are_positive(batch: int) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        TensorSpec("depth", "float32", (batch, 16, 32), "NHW")
