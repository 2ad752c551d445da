"""What the doors of the server share."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from cpupack.runtime.errors import InputError
from cpupack.runtime.serve.executor import Executor
from cpupack.runtime.serve.metrics import Metrics
from cpupack.runtime.serve.model import TENSOR, Data
from cpupack.runtime.serve.request import Request, Urgency
from cpupack.runtime.serve.scheduler import HIGH, NORMAL
from cpupack.runtime.serve.service import Service, State, read_priority, read_timeout_us
from cpupack.runtime.serve.steps import Outcome


class Doors:
    """Stands where an executor does, whose calls never end. A real one would answer at once."""

    def __init__(self) -> None:
        self.cancelled: list[Request] = []

    def submit(self, _: Data, urgency: Urgency, make_answer: Any) -> Request:
        return Request(Outcome(asyncio.get_running_loop()), make_answer, urgency)

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request)


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


def test_whole_numbers_may_have_a_point_as_json_allows() -> None:
    assert read_timeout_us(50_000.0) == 50.0
    assert read_priority(1.0, "priority") == HIGH
    with pytest.raises(InputError, match="whole number"):
        read_timeout_us(0.5)
