"""The parsers of the server: what they read, what they refuse, and that no bytes break them."""

from __future__ import annotations

import json
import math
import struct
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpupack.runtime.errors import InputError
from cpupack.runtime.serve import multipart, named, protocol, tensors
from cpupack.runtime.serve.access_log import trace_ids
from cpupack.runtime.serve.protocol import OutputTensor
from cpupack.runtime.tensor_spec import TensorSpec

ONE = {"name": "input", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}


def read(head: Any, raw: bytes | None = None) -> protocol.InferRequest:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return protocol.read_request(text + (raw or b""), None if raw is None else len(text))


def binary(size: int, datatype: str = "FP32", shape: tuple[int, ...] = (2, 2)) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "input", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}}
        ]
    }


def test_json_data_may_be_flat_or_nested() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        (tensor,) = read({"inputs": [{**ONE, "data": data}]}).inputs
        assert isinstance(tensor.data, np.ndarray)
        assert tensor.data.dtype == np.float32
        assert tensor.data.tolist() == [[1, 2], [3, 4]]


def test_binary_data_are_read_without_a_copy() -> None:
    values = np.arange(4, dtype="<f4")
    head = json.dumps(binary(16)).encode()
    body = head + values.tobytes()
    (tensor,) = protocol.read_request(body, len(head)).inputs
    assert isinstance(tensor.data, np.ndarray)
    assert tensor.data.tolist() == [[0, 1], [2, 3]]
    assert not tensor.data.flags.owndata


def test_bytes_have_their_lengths_before_them() -> None:
    raw = b"".join(struct.pack("<I", len(one)) + one for one in (b"first", b"", b"third"))
    (tensor,) = read(binary(len(raw), "BYTES", (3,)), raw).inputs
    assert [bytes(one) for one in tensor.data] == [b"first", b"", b"third"]
    assert tensors.join_bytes([b"first", b"", b"third"]) == raw


def test_outputs_and_parameters_are_read() -> None:
    request = read(
        {
            "id": "7",
            "parameters": {"binary_data_output": True, "timeout": 5},
            "inputs": [ONE],
            "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False, "classification": 3}}],
        }
    )
    assert (request.id, request.binary, request.parameters["timeout"]) == ("7", True, 5)
    assert [(one.name, one.binary, one.classes) for one in request.outputs] == [("a", True, 0), ("b", False, 3)]


