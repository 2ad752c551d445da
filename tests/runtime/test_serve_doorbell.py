"""The way from the threads of instances to the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from cpupack.runtime.serve.doorbell import Doorbell


def test_calls_run_in_the_loop_in_their_order() -> None:
    async def run() -> tuple[list[int], set[int]]:
        bell, got, threads, over = Doorbell(asyncio.get_running_loop()), [], set(), asyncio.Event()

        def take(number: int) -> None:
            got.append(number)
            threads.add(threading.get_ident())
            if number == 20_000:
                over.set()

        def post() -> None:
            for number in range(20_001):  # more than the socket holds rings
                bell.post(take, number)

        thread = threading.Thread(target=post)
        thread.start()
        await over.wait()
        thread.join()
        bell.close()
        return got, threads

    got, threads = asyncio.run(run())
    assert got == list(range(20_001))
    assert threads == {threading.get_ident()}


def test_a_call_that_fails_stops_no_other() -> None:
    async def run() -> tuple[list[str], list[str]]:
        loop, got, said = asyncio.get_running_loop(), [], []
        loop.set_exception_handler(lambda _, context: said.append(str(context["exception"])))
        bell = Doorbell(loop)
        bell.post(_fail)
        bell.post(got.append, "after")
        await asyncio.sleep(0.01)
        bell.close()
        return got, said

    assert asyncio.run(run()) == (["after"], ["no"])


def test_a_lost_ring_is_made_good_by_a_look() -> None:
    """An exception from outside may strike between the call and its ring."""

    async def run() -> list[Any]:
        bell, got = Doorbell(asyncio.get_running_loop()), []
        bell._calls.append((got.append, (1,)))
        await asyncio.sleep(0.01)
        before = list(got)
        bell.look()
        bell.close()
        return [before, got]

    assert asyncio.run(run()) == [[], [1]]


def test_close_runs_what_was_posted_and_a_late_ring_does_nothing() -> None:
    async def run() -> list[int]:
        bell, got = Doorbell(asyncio.get_running_loop()), []
        bell.post(got.append, 1)
        bell.close()
        bell.close()
        bell.post(got.append, 2)
        await asyncio.sleep(0.01)
        return got

    assert asyncio.run(run()) == [1]


def _fail() -> None:
    raise RuntimeError("no")
