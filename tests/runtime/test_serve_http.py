"""The server over HTTP: a real package, a real process, real sockets."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.runner import Runner
from helpers.served import Answer, Served, serving
from helpers.tiny_package import CLASSES
from helpers.waiting import PATIENCE_S, wait_until

MODEL, VERSION = "tiny-int8", "1.0.0"
INFER = f"/v2/models/{MODEL}/infer"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


PNG = encoded()
CURL_D = "application/x-www-form-urlencoded"
GIANT = PNG[:16] + struct.pack(">II", 60_000, 60_000) + PNG[24:29]
GIANT += struct.pack(">I", zlib.crc32(GIANT[12:])) + PNG[33:]
"""A file of a few kilobytes that says that it has 60,000 x 60,000 pixels."""


@pytest.fixture(scope="module")
def server(package_dir: Path) -> Iterator[Served]:
    with serving(package_dir, "--client-timeout", "2", "--max-body-mb", "1", "--batch-size", "4") as served:
        yield served


@pytest.fixture(scope="module")
def runner(package_dir: Path) -> Iterator[Runner]:
    with Runner(package_dir) as one:
        yield one


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "input", "shape": [3, 16, 16, 3], "datatype": "UINT8", "data": PIXELS.tolist(), **changes}


def mixed(head: dict[str, Any], raw: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(head).encode()
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


def logits(answer: Answer) -> np.ndarray[Any, Any]:
    assert answer.status == 200, answer.body
    if (length := answer.headers.get("inference-header-content-length")) is None:
        (output,) = answer.json()["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])
    head = json.loads(answer.body[: int(length)])
    return np.frombuffer(answer.body[int(length) :], "<f4").reshape(head["outputs"][0]["shape"])


def test_health_and_metadata(server: Served) -> None:
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2", "/v2/"):
        found = server.get(path).json()
        assert (found["name"], found["extensions"]) == ("cpupack", ["binary_tensor_data", "classification"])
    for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/", f"/v2/models/{MODEL}/versions/{VERSION}"):
        assert server.get(path).json() == {
            "name": MODEL,
            "versions": [VERSION],
            "platform": "cpupack",
            "inputs": [{"name": "input", "datatype": "UINT8", "shape": [-1, 16, 16, 3]}],
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, CLASSES]}],
        }
        assert server.get(path.rstrip("/") + "/ready").json() == {"name": MODEL, "ready": True}


def test_every_form_of_a_tensor_gives_what_the_runner_gives(server: Served, runner: Runner) -> None:
    expected = runner(PIXELS)
    answers = [server.infer(MODEL, {"inputs": [tensor()], "id": "7"})]
    assert answers[0].json()["id"] == "7"
    described = tensor(parameters={"binary_data_size": PIXELS.nbytes})
    del described["data"]
    body, headers = mixed({"inputs": [described]}, PIXELS.tobytes())
    answers.append(server.ask("POST", INFER, body, headers))
    body, headers = mixed({"inputs": [described], "parameters": {"binary_data_output": True}}, PIXELS.tobytes())
    answers.append(server.ask("POST", f"/v2/models/{MODEL}/versions/{VERSION}/infer", body, headers))
    assert "inference-header-content-length" in answers[-1].headers
    answers.append(server.ask("POST", INFER, gzip.compress(body), {**headers, "Content-Encoding": "gzip"}))
    answers.append(server.ask("POST", INFER, PIXELS.tobytes(), {"Inference-Header-Content-Length": "0"}))
    for answer in answers:
        np.testing.assert_array_equal(logits(answer), expected)
    floats = np.random.default_rng(2).standard_normal((2, 3, 16, 16), dtype=np.float32)
    answer = server.infer(MODEL, {"inputs": [tensor(shape=[2, 3, 16, 16], datatype="FP32", data=floats.tolist())]})
    np.testing.assert_array_equal(logits(answer), runner(floats))


def test_encoded_images_go_as_bytes_and_as_a_raw_body(server: Served, runner: Runner) -> None:
    expected = runner(runner.load(PNG)[None])
    raw = len(PNG).to_bytes(4, "little") + PNG
    described = {"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    body, headers = mixed({"inputs": [described]}, raw)
    np.testing.assert_array_equal(logits(server.ask("POST", INFER, body, headers)), expected)
    answer = server.ask("POST", INFER, PNG, {"Inference-Header-Content-Length": "0"})
    np.testing.assert_array_equal(logits(answer), expected)


def test_a_large_batch_is_split_over_the_instances_and_joined_in_order(server: Served, runner: Runner) -> None:
    many = np.random.default_rng(3).integers(0, 256, (23, 16, 16, 3), dtype=np.uint8)
    answer = server.ask("POST", INFER, many.tobytes(), {"Inference-Header-Content-Length": "0"})
    np.testing.assert_array_equal(logits(answer), runner(many))


def test_classification_names_the_best_classes(server: Served, runner: Runner) -> None:
    outputs = [{"name": "output", "parameters": {"classification": 2}}]
    (found,) = server.infer(MODEL, {"inputs": [tensor()], "outputs": outputs}).json()["outputs"]
    assert (found["datatype"], found["shape"]) == ("BYTES", [3, 2])
    best = [
        f"{row[index]:f}:{index}:{runner.labels[index]}" for row in runner(PIXELS) for index in np.argsort(-row)[:2]
    ]  # type: ignore[index]
    assert found["data"] == best


def test_a_body_of_several_gzip_members_is_read_to_its_end(server: Served) -> None:
    parts = gzip.compress(PNG[:1000]) + gzip.compress(b"") + gzip.compress(PNG[1000:])
    whole = server.ask("POST", "/predict", PNG).json()["predictions"]
    for encoding in ("gzip", "X-GZIP"):
        answer = server.ask("POST", "/predict", parts, {"Content-Encoding": encoding})
        assert answer.status == 200, answer.body
        assert answer.json()["predictions"] == whole


@pytest.mark.parametrize("name", ['a"b\\c', "\n\0", "\u00e9\U0001f600", "\ud800", "x" * 10_000])
def test_an_id_comes_back_as_it_was_sent(server: Served, name: str) -> None:
    answer = server.infer(MODEL, {"id": name, "inputs": [tensor()]})
    assert answer.status == 200, answer.body
    assert answer.json()["id"] == name


def test_predict_takes_images_in_every_usual_way(server: Served, runner: Runner) -> None:
    expected = [
        {"label": one.label, "index": one.index, "probability": one.probability} for one in runner.predict(PNG, top_k=2)
    ]
    form = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + PNG + b"\r\n--b--\r\n"
    text = base64.b64encode(PNG).decode()
    for body, kind in [
        (PNG, "image/png"),
        (PNG, "application/octet-stream"),
        (form, "multipart/form-data; boundary=b"),
        (json.dumps({"image": text}).encode(), "application/json"),
        (json.dumps({"images": ["data:image/png;base64," + text]}).encode(), "application/json"),
    ]:
        answer = server.ask("POST", "/predict?top_k=2", body, {"Content-Type": kind})
        assert answer.status == 200, answer.body
        assert [one["top"] for one in answer.json()["predictions"]] == [expected]
        assert answer.json()["timing_ms"]["batch"] >= 1
        assert "compute;dur=" in answer.headers["server-timing"]
    answer = server.ask(
        "POST", "/predict", json.dumps({"images": [text] * 6}).encode(), {"Content-Type": "application/json"}
    )
    assert [one["top"][:2] for one in answer.json()["predictions"]] == [expected] * 6


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "words"),
    [
        ("/predict", b"", {}, 400, "the body is empty"),
        ("/predict", b"no image", {"Content-Type": "image/jpeg"}, 400, "not an image"),
        ("/predict", PNG[:60], {}, 400, "image"),
        ("/predict", GIANT, {}, 400, "pixels"),
        ("/predict?top_k=0", PNG, {}, 400, "top_k is '0'"),
        ("/predict?k=1", PNG, {}, 400, "the query has 'k'"),
        ("/predict?" + "top_k=1&" * 30, PNG, {}, 400, "more than 20 parameters"),
        ("/predict", b'{"image": "%%"}', {"Content-Type": "application/json"}, 400, "image 0 is not base64"),
        ("/predict", b"{}", {"Content-Type": "application/json"}, 400, 'an object with "image" or "images"'),
        ("/predict", PNG, {"X-Deadline-Ms": "soon"}, 400, "X-Deadline-Ms is 'soon'"),
        ("/predict", PNG, {"X-Priority": "vip"}, 400, "X-Priority is 'vip'"),
        ("/predict", PNG, {"Content-Encoding": "br"}, 415, "Content-Encoding br"),
        ("/predict", b"x" * 40, {"Content-Encoding": "gzip"}, 400, "not valid gzip"),
        ("/predict", gzip.compress(bytes(2**22)), {"Content-Encoding": "gzip"}, 413, "decompressed body is larger"),
        ("/predict", gzip.compress(PNG)[:-9], {"Content-Encoding": "gzip"}, 400, "ends in the middle"),
        ("/predict", gzip.compress(PNG) + b"more", {"Content-Encoding": "gzip"}, 400, "not valid gzip"),
        ("/predict", gzip.compress(bytes(2**19)) * 3, {"Content-Encoding": "gzip"}, 413, "decompressed body is larger"),
        ("/predict", zlib.compress(PNG) + b"more", {"Content-Encoding": "deflate"}, 400, "4 bytes follow the deflate"),
        ("/predict", b' {"image": "%%"}', {"Content-Type": CURL_D}, 400, "image 0 is not base64"),
        ("/predict", bytes(2**20 + 1), {}, 413, "larger than the 1048576 bytes"),
        (INFER, b"{", {}, 400, "is not JSON"),
        (INFER, b"{}", {"Inference-Header-Content-Length": "3"}, 400, "Inference-Header-Content-Length is '3'"),
        (INFER, bytes(767), {"Inference-Header-Content-Length": "0"}, 400, "a multiple of 768"),
        ("/v2/models/other/infer", b"{}", {}, 404, "no model 'other'"),
        (f"/v2/models/{MODEL}/versions/9/infer", b"{}", {}, 404, "no version '9'"),
        ("/v3", b"{}", {}, 404, "nothing at this address"),
        ("/v2", b"{}", {}, 405, "takes GET, HEAD"),
    ],
)
def test_what_is_wrong_is_said_as_the_protocol_says_it(
    server: Served, path: str, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = server.ask("POST", path, body, headers)
    assert answer.status == status, answer.body
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "x"}, "this model has one, 'input'"),
        ({"datatype": "FP64"}, "datatype is FP64; this model takes UINT8, FP32 or BYTES"),
        ({"shape": [9, 16, 16, 1], "data": [0] * 2304}, "expected float32 (n, 3, 16, 16) or uint8 (n, 16, 16, 3)"),
        ({"shape": [0, 16, 16, 3], "data": []}, "empty batch"),
        ({"datatype": "BYTES", "shape": [0], "data": []}, "the batch is empty"),
        ({"datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}, "expected [n] or [n, 1]"),
        ({"datatype": "BYTES", "shape": [1], "data": ["a"]}, "not an image"),
        ({"datatype": "FP32", "shape": [1, 3, 16, 16], "data": [1e39] * 768}, "has inf; float input must be finite"),
    ],
)
def test_tensors_that_the_model_does_not_take(server: Served, changes: dict[str, Any], words: str) -> None:
    answer = server.infer(MODEL, {"inputs": [tensor(**changes)]})
    assert answer.status == 400
    assert words in answer.json()["error"]


def test_nan_in_binary_data_is_refused(server: Served) -> None:
    values = np.zeros((1, 3, 16, 16), np.float32)
    values[0, 1, 2, 3] = np.nan
    described = {
        "name": "input",
        "shape": [1, 3, 16, 16],
        "datatype": "FP32",
        "parameters": {"binary_data_size": values.nbytes},
    }
    body, headers = mixed({"inputs": [described]}, values.tobytes())
    answer = server.ask("POST", INFER, body, headers)
    assert (answer.status, "has nan" in answer.json()["error"]) == (400, True)


def test_an_error_in_one_request_leaves_others_of_its_call_alone(server: Served) -> None:
    good, bad = ("POST", "/predict", PNG), ("POST", "/predict", PNG[:60])
    connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S) for _ in range(12)]
    for number, connection in enumerate(connections):
        connection.request(*(bad if number % 3 == 0 else good))
    statuses = [connection.getresponse().status for connection in connections]
    assert statuses == [400 if number % 3 == 0 else 200 for number in range(12)]
    for connection in connections:
        connection.close()


def talk(server: Served, data: bytes, *, until_closed: bool = True) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as sock:
        sock.sendall(data)
        found = b""
        while chunk := sock.recv(65536):
            found += chunk
            if not until_closed:
                break
        return found


def test_pipelined_requests_are_answered_in_order(server: Served) -> None:
    one = b"POST /predict?top_k=1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(PNG), PNG)
    two = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    found = talk(server, one + one + two)
    assert [int(code) for code in re.findall(rb"HTTP/1.1 (\d+)", found)] == [200, 200, 200]
    assert found.endswith(b'{"live":true}')


def test_chunked_bodies_old_clients_and_head_requests(server: Served) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (PNG[:1000], PNG[1000:])) + b"0\r\n\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert talk(server, head + chunks).startswith(b"HTTP/1.1 200")
    assert talk(server, b"GET /v2 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert talk(server, b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").startswith(b"HTTP/1.1 200")
    coded = talk(server, head.replace(b"chunked", b"gzip, chunked") + chunks)
    assert coded.startswith(b"HTTP/1.1 501")
    assert b"Transfer-Encoding gzip, chunked is not taken" in coded
    found = talk(server, b"HEAD /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert found.endswith(b"\r\n\r\n")
    assert b"content-length: " in found


def test_a_client_that_asks_first_is_told_to_go_on_or_not(server: Served) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as sock:
        sock.sendall(head % (b"/predict", len(PNG)))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(PNG)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    assert talk(server, head % (b"/predict", 2**30)).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # without a Host
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    ],
)
def test_what_is_not_http_is_answered_and_the_connection_closed(server: Served, data: bytes) -> None:
    assert re.match(rb"HTTP/1.1 4\d\d ", talk(server, data))
    assert server.get("/v2/health/live").status == 200


def test_an_address_without_a_slash_is_one_where_nothing_is(server: Served) -> None:
    """It was an error of the server, with a traceback in its log, for whoever asked."""
    for method in (b"OPTIONS", b"POST", b"GET"):
        found = talk(server, b"%b * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % method)
        assert re.match(rb"HTTP/1.1 4\d\d ", found), found


def test_an_offer_to_change_the_protocol_is_not_taken(server: Served) -> None:
    offer = b"Connection: upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    assert talk(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + offer).startswith(b"HTTP/1.1 200")


def test_slow_clients_are_cut_off_and_serving_goes_on(server: Served) -> None:
    found = talk(server, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow")
    assert found.startswith(b"HTTP/1.1 408")
    assert talk(server, b"GET / HT").startswith(b"HTTP/1.1 408")


def test_a_client_that_is_gone_is_forgotten(server: Served) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PNG)
    for cut in (len(PNG) // 2, len(PNG)):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as sock:
                sock.sendall(head + PNG[:cut])
    wait_until(lambda: server.metric("cpupack_queue_requests") == server.metric("cpupack_held_bytes") == 0)
    wait_until(lambda: server.metric("cpupack_connections") == 1)
    assert server.ask("POST", "/predict", PNG).status == 200


def test_metrics_keep_to_the_conventions_of_prometheus(server: Served) -> None:
    server.ask("POST", "/predict", PNG)
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    sample = re.compile(r'^[a-z_:][a-z0-9_:]*(\{([a-z_]+="([^"\\]|\\.)*",?)+\})? (NaN|[+-]?Inf|[-+0-9.e]+)$')
    typed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for line in text.splitlines():
        if not line.startswith("#"):
            assert sample.match(line), line
            name = re.sub(r"_(bucket|sum|count)$", "", re.split(r"[{ ]", line)[0])
            assert name in typed or re.split(r"[{ ]", line)[0] in typed
    assert all(name.endswith("_total") for name, kind in typed.items() if kind == "counter")
    assert server.metric('cpupack_requests_total{route="predict",code="200"}') >= 1
    assert server.metric("cpupack_ready") == 1
    count = server.metric("cpupack_request_duration_seconds_count")
    assert server.metric('cpupack_request_duration_seconds_bucket{le="+Inf"}') == count >= 1


def test_a_model_that_takes_arrays(array_package_dir: Path) -> None:
    values = np.random.default_rng(4).standard_normal((2, 3, 16, 16), dtype=np.float32)
    with serving(array_package_dir) as served, Runner(array_package_dir) as runner:
        answer = served.infer(MODEL, {"inputs": [tensor(shape=[2, 3, 16, 16], datatype="FP32", data=values.tolist())]})
        np.testing.assert_array_equal(logits(answer), runner(values))
        assert served.get(f"/v2/models/{MODEL}").json()["inputs"][0] == {
            "name": "input",
            "datatype": "FP32",
            "shape": [-1, 3, 16, 16],
        }
        answer = served.ask("POST", INFER, values.tobytes(), {"Inference-Header-Content-Length": "0"})
        np.testing.assert_array_equal(logits(answer), runner(values))
        best = [row[0].index for row in runner.predict(list(values))]
        body = json.dumps({"inputs": values.tolist()}).encode()
        answer = served.ask("POST", "/predict", body, {"Content-Type": "application/json"})
        assert [one["top"][0]["index"] for one in answer.json()["predictions"]] == best
        out = io.BytesIO()
        np.save(out, values[0])
        assert served.ask("POST", "/predict", out.getvalue()).json()["predictions"][0]["top"][0]["index"] == best[0]
        for body, words in [(b"\x93NUMPY", "not an .npy"), (b"x", "send JSON"), (out.getvalue()[:200], "not an .npy")]:
            answer = served.ask("POST", "/predict", body)
            assert (answer.status, words in answer.json()["error"]) == (400, True), answer.body
        body = json.dumps({"inputs": [{"input": one} for one in values.tolist()]}).encode()
        answer = served.ask("POST", "/predict", body, {"Content-Type": "application/json"})
        assert [one["top"][0]["index"] for one in answer.json()["predictions"]] == best
        for value, words in [
            ("[1, 2]", "expected numbers of shape (n, 3, 16, 16)"),
            ("[1, 2], [1]", "rows of different lengths (1, 2); pad them to (n, 3, 16, 16)"),
            ("[null]", "has null or None where a number is expected"),
            ('["1"]', "inputs are texts (1, 1); expected numbers"),
            ("[1" + "0" * 400 + "]", "which no float32 holds"),
            ("[1, true]", "true or false among its numbers"),
            ('{"x": [1]}', 'the model has no input "x"; it takes input float32 (n, 3, 16, 16)'),
        ]:
            body = f'{{"inputs": [{value}]}}'.encode()
            answer = served.ask("POST", "/predict", body, {"Content-Type": "application/json"})
            assert (answer.status, words in answer.json()["error"]) == (400, True), answer.body