@pytest.mark.parametrize(
    ("head", "raw", "words"),
    [
        (b"{", None, "is not JSON"),
        (b"\xff", None, "not UTF-8"),
        ([], None, "JSON list"),
        ({}, None, "inputs is missing"),
        ({"inputs": []}, None, "inputs is missing"),
        ({"inputs": [3]}, None, "inputs[0] is a JSON number"),
        ({"inputs": [{**ONE, "name": ""}]}, None, "name is missing"),
        ({"inputs": [{**ONE, "shape": [2, -2]}]}, None, "shape is [2, -2]"),
        ({"inputs": [{**ONE, "shape": [True, 2]}]}, None, "shape is [True, 2]"),
        ({"inputs": [{**ONE, "shape": [2**20, 2**20]}]}, None, "at most"),
        ({"inputs": [{**ONE, "datatype": "FLOAT"}]}, None, "datatype is 'FLOAT'"),
        ({"inputs": [{**ONE, "datatype": "BF16"}]}, None, "BF16"),
        ({"inputs": [{**ONE, "data": [1, 2, 3]}]}, None, "data has shape [3]; [2, 2] is stated"),
        ({"inputs": [{**ONE, "data": [[1, 2, 3, 4]]}]}, None, "data has shape [1, 4]"),
        ({"inputs": [{**ONE, "data": [[1, 2], [3]]}]}, None, "nested evenly"),
        ({"inputs": [{**ONE, "data": ["1", "2", "3", "4"]}]}, None, "does not hold values of FP32"),
        ({"inputs": [{**ONE, "data": [1, None, 3, 4]}]}, None, "does not hold values of FP32"),
        ({"inputs": [{**ONE, "data": [1, True, 3, 4]}]}, None, "has true or false among its numbers"),
        ({"inputs": [{**ONE, "datatype": "INT64", "data": [[1, 2], [3, False]]}]}, None, "true or false among"),
        ({"inputs": [{**ONE, "datatype": "UINT8", "data": [1, 2, 3, 256]}]}, None, "a number that UINT8 cannot"),
        ({"inputs": [{**ONE, "datatype": "UINT8", "data": [1, 2, 3, 4.5]}]}, None, "does not hold values of UINT8"),
        ({"inputs": [{**ONE, "datatype": "BYTES", "data": ["a"]}]}, None, "data has 1 elements; the shape says 4"),
        ({"inputs": [{"name": "input", "shape": [1], "datatype": "FP32"}]}, None, "neither data nor"),
        (b'{"inputs": [{"data": [NaN]}]}', None, "NaN is no JSON number"),
        (b'{"id": "a", "id": "b"}', None, "'id' is there twice"),
        (b"[" * 100_000, None, "nested too deeply"),
        ({"inputs": [ONE], "outputs": [{"name": "a"}, {"name": "a"}]}, None, "'a' twice"),
        ({"inputs": [ONE], "outputs": [{"name": "a", "parameters": {"classification": -1}}]}, None, "is -1"),
        ({"inputs": [ONE], "outputs": [{"name": "a", "parameters": {"binary_data": 1}}]}, None, "true or false"),
        ({"inputs": [ONE], "parameters": 3}, None, "parameters is a JSON number"),
        ({"inputs": [ONE], "id": 3}, None, "id is a JSON number"),
        (binary(15), bytes(15), "15 bytes of data; FP32 of shape [2, 2] has 16"),
        (binary(17), bytes(16), "binary_data_size is 17, and 16 bytes"),
        (binary(16), bytes(17), "1 bytes of binary data belong to no input"),
        (binary(True), bytes(1), "binary_data_size is True"),
        (binary(8, "BYTES", (2,)), struct.pack("<II", 0, 1), "a length of 1, and 0 bytes are left"),
        (binary(4, "BYTES", (2,)), bytes(4), "cannot hold 2 elements"),
        (binary(8, "BYTES", (1,)), bytes(8), "4 bytes are left after the last"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(head: Any, raw: bytes | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(head, raw)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["-1", "1e3", "", "11", "٣", "9" * 5000])
def test_the_length_of_the_json_must_be_a_number_within_the_body(text: str) -> None:
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        protocol.header_length(text, 10)


def test_an_answer_can_be_read_again() -> None:
    logits = np.array([[0.5, -1.25]], np.float32)
    outputs = [
        OutputTensor("a", "FP32", (1, 2), logits, binary=True),
        OutputTensor("b", "FP32", (1, 2), logits),
        OutputTensor("c", "BYTES", (1, 1), [b"0.5:0:cat"], binary=True),
    ]
    answer = protocol.write_answer("m", "1", "7", outputs)
    assert answer.json_length is not None
    head, raw = json.loads(answer.body[: answer.json_length]), answer.body[answer.json_length :]
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "1", "7")
    sizes = [one.get("parameters", {}).get("binary_data_size") for one in head["outputs"]]
    assert sizes == [8, None, 13]
    assert np.frombuffer(raw[:8], "<f4").tolist() == [0.5, -1.25]
    assert head["outputs"][1]["data"] == [0.5, -1.25]
    assert bytes(tensors.split_bytes(raw[8:], 1, "")[0]) == b"0.5:0:cat"


def test_json_has_no_nan_so_null_stands_for_it() -> None:
    answer = protocol.write_answer("m", "1", "", [OutputTensor("a", "FP32", (2,), np.array([math.nan, 1], np.float32))])
    assert json.loads(answer.body)["outputs"][0]["data"] == [None, 1.0]


@given(body=st.binary(max_size=300), length=st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_break_the_parser(body: bytes, length: int) -> None:
    try:
        protocol.read_request(body, min(length, len(body)))
    except InputError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    tensor=st.fixed_dictionaries(
        {"name": st.just("input") | JSON, "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
         "datatype": st.sampled_from(tensors.KNOWN) | JSON},
        optional={"data": JSON, "parameters": JSON | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40)})},
    ),
    raw=st.binary(max_size=40),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_no_json_breaks_the_parser(tensor: dict[str, Any], raw: bytes) -> None:
    """What is accepted has exactly the elements that its shape says."""
    try:
        (found,) = read({"inputs": [tensor]}, raw).inputs
    except InputError:
        return
    assert (found.data.size if isinstance(found.data, np.ndarray) else len(found.data)) == math.prod(found.shape)


def form(*files: tuple[str, bytes], boundary: bytes = b"xyz") -> bytes:
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="a.jpg"\r\n\r\n%s\r\n'
        % (boundary, name.encode(), data)
        for name, data in files
    ]
    return b"".join(parts) + b"--" + boundary + b"--\r\n"


