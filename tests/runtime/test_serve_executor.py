"""The threads of the instances: what strikes them from outside costs calls, but no request waits in vain."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.runtime.errors import InputError, RunnerError
from cpupack.runtime.runner import Runner
from cpupack.runtime.serve.executor import Executor
from cpupack.runtime.serve.line import Job
from cpupack.runtime.serve.model import IMAGE, TENSOR, Data, ServedModel
from cpupack.runtime.serve.request import RefusedError, Request, Urgency
from cpupack.runtime.serve.scheduler import DEADLINE, NORMAL, Limits, Scheduler
from cpupack.runtime.serve.times import CallTime, CallTimes, PrepareTimes
from helpers.waiting import PATIENCE_S

PIXELS = np.zeros((1, 16, 16, 3), np.uint8)


class StrikeError(BaseException):
    """What is raised in a thread from outside."""


def strike(ident: int) -> None:
    """Raise an exception in a thread at its next bytecode, as a debugger or a tool for timeouts does."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(StrikeError))


class Watched(Executor):
    """Knows the threads that are in its code.

    It does not look for them in the frames of all threads: a walk through frames that run has ended processes with
    Python 3.11 (github.com/python/cpython/issues/111363).
    """

    def __init__(self, *arguments: Any) -> None:
        self.serving: set[int] = set()
        super().__init__(*arguments)

    def _serve(self, instance: int) -> None:
        ident = threading.get_ident()
        self.serving.add(ident)
        try:
            super()._serve(instance)
        finally:
            self.serving.discard(ident)


