"""What a coroutine without a task waits for, and how a task waits for it."""

from __future__ import annotations

import asyncio

import pytest

from cpupack.runtime.serve.steps import Outcome, run_at_once


def test_a_coroutine_goes_on_in_the_call_that_settles_its_outcome() -> None:
    async def run() -> None:
        outcome, seen = Outcome(asyncio.get_running_loop()), []

        async def wait() -> None:
            seen.append(await outcome)

        run_at_once(wait())
        assert seen == []
        outcome.settle(1)
        assert seen == [1]
        outcome.settle(2)
        assert outcome.result() == 1
        run_at_once(wait())
        assert seen == [1, 1]

    asyncio.run(run())


def test_a_task_may_wait_for_an_outcome_and_goes_on_in_the_next_turn() -> None:
    async def run() -> None:
        outcome = Outcome(asyncio.get_running_loop())

        async def wait() -> str:
            return str(await outcome)

        tasks = [asyncio.create_task(wait()) for _ in range(2)]
        await asyncio.sleep(0)
        outcome.settle("there")
        assert not any(task.done() for task in tasks)
        assert await asyncio.gather(*tasks) == ["there"] * 2
        assert await asyncio.wait_for(outcome, 1.0) == "there"

    asyncio.run(run())


def test_an_error_is_raised_by_all_who_wait() -> None:
    async def run() -> None:
        outcome = Outcome(asyncio.get_running_loop())
        with pytest.raises(asyncio.InvalidStateError):
            outcome.result()
        task = asyncio.create_task(asyncio.wait_for(outcome, 60.0))
        await asyncio.sleep(0)
        outcome.settle(None, ValueError("on purpose"))
        with pytest.raises(ValueError, match="on purpose"):
            await task
        with pytest.raises(ValueError, match="on purpose"):
            await outcome

    asyncio.run(run())


def test_a_task_that_is_cancelled_settles_what_it_waits_for() -> None:
    async def run() -> None:
        outcome = Outcome(asyncio.get_running_loop())

        async def wait() -> None:
            await outcome

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert outcome.done()
        outcome.settle(1)  # too late
        with pytest.raises(asyncio.CancelledError):
            outcome.result()

    asyncio.run(run())


def test_one_callback_that_fails_does_not_keep_others_from_going_on() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        told: list[str] = []
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        outcome = Outcome(loop)

        def fail(_: object) -> None:
            raise ValueError("on purpose")

        outcome.add_done_callback(fail)
        outcome.add_done_callback(lambda one: told.append(str(one.result())))
        outcome.settle(1)
        assert told == ["on purpose", "1"]

    asyncio.run(run())
