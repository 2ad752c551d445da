"""Runs a coroutine at once, without a task of asyncio's, and on as soon as its outcome is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

Callback = Callable[[Any], object]


class Outcome:
    """What a request will get: a future that tells a coroutine of ``run_at_once`` in the call that settles it.

    A future of asyncio's tells in the next turn of the loop, which is one more call of the kernel for each answer. A
    task of asyncio's may await this as well, and is told in the next turn. To be used on the loop's thread alone.
    """

    __slots__ = ("_asyncio_future_blocking", "_callbacks", "_done", "_error", "_loop", "_value")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False  # by this asyncio knows what can be awaited like a future
        self._callbacks: list[tuple[Callback, Context | None]] = []
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop whose tasks may await this."""
        return self._loop

    def done(self) -> bool:
        """Return whether it is settled."""
        return self._done

    def result(self) -> Any:
        """Return the value, or raise the error. Raises InvalidStateError before it is settled."""
        if not self._done:
            raise asyncio.InvalidStateError("the outcome is not there yet")
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            del self  # the traceback has this frame: without this, the two would keep each other in memory

    def settle(self, value: Any, error: BaseException | None = None) -> None:
        """Give it its value or error, and tell those who wait. Only the first time counts."""
        if self._done:
            return
        self._done, self._value, self._error = True, value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback, context in callbacks:
            self._tell(callback, context)

    def cancel(self, msg: str | None = None) -> bool:
        """Settle it as cancelled, as a task does that is cancelled while it waits. False when it is settled already."""
        if self._done:
            return False
        self.settle(None, asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def add_done_callback(self, callback: Callback, *, context: Context | None = None) -> None:
        """Call ``callback(self)`` once it is settled: at once, or in the next turn of the loop where it has a context.

        Tasks give a context: they cannot go on in the midst of another task.
        """
        if self._done:
            self._tell(callback, context)
        else:
            self._callbacks.append((callback, context))

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        try:
            return self.result()
        finally:
            del self  # as in ``result``

    def _tell(self, callback: Callback, context: Context | None) -> None:
        if context is not None:
            self._loop.call_soon(callback, self, context=context)
            return
        try:
            callback(self)
        except Exception as error:  # noqa: BLE001 - whoever settles it must go on; the loop logs it
            self._loop.call_exception_handler({"message": "a callback of an outcome failed", "exception": error})


def run_at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run ``coroutine`` until it waits for a future, and on when that is done.

    A task begins in the next turn of the loop, and is made and registered for each request: a tenth of the time of a
    small one. What runs here cannot be cancelled, and has no ``asyncio.current_task()``. It may await futures and
    outcomes only.
    """
    _Steps(coroutine).go()


class _Steps:
    """A coroutine on its way. No function that names itself: that would be left to the garbage collector."""

    __slots__ = ("_steps",)

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._steps: Generator[Any, None, None] = coroutine.__await__()

    def go(self, _: Any = None) -> None:
        """Run it until it waits again."""
        try:
            waits_for: asyncio.Future[Any] | Outcome = next(self._steps)
        except StopIteration:
            return
        waits_for.add_done_callback(self.go)
