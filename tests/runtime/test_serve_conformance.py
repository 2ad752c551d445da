"""The server with the protocol's official client, tritonclient: each row of the table in docs/reference/serving.md."""

from __future__ import annotations

import asyncio
import inspect
import io
import re
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.runner import Runner
from helpers.served import Served, serving

tritonclient = pytest.importorskip("tritonclient", reason="tritonclient[http,grpc] is not installed")
import tritonclient.grpc as grpc_client  # noqa: E402 - skipped above where it is missing
import tritonclient.grpc.aio as grpc_aio  # noqa: E402 - skipped above where it is missing
import tritonclient.http as http_client  # noqa: E402 - skipped above where it is missing
import tritonclient.http.aio as http_aio  # noqa: E402 - skipped above where it is missing
from tritonclient.utils import InferenceServerException  # noqa: E402 - skipped above where it is missing

MODEL, VERSION = "tiny-int8", "1.0.0"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "serving.md"


def image() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Client:
    """One of the four clients. ``done`` waits for what it returns, where that is a coroutine."""

    module: Any
    client: Any
    is_grpc: bool
    loop: asyncio.AbstractEventLoop | None

    def done(self, result: Any) -> Any:
        return self.loop.run_until_complete(result) if inspect.isawaitable(result) and self.loop else result

    def input(self, array: np.ndarray[Any, Any], datatype: str, **how: Any) -> Any:
        found = self.module.InferInput("input", list(array.shape), datatype)
        found.set_data_from_numpy(array, **how)
        return found

    def infer(self, array: np.ndarray[Any, Any], datatype: str = "UINT8", **options: Any) -> Any:
        return self.done(self.client.infer(MODEL, [self.input(array, datatype)], **options))

    def text(self, answer: Any, key: str) -> Any:
        return getattr(answer, key) if self.is_grpc else answer[key]


@pytest.fixture(scope="module")
def server(package_dir: Path) -> Iterator[Served]:
    with serving(package_dir, "--grpc-port", "0") as served:
        yield served


@pytest.fixture(scope="module")
def runner(package_dir: Path) -> Iterator[Runner]:
    with Runner(package_dir) as one:
        yield one


async def _made(module: Any, address: str) -> Any:
    return module.InferenceServerClient(address)


@pytest.fixture(params=["HTTP", "HTTP asyncio", "gRPC", "gRPC asyncio"])
def client(request: pytest.FixtureRequest, server: Served) -> Iterator[Client]:
    is_grpc, is_async = request.param.startswith("gRPC"), request.param.endswith("asyncio")
    address = f"127.0.0.1:{server.grpc_port if is_grpc else server.port}"
    inputs = grpc_client if is_grpc else http_client
    if is_async:
        loop = asyncio.new_event_loop()
        made = loop.run_until_complete(_made(grpc_aio if is_grpc else http_aio, address))
        yield Client(inputs, made, is_grpc, loop)
        loop.run_until_complete(made.close())
        loop.close()
    else:
        made = inputs.InferenceServerClient(address)
        yield Client(inputs, made, is_grpc, None)
        made.close()


def is_server_live(client: Client, runner: Runner) -> None:
    assert client.done(client.client.is_server_live()) is True


def is_server_ready(client: Client, runner: Runner) -> None:
    assert client.done(client.client.is_server_ready()) is True


def is_model_ready(client: Client, runner: Runner) -> None:
    assert client.done(client.client.is_model_ready(MODEL)) is True
    assert client.done(client.client.is_model_ready(MODEL, VERSION)) is True


def get_server_metadata(client: Client, runner: Runner) -> None:
    found = client.done(client.client.get_server_metadata())
    assert client.text(found, "name") == "cpupack"
    assert "statistics" not in client.text(found, "extensions")


def get_model_metadata(client: Client, runner: Runner) -> None:
    found = client.done(client.client.get_model_metadata(MODEL))
    (one,) = client.text(found, "inputs")
    assert (client.text(one, "name"), client.text(one, "datatype")) == ("input", "UINT8")
    assert list(client.text(one, "shape")) == [-1, 16, 16, 3]


def infer_binary(client: Client, runner: Runner) -> None:
    answer = client.infer(PIXELS, request_id="7")
    np.testing.assert_array_equal(answer.as_numpy("output"), runner(PIXELS))
    assert client.text(answer.get_response(), "id") == "7"
    floats = np.random.default_rng(2).standard_normal((2, 3, 16, 16), dtype=np.float32)
    np.testing.assert_array_equal(client.infer(floats, "FP32").as_numpy("output"), runner(floats))


