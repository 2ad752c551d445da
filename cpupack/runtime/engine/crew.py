"""Threads that take calls from a queue. An exception that arrives in the caller at any moment costs them nothing.

A signal handler may raise between any two bytecodes of the main thread, and ``PyThreadState_SetAsyncExc`` does the same
to any thread: that is how many tools implement timeouts. A lock that is taken just before would never be given back.
``concurrent.futures`` has such locks in every future and executor. So callers and crews share no lock here. They meet
only in operations that the interpreter finishes before it looks for exceptions: those of ``SimpleQueue``, ``deque`` and
``Lock``. A crew that nobody holds is ended by the callback of a weak reference, which is a function in C, too.
"""

from __future__ import annotations

import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ..errors import HostError, RunnerError
from ..host.limits import why_no_thread

T = TypeVar("T")


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


class _Task:
    """A call and its answer."""

    __slots__ = ("_answer", "_arguments", "_call")

    def __init__(self, answer: Answer[Any], call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._answer, self._call, self._arguments = answer, call, arguments

    def run(self) -> None:
        try:
            value = self._call(*self._arguments)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
            self._answer.finish(None, error)
        else:
            self._answer.finish(value)

    def fail(self, error: BaseException) -> None:
        self._answer.finish(None, error)


class _State:
    """What a crew shares with its threads. It has no reference to the crew."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[_Task | weakref.ref[Crew] | None] = queue.SimpleQueue()
        self.closed = False
        self.running = 0
        self.watch: weakref.ref[Crew] | None = None


class Crew:
    """``count`` threads named ``NAME``, which run calls in the order in which they were given.

    They end after the calls already given when the crew is closed or nobody holds it any more. Raises HostError when
    the system refuses another thread.
    """

    def __init__(self, name: str, count: int = 1) -> None:
        state = self._state = _State()
        self._threads: list[threading.Thread] = []
        # The interpreter calls ``put`` itself when the crew is gone, so the threads end even if no Python code may run.
        state.watch = weakref.ref(self, state.tasks.put)
        # At the interpreter's end, threads must not be inside a library that is being unloaded.
        self._finalizer = weakref.finalize(self, _stop, state, self._threads)
        try:
            for _ in range(count):
                # Daemon threads: one that is left after an interrupt must not keep the process alive.
                thread = threading.Thread(target=_work, args=(state,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        except RuntimeError as error:  # "can't start new thread"
            self.close()
            raise HostError(why_no_thread()) from error

    @property
    def load(self) -> int:
        """How many calls wait or run. Other threads may change it at any time."""
        return self._state.tasks.qsize() + self._state.running

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return self._state.tasks.qsize()

    def submit(self, call: Callable[..., T], *arguments: Any) -> Answer[T]:
        """Queue ``call(*arguments)``. Raises RunnerError when the crew is closed."""
        answer: Answer[T] = Answer()
        if self._state.closed:
            raise RunnerError("the runner is closed")
        self._state.tasks.put(_Task(answer, call, arguments))
        if self._state.closed:  # meanwhile: the threads may have ended before they came to it
            _refuse_rest(self._state)
        return answer

    def close(self) -> None:
        """End the threads after the calls already given. May be called again, also after it was interrupted."""
        _stop(self._state, self._threads)
        self._finalizer.detach()


def _stop(state: _State, threads: list[threading.Thread]) -> None:
    state.closed = True
    state.tasks.put(None)
    for thread in threads:
        # A thread that was never started cannot be joined, and one cannot join itself.
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join()


def _refuse_rest(state: _State) -> None:
    """Fail the calls that came after the end."""
    try:
        while True:
            task = state.tasks.get_nowait()
            if isinstance(task, _Task):
                task.fail(RunnerError("the runner is closed"))
    except queue.Empty:
        state.tasks.put(None)  # for threads that have not seen the end


def _work(state: _State) -> None:
    # ``iter`` takes and hands over the next task in one step: no exception can come between.
    following = iter(state.tasks.get, None)
    while True:
        try:
            for task in following:
                if not isinstance(task, _Task):
                    break  # nobody holds the crew
                state.running += 1
                try:
                    task.run()
                except BaseException as error:  # noqa: BLE001 - sent to this thread from outside: the caller must hear
                    task.fail(error)
                finally:
                    state.running -= 1
                    del task  # else its batch would stay in memory until the next one comes
        except BaseException:  # noqa: BLE001, S112 - sent to this thread between two calls: nobody waits for anything
            continue
        state.tasks.put(None)  # for the other threads
        return