def test_a_thread_that_is_struck_costs_its_call_and_nothing_else(
    package_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A strike in the midst of a traceback leaves a source file to the garbage collector, which tells this hook.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    asyncio.run(_struck(package_dir))


async def _struck(package_dir: Path) -> None:
    table = [CallTime(1, 0.001, 0.002), CallTime(2, 0.0015, 0.003)]
    runner = Runner(package_dir, threads=1, instances=2, batch_size=2)
    executor = Watched(
        ServedModel(runner, package_dir), Scheduler(CallTimes(table), 2, Limits(10_000, 10**9)), PrepareTimes()
    )
    generator = random.Random(1)
    answered = interrupted = 0

    async def one() -> None:
        nonlocal answered, interrupted
        urgency = Urgency(0.0, math.inf, NORMAL)
        request = executor.submit(Data(TENSOR, PIXELS), urgency, lambda logits, _: len(logits))
        found: Any = None
        (found,) = await asyncio.gather(asyncio.wait_for(request.future, PATIENCE_S), return_exceptions=True)
        if isinstance(found, RunnerError) and "interrupted" in str(found):
            interrupted += 1
        else:
            assert found == 1
            answered += 1

    async def settle(waiting: Sequence[asyncio.Future[None]]) -> None:
        while not all(one.done() for one in waiting):
            await asyncio.sleep(0.001)
            executor.revive()  # as the server does every second: a strike at the wrong moment ends a thread
        await asyncio.gather(*waiting)

    for _ in range(300):
        waiting = [asyncio.ensure_future(one()) for _ in range(generator.randrange(1, 8))]
        for _ in range(3):
            await asyncio.sleep(generator.random() * 0.002)
            for ident in tuple(executor.serving):
                strike(ident)
        await settle(waiting)
    assert answered > 0
    assert interrupted > 0
    await settle([asyncio.ensure_future(one()) for _ in range(5)])  # the last strikes have struck
    executor.revive()
    before = answered
    for _ in range(20):
        await asyncio.gather(*(one() for _ in range(5)))
    assert (answered - before, executor.unanswered) == (100, 0)
    scheduler: Any = executor.scheduler
    while scheduler.running:  # a call is over a moment after its answers
        await asyncio.sleep(0.001)
    assert (scheduler.waiting, scheduler.running, scheduler.held_bytes) == (0, 0, 0)
    await executor.drain()
    await executor.close()


def short_calls(
    native_package_dir: Path, talk: Callable[[Executor], Coroutine[Any, Any, None]], call_s: float = 0.00001
) -> None:
    """Run ``talk`` with an executor whose calls are expected to be over before a thread would wake, or as told.

    Their p99 is never exceeded, even here.
    """

    async def run() -> None:
        runner = Runner(native_package_dir, threads=1, instances=2, batch_size=1)
        times = CallTimes([CallTime(1, call_s, 10.0)])
        executor = Watched(
            ServedModel(runner, native_package_dir), Scheduler(times, 2, Limits(100, 10**9)), PrepareTimes()
        )
        while len(executor.serving) < 2 or not parked(executor):
            await asyncio.sleep(0.001)
        await talk(executor)
        await executor.drain()
        await executor.close()

    asyncio.run(run())


def pixels(executor: Executor) -> Data:
    """Return one sample of the model's input."""
    shape = executor.model.runner.pixel_shape()
    assert shape is not None
    return Data(TENSOR, np.zeros((1, *shape), np.uint8))


def parked(executor: Executor) -> bool:
    """Return whether an instance's thread waits for work."""
    job = Job(1, 0, 0.0, math.inf, NORMAL, 0.0, None)
    return executor.scheduler.parked(job, 0.0) is not None


def test_a_short_call_is_answered_before_submit_returns(native_package_dir: Path) -> None:
    async def talk(executor: Executor) -> None:
        expected = executor.model.run(executor.model.prepare(pixels(executor)), 0)
        request = executor.submit(pixels(executor), Urgency(0.0, math.inf, NORMAL), lambda logits, _: logits)
        assert request.future.done()
        assert np.array_equal(await request.future, expected)
        assert executor.unanswered == 0
        assert request.batch == 1

    short_calls(native_package_dir, talk)


@pytest.mark.parametrize("call_s", [0.00001, 0.001])
def test_a_request_that_is_over_is_not_left_to_the_garbage_collector(native_package_dir: Path, call_s: float) -> None:
    """Its body may be large, and a collection comes after ten thousand objects."""

    async def talk(executor: Executor) -> None:
        request = executor.submit(pixels(executor), Urgency(0.0, math.inf, NORMAL), lambda logits, _: len(logits))
        assert await request.future == 1
        over = weakref.ref(request)
        del request
        while over() is not None:  # a thread lets go of it a moment after its answer
            await asyncio.sleep(0.001)

    gc.disable()
    try:
        short_calls(native_package_dir, talk, call_s)
    finally:
        gc.enable()


def test_whoever_looks_after_the_threads_keeps_nothing_of_their_calls(native_package_dir: Path) -> None:
    """It looks every second. It saw the frames, and a server under load grew by the bodies of a call a second."""
    looked = threading.Event()

    def answer(logits: Any, _: Request) -> int:
        assert looked.wait(PATIENCE_S)
        return len(logits)

    async def talk(executor: Executor) -> None:
        request = executor.submit(pixels(executor), Urgency(0.0, math.inf, NORMAL), answer)
        while not executor.scheduler.running:
            await asyncio.sleep(0.001)
        executor.revive()
        looked.set()
        assert await request.future == 1
        over = weakref.ref(request)
        del request
        end_s = time.monotonic() + PATIENCE_S
        while over() is not None:
            assert time.monotonic() < end_s
            await asyncio.sleep(0.001)

    gc.disable()
    try:
        short_calls(native_package_dir, talk, call_s=0.001)
    finally:
        gc.enable()


def test_a_short_call_may_be_refused_and_may_fail(native_package_dir: Path) -> None:
    def fail(logits: Any, _: Request) -> Any:
        raise InputError("on purpose")

    async def talk(executor: Executor) -> None:
        with pytest.raises(RefusedError) as refused:
            executor.submit(pixels(executor), Urgency(0.0, 1.0, NORMAL), lambda logits, _: logits)
        assert refused.value.refusal.reason == DEADLINE
        request = executor.submit(pixels(executor), Urgency(0.0, math.inf, NORMAL), fail)
        with pytest.raises(InputError, match="on purpose"):
            await request.future
        assert executor.unanswered == 0

    short_calls(native_package_dir, talk)


def test_calls_that_turn_out_to_be_long_go_to_the_threads(native_package_dir: Path) -> None:
    def slow(logits: Any, _: Request) -> int:
        time.sleep(0.002)
        return threading.get_ident()

    async def talk(executor: Executor) -> None:
        own, found = threading.get_ident(), []
        for _ in range(200):
            request = executor.submit(pixels(executor), Urgency(0.0, math.inf, NORMAL), slow)
            found.append(await request.future)
            while not parked(executor):  # a call is over a moment after its answer
                await asyncio.sleep(0.001)
        assert found[0] == own
        # Each of the first teaches 1/20 of four times the limit at most, so the sixth exceeds it. Then it is forgotten
        # by 0.5 % a call, so at most one of ten tries again.
        assert sum(ident == own for ident in found) <= 6 + 200 / 10

    short_calls(native_package_dir, talk)


def test_an_error_that_nobody_expected_ends_its_request_alone(
    native_package_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three in one call: one whose input cannot be decoded, one whose answer cannot be made, one that is fine."""

    class Odd(bytes):
        def __len__(self) -> int:
            return 1

        def __bytes__(self) -> bytes:
            raise ZeroDivisionError("on purpose")

    def fail(logits: Any, _: Request) -> Any:
        raise IndexError("on purpose")

    async def run() -> None:
        runner = Runner(native_package_dir, threads=1, instances=1, batch_size=4)
        table = CallTimes([CallTime(1, 0.01, 0.01), CallTime(4, 0.01, 0.01)])
        executor = Watched(
            ServedModel(runner, native_package_dir), Scheduler(table, 1, Limits(100, 10**9)), PrepareTimes()
        )
        free = threading.Event()

        def hold(logits: Any, _: Request) -> int:
            free.wait(PATIENCE_S)
            return len(logits)

        urgency = Urgency(0.0, math.inf, NORMAL)
        first = executor.submit(pixels(executor), urgency, hold)
        requests = [
            executor.submit(Data(IMAGE, [Odd(b"x")]), urgency, lambda logits, _: len(logits)),
            executor.submit(pixels(executor), urgency, fail),
            executor.submit(pixels(executor), urgency, lambda logits, _: len(logits)),
        ]
        free.set()
        assert await first.future == 1
        with pytest.raises(RunnerError, match="the input could not be decoded"):
            await requests[0].future
        with pytest.raises(RunnerError, match="the answer could not be made"):
            await requests[1].future
        assert await requests[2].future == 1
        assert requests[2].batch >= 2
        await executor.close()

    asyncio.run(run())
    said = [record.getMessage() for record in caplog.records]
    assert any("ZeroDivisionError: on purpose" in each for each in said)
    assert any("IndexError: on purpose" in each for each in said)