def infer_json(client: Client, runner: Runner) -> None:
    one = client.input(PIXELS, "UINT8", binary_data=False)
    outputs = [http_client.InferRequestedOutput("output", binary_data=False)]
    answer = client.done(client.client.infer(MODEL, [one], outputs=outputs))
    np.testing.assert_array_equal(answer.as_numpy("output"), runner(PIXELS))


def infer_image_bytes(client: Client, runner: Runner) -> None:
    files = np.array([image(), image()], dtype=np.object_)
    pixels = np.stack([runner.load(image())] * 2)
    np.testing.assert_array_equal(client.infer(files, "BYTES").as_numpy("output"), runner(pixels))


def infer_classification(client: Client, runner: Runner) -> None:
    answer = client.infer(PIXELS, outputs=[client.module.InferRequestedOutput("output", class_count=2)])
    found = answer.as_numpy("output")
    assert found.shape == (3, 2)
    text = found[0, 0].decode() if isinstance(found[0, 0], bytes) else found[0, 0]
    best = int(runner(PIXELS)[0].argmax())
    assert text.split(":")[1:] == [str(best), runner.labels[best]]  # type: ignore[index]


def infer_compressed(client: Client, runner: Runner) -> None:
    how = {"compression_algorithm": "gzip"} if client.is_grpc else {"request_compression_algorithm": "deflate"}
    np.testing.assert_array_equal(client.infer(PIXELS, **how).as_numpy("output"), runner(PIXELS))


def infer_versioned(client: Client, runner: Runner) -> None:
    np.testing.assert_array_equal(client.infer(PIXELS, model_version=VERSION).as_numpy("output"), runner(PIXELS))
    with pytest.raises(InferenceServerException, match="9"):
        client.infer(PIXELS, model_version="9")


def infer_with_timeout_and_priority(client: Client, runner: Runner) -> None:
    answer = client.infer(PIXELS, timeout=60_000_000, priority=1)
    np.testing.assert_array_equal(answer.as_numpy("output"), runner(PIXELS))
    with pytest.raises(InferenceServerException, match="refused"):
        client.infer(PIXELS, timeout=1)


def infer_async(client: Client, runner: Runner) -> None:
    one = client.input(PIXELS, "UINT8")
    if client.loop is not None:
        answers = client.done(_together(*(client.client.infer(MODEL, [one]) for _ in range(5))))
    elif client.is_grpc:
        waiting = [_Waiting() for _ in range(5)]
        for each in waiting:
            client.client.async_infer(MODEL, [one], callback=each)
        answers = [each.answer() for each in waiting]
    else:
        answers = [each.get_result() for each in [client.client.async_infer(MODEL, [one]) for _ in range(5)]]
    for answer in answers:
        np.testing.assert_array_equal(answer.as_numpy("output"), runner(PIXELS))


class _Waiting:
    """A callback of gRPC's client, and the answer that it gets."""

    def __init__(self) -> None:
        import threading

        self._there, self._answer, self._error = threading.Event(), None, None

    def __call__(self, result: Any, error: Any) -> None:
        self._answer, self._error = result, error
        self._there.set()

    def answer(self) -> Any:
        self._there.wait()
        assert self._error is None
        return self._answer