def test_the_files_of_a_form_are_views_into_the_body() -> None:
    found = multipart.parts(form(("one", b"\r\n--xy"), ("two", b"")), b"xyz")
    assert [(part.name, part.filename, bytes(part.content)) for part in found] == [
        ("one", "a.jpg", b"\r\n--xy"), ("two", "a.jpg", b""),
    ]  # fmt: skip
    assert multipart.boundary_of('multipart/form-data; boundary="x y"') == b"x y"


@pytest.mark.parametrize("body", [b"", b"--xyz", b"--xyz\r\n", b"--xyz\r\n\r\nabc", form(("a", b"b"))[:-8], b"--xyzq"])
def test_a_damaged_form_is_refused(body: bytes) -> None:
    with pytest.raises(InputError, match="multipart"):
        multipart.parts(body, b"xyz")
    with pytest.raises(InputError, match="boundary"):
        multipart.boundary_of("multipart/form-data")


@given(st.lists(st.sampled_from([b"--xyz", b"\r\n", b"\r\n\r\n", b"--", b'name="a"', b"data"]), max_size=12))
@settings(max_examples=300, deadline=None)
def test_no_form_breaks_its_parser(pieces: list[bytes]) -> None:
    try:
        multipart.parts(b"--xyz" + b"".join(pieces), b"xyz")
    except InputError:
        return


def test_a_trace_context_is_followed_and_a_wrong_one_starts_a_new_trace() -> None:
    good = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert trace_ids(good) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    for bad in (None, b"", b"00-0-0-0", good.replace(b"00-4", b"ff-4"), good + b"-x", b"00-" + b"0" * 32 + good[35:]):
        trace, parent = trace_ids(bad)
        assert parent is None
        assert len(trace) == 32


@pytest.mark.parametrize(
    ("image", "value", "words"),
    [
        (True, [["1.5", "2"]], "x is no array of numbers"),
        (True, [[1, None]], "x is no array of numbers"),
        (True, [[0.5, True]], "x is no array of numbers"),
        (False, [[1.5, True]], "x has true or false among its numbers"),
        (False, [1, [2, False]], "x has true or false among its numbers"),
    ],
)
def test_only_numbers_are_taken_for_numbers(image: bool, value: Any, words: str) -> None:
    """numpy takes ``true`` for 1, ``"1.5"`` for 1.5, and ``null`` for NaN."""
    spec = TensorSpec("x", (3, 4, 4), preprocess=cast("Any", object()) if image else None)
    with pytest.raises(InputError, match=words):
        named._value(spec, "x", value, 0)


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("/v2/models/stats", "statistics"),
        ("/v2/models/a/stats", "statistics"),
        ("/v2/models/a/versions/1/stats", "statistics"),
        ("/v2/models/a/config", "model_configuration"),
        ("/v2/systemsharedmemory/region/r/register", "system_shared_memory"),
        ("/v2/cudasharedmemory/status", "cuda_shared_memory"),
        ("/v2/repository/models/a/load", "model_repository"),
    ],
)
def test_an_address_of_an_extension_says_which_one_is_missing(path: str, extension: str) -> None:
    text = protocol.not_offered(path)
    assert text is not None
    assert text.startswith(f"the extension {extension} is not offered here")


@pytest.mark.parametrize(
    "path", ["/v2/models/stats/infer", "/v2/models/config", "/v2/models/a/ready", "/v2", "/predict"]
)
def test_other_addresses_are_no_extension(path: str) -> None:
    assert protocol.not_offered(path) is None


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_data_in_shared_memory_are_refused(where: str) -> None:
    asked: dict[str, list[dict[str, Any]]] = {"inputs": [dict(ONE)], "outputs": [{"name": "output"}]}
    asked[where][0]["parameters"] = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
    with pytest.raises(InputError, match="shared memory is not offered here"):
        read(asked)


def test_an_array_in_the_place_of_an_image_is_told_where_it_belongs() -> None:
    """The words of the runner, "load it with np.load", are for who calls it from Python."""
    array = named.NPY + bytes(10)
    with pytest.raises(InputError, match=r"^the image is an \.npy file; send an image file, or the array as a tensor"):
        named.image_file(memoryview(array), "the image")
    with pytest.raises(InputError, match=r"^input 'left' is an \.npy file; send an image file"):
        named.with_images({"left": array, "age": 3})
    assert named.with_images({"left": memoryview(b"GIF8"), "age": 3}) == {"left": b"GIF8", "age": 3}
