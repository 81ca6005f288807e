"""The inference protocol: what our own and Triton's client write and read, and that nothing malformed passes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from depthkit.errors import ProtocolError
from depthkit.runtime import kserve
from depthkit.spec import Dim, camera_ready

IMAGE, DEPTH = camera_ready(2, 3)
ONE = np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
MANY_IMAGE, MANY_DEPTH = camera_ready(2, 3, Dim("batch", 1, 2, 4))

batches = st.integers(1, 4)
images = batches.flatmap(lambda n: arrays(np.uint8, (n, 2, 3, 3)))
depths = batches.flatmap(lambda n: arrays(np.float32, (n, 2, 3), elements=st.floats(width=32)))
flags = st.booleans()


def joined(written: tuple[int | None, list[kserve.Part]]) -> tuple[bytes, int | None]:
    """What of `write_request` or `write_response` goes into `read_request` or `read_response`."""
    length, parts = written
    return b"".join(parts), length


def read(body: bytes | dict[str, Any], length: int | None = None, **tensors: Any) -> kserve.InferRequest:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return kserve.read_request(text, length, tensors.get("image", IMAGE), tensors.get("depth", DEPTH))


def request(**changes: Any) -> dict[str, Any]:
    """A valid request in JSON, with other entries of its tensor, or (names with a capital) of the request."""
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 3, 3], "data": ONE.ravel().tolist()}
    tensor |= {key: value for key, value in changes.items() if key.islower()}
    whole = {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}
    return whole | {key.lower(): value for key, value in changes.items() if not key.islower()}


@given(image=images, binary=flags, timeout=st.none() | st.integers(1, 1 << 40))
def test_a_request_arrives_as_it_was_written(image: np.ndarray, binary: bool, timeout: int | None) -> None:
    written = kserve.write_request(image, MANY_IMAGE, MANY_DEPTH, binary=binary, timeout_us=timeout)
    found = kserve.read_request(*joined(written), MANY_IMAGE, MANY_DEPTH)
    np.testing.assert_array_equal(found.image, image)
    assert found.image.dtype == np.uint8
    assert (found.binary, found.timeout_us, found.id) == (binary, timeout, "")
    assert (written[0] is not None) == binary


@given(depth=depths)
def test_depth_arrives_bit_for_bit_as_bytes(depth: np.ndarray) -> None:
    asked = kserve.InferRequest(ONE, binary=True)
    found = kserve.read_response(*joined(kserve.write_response("m", "1", asked, MANY_DEPTH, depth)), MANY_DEPTH)
    assert found.tobytes() == depth.tobytes()


@given(depth=batches.flatmap(lambda n: arrays(np.float32, (n, 2, 3), elements=st.floats(-1e6, 1e6, width=32))))
def test_finite_depth_arrives_bit_for_bit_as_json(depth: np.ndarray) -> None:
    asked = kserve.InferRequest(ONE, id="7", binary=False)
    body, length = joined(kserve.write_response("m", "1", asked, MANY_DEPTH, depth))
    assert length is None
    assert kserve.read_response(body, None, MANY_DEPTH).tobytes() == depth.tobytes()
    assert json.loads(body)["id"] == "7"


def test_depth_that_is_not_finite_is_null_in_json() -> None:
    depth = np.array([[[1, np.nan, 2], [np.inf, 3, -np.inf]]], np.float32)
    body, _ = joined(kserve.write_response("m", "1", kserve.InferRequest(ONE), DEPTH, depth))
    assert json.loads(body)["outputs"][0]["data"] == [1, None, 2, None, 3, None]


@given(image=images, binary=flags, asked=st.none() | flags, identity=st.text(st.characters(codec="ascii"), max_size=9))
def test_requests_of_tritons_client_are_understood(
    image: np.ndarray, binary: bool, asked: bool | None, identity: str
) -> None:
    client = pytest.importorskip("tritonclient.http")
    tensor = client.InferInput("image", list(image.shape), "UINT8").set_data_from_numpy(image, binary_data=binary)
    outputs = None if asked is None else [client.InferRequestedOutput("depth", binary_data=asked)]
    body, length = client.InferenceServerClient.generate_request_body(
        [tensor], outputs=outputs, request_id=identity, timeout=250
    )
    found = kserve.read_request(bytes(body), length, MANY_IMAGE, MANY_DEPTH)
    np.testing.assert_array_equal(found.image, image)
    assert (found.binary, found.id, found.timeout_us) == (asked is not False, identity, 250)


@given(depth=depths, identity=st.text(st.characters(codec="ascii"), max_size=9))
def test_tritons_client_understands_answers(depth: np.ndarray, identity: str) -> None:
    client = pytest.importorskip("tritonclient.http")
    asked = kserve.InferRequest(ONE, identity, binary=True)
    body, length = joined(kserve.write_response("m", "3", asked, MANY_DEPTH, depth))
    found = client.InferenceServerClient.parse_response_body(body, header_length=length)
    assert found.as_numpy("depth").tobytes() == depth.tobytes()
    assert (found.get_response()["model_name"], found.get_response()["model_version"]) == ("m", "3")
    assert found.get_response().get("id", "") == identity


def test_data_may_be_nested_as_the_shape() -> None:
    np.testing.assert_array_equal(read(request(data=ONE.tolist())).image, ONE)


def test_a_request_without_outputs_gets_all_of_them() -> None:
    assert not read(request()).binary
    assert not read(request(OUTPUTS=[])).binary
    assert read(request(PARAMETERS={"binary_data_output": True})).binary
    mixed = request(
        PARAMETERS={"binary_data_output": True}, OUTPUTS=[{"name": "depth", "parameters": {"binary_data": False}}]
    )
    assert not read(mixed).binary


def test_a_timeout_of_zero_is_none() -> None:
    assert read(request(PARAMETERS={"timeout": 0})).timeout_us is None


def test_the_image_is_not_copied() -> None:
    body, length = joined(kserve.write_request(ONE, IMAGE, DEPTH))
    found = kserve.read_request(body, length, IMAGE, DEPTH).image
    assert not found.flags.owndata
    assert not found.flags.writeable


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the request has no JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"NaN", "NaN is not JSON"),
        (b"1" * 5000, "not JSON"),
        ([], "must be a JSON object, not a list"),
        ({}, "inputs must be a list of one object, 'image'"),
        ({"inputs": [1]}, "inputs must be a list of one object"),
        (request(name="x"), "inputs has 'x', but the model has 'image'"),
        (request(datatype="FP32"), "datatype 'FP32', not UINT8"),
        (request(datatype=...), "datatype missing, not UINT8"),
        (request(shape=[1, 2, 3]), "shape [1, 2, 3]"),
        (request(shape=[True, 2, 3, 3]), "list of whole numbers"),
        (request(shape=[1, 2, 3, -3]), "the model takes (1, 2, 3, 3)"),
        (request(shape=[1 << 40]), "the model takes"),
        (request(shape=[]), "the model takes"),
        (request(shape="1x2x3x3"), "shape of image is '1x2x3x3'"),
        (request(shape=[2, 2, 3, 3], data=[0] * 36), "shape [2, 2, 3, 3], and the model takes (1, 2, 3, 3)"),
        (request(shape=[1, 3, 2, 3]), "the model takes (1, 2, 3, 3)"),
        (request(data=...), "neither data nor binary_data_size"),
        (request(data=[]), "does not fit its shape [1, 2, 3, 3]; send 18 numbers in one list"),
        (request(data=[0] * 17), "does not fit its shape [1, 2, 3, 3]"),
        (request(data=[0] * 17 + [256]), "outside 0 to 255"),
        (request(data=[0] * 17 + [-1]), "outside 0 to 255"),
        (request(data=[0] * 17 + [10**30]), "outside 0 to 255"),
        (request(data=[0] * 17 + [0.5]), "must be whole numbers"),
        (request(data=[False] * 18), "must be whole numbers"),
        (request(data=["0"] * 18), "must be whole numbers"),
        (request(data=[None] * 18), "must be whole numbers"),
        (request(data=[True] + [0] * 17), "must be whole numbers"),
        (request(data=["a" * 10**6] + [0] * 17), "must be whole numbers"),
        (request(data=[[0] * 9, [0] * 8]), "does not fit"),
        (request(data=[[[[0] * 3] * 3, [[0] * 3] * 2]]), "does not fit"),
        (request(data=[0, [0]] * 9), "must be whole numbers"),
        (request(data=ONE.reshape(2, 3, 3).tolist()), "does not fit"),
        (request(data=..., parameters={"binary_data_size": 18}), "0 bytes follow the JSON"),
        (request(parameters={"binary_data_size": 18}), "both data and binary_data_size"),
        (request(parameters=[]), "parameters of tensor 'image' are a list"),
        (request(parameters={"shared_memory_region": "a"}), "extension that this server lacks"),
        (request(OUTPUTS=[{"name": "metres"}]), "outputs has 'metres', but the model has 'depth'"),
        (request(OUTPUTS=[{"name": "depth"}] * 2), "outputs must be a list of one object"),
        (request(OUTPUTS=[{"name": "depth", "parameters": {"classification": 1}}]), "extension that this server lacks"),
        (request(OUTPUTS=[{"name": "depth", "parameters": {"binary_data": 1}}]), "binary_data is 1, not true or false"),
        (request(PARAMETERS={"timeout": -1}), "timeout is -1; give whole microseconds"),
        (request(PARAMETERS={"timeout": "1s"}), "timeout is '1s'"),
        (request(PARAMETERS={"timeout": 10**400}), "from 0 to 2^64"),
        (request(ID=7), "id is 7; it must be a string"),
        (request(ID="a" * 100, PARAMETERS=3), "parameters of the request are 3, not an object"),
    ],
)
def test_malformed_requests_are_refused_with_a_sentence(body: Any, words: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(body if isinstance(body, bytes | dict) else json.dumps(body).encode())
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("length", [-1, 10_000, 0, 5])
def test_a_wrong_header_length_is_refused(length: int) -> None:
    body, _ = joined(kserve.write_request(ONE, IMAGE, DEPTH))
    with pytest.raises(ProtocolError):
        read(body, length)


def test_bytes_that_nothing_describes_are_refused() -> None:
    text = json.dumps(request()).encode()
    with pytest.raises(ProtocolError, match="3 bytes follow the JSON"):
        read(text + b"abc", len(text))


@settings(max_examples=300)
@given(data=st.data())
def test_no_mutation_of_a_valid_body_raises_anything_else(data: st.DataObject) -> None:
    """Bytes that were changed, cut out or put in: understood as a valid image, or refused by a ProtocolError."""
    whole, length = joined(kserve.write_request(ONE, IMAGE, DEPTH, binary=data.draw(flags)))
    at = data.draw(st.integers(0, len(whole)))
    cut = data.draw(st.integers(0, 8))
    body = whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + cut :]
    header = data.draw(st.sampled_from([length, None]) | st.integers(-2, len(body) + 2))
    try:
        found = kserve.read_request(body, header, IMAGE, DEPTH)
    except ProtocolError:
        return
    assert found.image.shape == (1, 2, 3, 3)
    assert found.image.dtype == np.uint8


@settings(max_examples=40)
@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "id"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_raises_anything_else(document: Any) -> None:
    for body in ({"inputs": [document]}, request(data=document), request(shape=document), request(PARAMETERS=document)):
        try:
            read(body)
        except ProtocolError:
            continue
        assert body["inputs"][0]["datatype"] == "UINT8"


def test_a_response_with_another_tensor_is_refused() -> None:
    body, length = joined(
        kserve.write_response("m", "1", kserve.InferRequest(ONE, binary=True), DEPTH, np.ones((1, 2, 3), np.float32))
    )
    with pytest.raises(ProtocolError, match="the model takes"):
        kserve.read_response(body, length, camera_ready(3, 2)[1])


def test_json_of_a_valid_request_is_below_the_limit() -> None:
    image = np.full((4, 2, 3, 3), 255, np.uint8)
    _, (text,) = kserve.write_request(image, MANY_IMAGE, MANY_DEPTH, binary=False)
    assert len(text) < kserve.most_json(MANY_IMAGE) == 16 * 72 + 65536
