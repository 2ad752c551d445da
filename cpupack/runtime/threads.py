"""A thread, and what it will return. An exception that arrives in the caller at any moment costs them nothing.

A signal handler may raise between any two bytecodes of the main thread, and ``PyThreadState_SetAsyncExc`` does the same
to any thread: that is how many tools implement timeouts. A lock that is taken just before would never be given back.
``threading.Thread.start`` and ``concurrent.futures`` have such locks: a thread whose starter was interrupted waits for
ever in its first line. What is here meets only in operations that the interpreter finishes before it looks for
exceptions: those of ``deque``, of ``Lock`` and of ``_thread``.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from .errors import HostError
from .host.limits import why_no_thread

T = TypeVar("T")


class ThreadRefusedError(HostError):
    """The system, or Python itself, allows no more threads."""


class Pending(Protocol):
    """What a pool returns at once for a call: an ``Answer``, or a future of another engine's pool."""

    def result(self, timeout: float | None = None) -> Any: ...

    def exception(self, timeout: float | None = None) -> BaseException | None: ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None: ...


class Answer(Generic[T]):
    """What a call will return. It has the methods of ``concurrent.futures.Future`` that waiting needs."""

    def __init__(self) -> None:
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._gates: deque[threading.Lock] = deque()
        self._callbacks: deque[Callable[[Answer[T]], object]] = deque()

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> T:
        """Wait, then return what the call returned or raise what it raised. Raises TimeoutError."""
        value, error = self._wait(timeout)
        if error is None:
            return value  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            del error, self  # the traceback has this frame: without this, the two would keep each other in memory

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, then return what the call raised, None if it raised nothing. Raises TimeoutError."""
        return self._wait(timeout)[1]

    def add_done_callback(self, callback: Callable[[Answer[T]], object]) -> None:
        """Call ``callback(self)`` when the call has ended, on the thread that ended it; at once if it has ended."""
        self._callbacks.append(callback)
        if self._outcome is not None:
            self._call_back()

    def run(self, call: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        """End with what ``call(*arguments)`` returns or raises."""
        try:
            value = call(*arguments)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
            self.finish(None, error)
        else:
            self.finish(value)

    def finish(self, value: Any, error: BaseException | None = None) -> None:
        """End the call, unless it has ended, and wake those who wait."""
        if self._outcome is None:
            self._outcome = (value, error)
        while self._gates:
            self._gates.popleft().release()
        self._call_back()

    def _wait(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        if self._outcome is None:
            gate = threading.Lock()  # this waiter's own: if it is lost, nobody else misses it
            gate.acquire()
            self._gates.append(gate)
            if self._outcome is None and not gate.acquire(timeout=-1 if timeout is None else timeout):
                raise TimeoutError(f"no answer within {timeout:g} s")
        assert self._outcome is not None
        return self._outcome

    def _call_back(self) -> None:
        while self._callbacks:
            callback = self._callbacks.popleft()
            try:
                callback(self)
            except Exception:  # noqa: BLE001 - the thread must go on, and whoever wrote the callback must hear of it
                sys.excepthook(*sys.exc_info())


def start(call: Callable[..., T], *arguments: Any) -> Answer[T]:
    """Run ``call(*arguments)`` in a thread of its own. It does not keep the process alive.

    Raises ThreadRefusedError when the system refuses the thread, or Python does because it ends.
    """
    answer: Answer[T] = Answer()
    try:
        _thread.start_new_thread(answer.run, (call, arguments))
    except RuntimeError as error:  # "can't start new thread"
        ends = "shutdown" in str(error)  # "can't create new thread at interpreter shutdown"
        why = "this program ends, and Python starts no more threads in it" if ends else why_no_thread()
        raise ThreadRefusedError(why) from error
    return answer


def may_start(count: int) -> bool:
    """Return whether the system allows ``count`` more threads at once. They are started to see, and have ended."""
    gates, begun = deque[threading.Lock](), deque[Answer[bool]]()
    try:
        for _ in range(count):
            gates.append(threading.Lock())
            gates[-1].acquire()
            begun.append(start(gates[-1].acquire))
    except ThreadRefusedError:
        return False
    finally:
        for gate in gates:
            gate.release()
        for each in begun:
            each.exception()
    return True