async def _together(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    return list(await asyncio.gather(*calls))


def unknown_model_is_an_error(client: Client, runner: Runner) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        client.done(client.client.infer("other", [client.input(PIXELS, "UINT8")]))


def wrong_input_is_an_error(client: Client, runner: Runner) -> None:
    with pytest.raises(InferenceServerException, match="datatype is FP64; this model takes"):
        client.infer(PIXELS.astype(np.float64), "FP64")
    with pytest.raises(InferenceServerException, match="expected float32"):
        client.infer(PIXELS[:, :8])


def get_inference_statistics(client: Client, runner: Runner) -> None:
    with pytest.raises(InferenceServerException, match="the extension statistics is not offered here"):
        client.done(client.client.get_inference_statistics())


def shared_memory(client: Client, runner: Runner) -> None:
    """Neither a region nor data in one. A client that is not told reads there what was there before."""
    for call in (
        client.client.get_system_shared_memory_status,
        lambda: client.client.register_system_shared_memory("a", "/a", 64),
        lambda: client.client.unregister_cuda_shared_memory("a"),
    ):
        with pytest.raises(InferenceServerException, match=r"the extension .*_shared_memory is not offered here"):
            client.done(call())
    given = client.module.InferInput("input", list(PIXELS.shape), "UINT8")
    given.set_data_from_numpy(PIXELS)
    wanted = client.module.InferRequestedOutput("output")
    wanted.set_shared_memory("a", 64)
    with pytest.raises(InferenceServerException, match=r"output.*: shared memory is not offered here"):
        client.done(client.client.infer(MODEL, [given], outputs=[wanted]))
    given.set_shared_memory("a", PIXELS.nbytes)
    with pytest.raises(InferenceServerException, match="input 'input': shared memory is not offered here"):
        client.done(client.client.infer(MODEL, [given]))


def rows() -> dict[str, list[bool]]:
    """Return the rows of the documented table: the call, and whether each client can do it."""
    table = PAGE.read_text("utf-8").partition("## Conformance")[2]
    lines = re.findall(r"^\| (\w+) \| (.+) \|$", table, re.MULTILINE)
    return {call: [cell == "yes" for cell in cells.split(" | ")] for call, cells in lines if call != "call"}


CALLS: list[Callable[[Client, Runner], None]] = [
    is_server_live, is_server_ready, is_model_ready, get_server_metadata, get_model_metadata, infer_binary, infer_json,
    infer_image_bytes, infer_classification, infer_compressed, infer_versioned, infer_with_timeout_and_priority,
    infer_async, unknown_model_is_an_error, wrong_input_is_an_error, get_inference_statistics,
    shared_memory,
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_each_row_of_the_table(client: Client, runner: Runner, call: Callable[[Client, Runner], None]) -> None:
    number = 2 * client.is_grpc + (client.loop is not None)
    if call is infer_json and client.is_grpc:
        assert not rows()["infer_json"][number]
        return
    assert rows()[call.__name__][number] is (call not in (get_inference_statistics, shared_memory))
    call(client, runner)


def test_every_row_has_a_test() -> None:
    assert list(rows()) == [call.__name__ for call in CALLS]


def test_the_messages_are_those_of_the_official_client() -> None:
    """Both live in this process, because ours are in a pool of their own."""
    from tritonclient.grpc import service_pb2

    from cpupack.runtime.serve.descriptors import messages

    def fields(descriptor: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in descriptor.fields:
            inner = field.message_type
            found[field.name] = (field.number, field.type, fields(inner) if inner is not None else None)
        return found

    for name, ours in messages().items():
        if name.startswith("HealthCheck"):
            continue
        theirs = fields(getattr(service_pb2, name).DESCRIPTOR)
        for field, what in fields(ours.DESCRIPTOR).items():
            assert theirs[field] == what, f"{name}.{field}"


def test_messages_that_contradict_themselves(server: Served) -> None:
    """What tritonclient cannot send: messages that contradict themselves get INVALID_ARGUMENT, and serving goes on."""
    import grpc

    from cpupack.runtime.serve.descriptors import HEALTH, SERVICE, SERVING, messages

    kinds = messages()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=kinds["ModelInferResponse"].FromString,
        )

        def request(**fields: Any) -> Any:
            made = kinds["ModelInferRequest"](model_name=MODEL)
            one = made.inputs.add(name="input", datatype="UINT8", shape=[1, 16, 16, 3])
            one.shape[:] = fields.get("shape", [1, 16, 16, 3])
            one.datatype = fields.get("datatype", "UINT8")
            made.raw_input_contents.extend(fields.get("raw", []))
            for field, values in fields.get("contents", {}).items():
                getattr(one.contents, field).extend(values)
            return made

        good = infer(request(contents={"uint_contents": PIXELS[0].reshape(-1).tolist()}))
        assert np.frombuffer(good.raw_output_contents[0], "<f4").shape == (4,)
        for bad, words in [
            (kinds["ModelInferRequest"](model_name=MODEL), "no inputs"),
            (request(raw=[b""]), "0 bytes of data"),
            (request(raw=[b"", b""]), "2 raw_input_contents for 1 inputs"),
            (request(raw=[bytes(768)], contents={"uint_contents": [1]}), "both contents and raw"),
            (request(contents={"uint_contents": [1]}), "uint_contents has 1 elements"),
            (request(contents={"uint_contents": [1] * 768, "fp32_contents": [1.0]}), "got fp32_contents"),
            (request(contents={"int_contents": [1] * 768}), "UINT8 has its data in uint_contents; got int_contents"),
            (b"\xff\xff\xff", "the message is no ModelInferRequest"),
            (request(contents={"uint_contents": [256] * 768}), "a number that UINT8 cannot"),
            (request(shape=[-1, 2], raw=[b""]), "shape is [-1, 2]"),
            (request(datatype="X", raw=[b""]), "datatype is 'X'"),
        ]:
            with pytest.raises(grpc.RpcError) as caught:
                infer(bad)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert words in caught.value.details()
        check = channel.unary_unary(
            f"/{HEALTH}/Check", kinds["HealthCheckRequest"].SerializeToString, kinds["HealthCheckResponse"].FromString
        )
        for known in ("", SERVICE):
            assert check(kinds["HealthCheckRequest"](service=known)).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(kinds["HealthCheckRequest"](service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "Traceback" not in server.said
