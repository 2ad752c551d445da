"""What the doors of the server share."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import math
import weakref
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from cpupack.runtime.errors import InputError
from cpupack.runtime.serve.executor import Executor
from cpupack.runtime.serve.held import Held
from cpupack.runtime.serve.http_app import HttpApp, HttpSettings
from cpupack.runtime.serve.messages import HttpRequest
from cpupack.runtime.serve.metrics import Metrics
from cpupack.runtime.serve.model import TENSOR, Data, TensorFacts
from cpupack.runtime.serve.request import RefusedError, Request, Urgency
from cpupack.runtime.serve.scheduler import EXPIRED, HIGH, NORMAL, Refusal
from cpupack.runtime.serve.service import Service, State, read_priority, read_timeout_us
from cpupack.runtime.serve.steps import Outcome
from cpupack.runtime.signature import Signature


class Model:
    """Reads tensors of one input, and notes itself in what it read."""

    name, kind, takes_text, takes_images, named = "m", "raw", False, False, False
    input = TensorFacts("input", "FP32", (-1, 9000))
    signature = Signature.plain((9000,), (1,))

    def __init__(self, version: str) -> None:
        self.version = version

    def read(self, *_: Any) -> Data:
        return Data(self.version, np.zeros((1, 9000), np.float32))

    read_tensor = read_raw = read


class Doors:
    """Stands where an executor does, whose calls never end. A real one would answer at once."""

    def __init__(self, version: str = "1") -> None:
        self.model = Model(version)
        self.read_by: list[str] = []
        self.cancelled: list[Request] = []
        self.admitted: list[Request] = []

    def submit(self, data: Data, urgency: Urgency, make_answer: Any) -> Request:
        self.read_by.append(data.kind)
        self.admitted.append(Request(Outcome(asyncio.get_running_loop()), make_answer, urgency))
        return self.admitted[-1]

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request)

    def backlog_s(self) -> float:
        return 0.5


def test_a_client_that_is_gone_after_a_reload_is_forgotten_where_its_request_was_admitted() -> None:
    async def serve() -> tuple[int, int]:
        service, before, after = Service(Metrics(), None), Doors(), Doors()
        service.use(cast("Executor", before))
        service.state = State.READY
        forget: list[Callable[[], None]] = []
        data = Data(TENSOR, np.zeros((1, 4), np.float32))
        answer = service.answer(data, Urgency(0.0, math.inf, NORMAL), lambda logits, _: logits, forget.append)
        task = asyncio.ensure_future(answer)
        await asyncio.sleep(0)
        service.use(cast("Executor", after))
        forget[0]()
        counts = len(before.cancelled), len(after.cancelled)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return counts

    assert asyncio.run(serve()) == (1, 0)


def test_a_body_is_not_left_to_the_garbage_collector_when_its_request_is_refused_or_fails() -> None:
    """Under overload many are refused late, and a collection comes after ten thousand objects: that was 30 MB."""

    async def ask(service: Service, app: HttpApp, doors: Doors) -> weakref.ref[Request]:
        headers = {b"inference-header-content-length": b"0"}
        path = "/v2/models/m/infer"
        task = asyncio.ensure_future(app.handle(HttpRequest(b"POST", path, b"", headers, 0.0, body=b"body")))
        await asyncio.sleep(0)
        (request,) = doors.admitted
        doors.admitted.clear()
        request.future.settle(None, RefusedError(Refusal(EXPIRED, 0.5)))
        assert (await task).status == 429
        return weakref.ref(request)

    async def serve() -> bool:
        service, doors = Service(Metrics(), None), Doors()
        service.use(cast("Executor", doors))
        service.state = State.READY
        app = HttpApp(service, HttpSettings(None, 429, 2**20), Held(2**24))
        try:
            over = await ask(service, app, doors)
            await asyncio.sleep(0)
            return over() is None
        finally:
            app.close()

    gc.disable()
    try:
        assert asyncio.run(serve())
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/predict"])
def test_a_request_whose_json_is_parsed_during_a_reload_is_read_and_answered_by_the_new_model(path: str) -> None:
    """The answer names the model that has read it, so another one must not compute it."""
    numbers = [0.25] * 9000  # so long that it is parsed on a thread
    tensor = {"name": "input", "shape": [1, 9000], "datatype": "FP32", "data": numbers}
    body = json.dumps({"inputs": [numbers] if path == "/predict" else [tensor]}).encode()

    async def serve() -> tuple[list[str], list[str]]:
        service, before, after = Service(Metrics(), None), Doors("1"), Doors("2")
        service.use(cast("Executor", before))
        service.state = State.READY
        app = HttpApp(service, HttpSettings(None, 429, 2**20), Held(2**24))
        headers = {b"content-type": b"application/json"}
        task = asyncio.ensure_future(app.handle(HttpRequest(b"POST", path, b"", headers, 0.0, body=body)))
        await asyncio.sleep(0)
        service.use(cast("Executor", after))
        while not (before.read_by or after.read_by or task.done()):
            await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        app.close()
        return before.read_by, after.read_by

    assert asyncio.run(serve()) == ([], ["2"])


def test_a_body_counts_as_it_is_without_its_compression() -> None:
    """A thousand clients may each send 32 KB that become 32 MB, and wait for the thread that reads JSON."""
    text = b" " * 1_000_000
    body = gzip.compress(text)

    async def serve() -> tuple[Any, int]:
        service, held = Service(Metrics(), None), Held(1_500_000)
        service.use(cast("Executor", Doors()))
        service.state = State.READY
        app = HttpApp(service, HttpSettings(None, 429, 2**20), held)

        def request() -> HttpRequest:
            held.add(len(body))
            headers = {b"content-type": b"application/json", b"content-encoding": b"gzip"}
            return HttpRequest(b"POST", "/v2/models/m/infer", b"", headers, 0.0, body=body, reserved_bytes=len(body))

        first = request()
        waiting = asyncio.ensure_future(app.handle(first))
        await asyncio.sleep(0)
        counted = first.reserved_bytes
        refused = await app.handle(request())
        await waiting
        app.close()
        return refused, counted

    refused, counted = asyncio.run(serve())
    assert counted == len(body) + len(text)
    assert (refused.status, dict(refused.headers)[b"x-refused"]) == (429, b"bytes")


def test_whole_numbers_may_have_a_point_as_json_allows() -> None:
    assert read_timeout_us(50_000.0) == 50.0
    assert read_priority(1.0, "priority") == HIGH
    with pytest.raises(InputError, match="whole number"):
        read_timeout_us(0.5)


def test_an_error_says_what_is_expected_however_long_the_value_is() -> None:
    with pytest.raises(InputError, match=r"^timeout is 1\d{50,60}\.\.\.; .* of microseconds, at most 600000000$"):
        read_timeout_us(1e300)
    with pytest.raises(InputError, match=r"^priority is 'h{50,60}\.\.\.; expected high, normal or low \(1, 2 or 3\)$"):
        read_priority("h" * 9999, "priority")
