"""A thread for calls that would stop the event loop for too long.

``loop.run_in_executor`` starts its thread with the first call, when the system may refuse it. It loses a thread that is
struck by an exception from outside: all later calls would wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from ..engine.crew import Crew
from ..errors import RunnerError
from ..threads import Answer

T = TypeVar("T")

_LOOK_S = 1.0


class Aside:
    """One thread, which runs calls in turn. Raises HostError when the system refuses it."""

    def __init__(self) -> None:
        self._crew = Crew()

    def run(self, call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Return what ``call(*arguments)`` will return or raise. To be called on the event loop's thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(answer: Answer[T]) -> None:
            if future.done():  # cancelled meanwhile
                return
            error = answer.exception()
            if error is None:
                future.set_result(answer.result())
            elif isinstance(error, Exception):
                future.set_exception(error)
            else:  # it was sent to the thread from outside, and would end the event loop
                future.set_exception(RunnerError("the call was interrupted"))

        def ended(answer: Answer[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, answer)

        answer = self._crew.submit(call, *arguments)
        answer.add_done_callback(ended)

        def look() -> None:
            """Settle what was not: an exception from outside may strike the thread while it calls back."""
            if answer.done():
                settle(answer)
            elif not future.done():
                loop.call_later(_LOOK_S, look)

        loop.call_later(_LOOK_S, look)
        return future

    def close(self) -> None:
        """End the thread after the calls already given."""
        self._crew.close()
