"""Threads that take calls from a queue. An exception that arrives in the caller at any moment costs them nothing.

``threads.py`` says why callers and crews share no lock. They meet in a ``SimpleQueue``, whose operations the
interpreter finishes before it looks for exceptions. A crew that nobody holds is ended by the callback of a weak
reference, which is a function in C, too.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import RunnerError
from ..threads import Answer, ThreadRefusedError, start

T = TypeVar("T")


class _Task:
    """A call and its answer."""

    __slots__ = ("_answer", "_arguments", "_call")

    def __init__(self, answer: Answer[Any], call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._answer, self._call, self._arguments = answer, call, arguments

    def run(self) -> None:
        self._answer.run(self._call, self._arguments)

    def fail(self, error: BaseException) -> None:
        self._answer.finish(None, error)


class _State:
    """What a crew shares with its threads. It has no reference to the crew."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[_Task | weakref.ref[Crew] | None] = queue.SimpleQueue()
        self.process = os.getpid()
        self.closed = False
        self.running = 0
        self.watch: weakref.ref[Crew] | None = None
        self.threads: deque[tuple[int, Answer[None]]] = deque()
        """The identity of each thread that has begun, and when it has ended."""


class Crew:
    """``count`` threads, which run calls in the order in which they were given.

    They end after the calls already given when the crew is closed or nobody holds it any more. Raises
    ThreadRefusedError when the system refuses another thread.
    """

    def __init__(self, count: int = 1) -> None:
        state = self._state = _State()
        # The interpreter calls ``put`` itself when the crew is gone, so the threads end even if no Python code may run.
        state.watch = weakref.ref(self, state.tasks.put)
        # At the interpreter's end, threads must not be inside a library that is being unloaded.
        self._finalizer = weakref.finalize(self, _stop, state)
        try:
            for _ in range(count):
                begun: Answer[None] = Answer()
                start(_enlist, state, begun)
                begun.result()  # else closing at once would not wait for it
        except ThreadRefusedError:
            self.close()
            raise

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
        _stop(self._state)
        self._finalizer.detach()


def _stop(state: _State) -> None:
    state.closed = True
    state.tasks.put(None)
    if state.process != os.getpid():
        return  # a forked child does not have the threads
    # One cannot wait for itself.
    for thread, ended in list(state.threads):
        if thread != threading.get_ident():
            ended.exception()


def _refuse_rest(state: _State) -> None:
    """Fail the calls that came after the end."""
    try:
        while True:
            task = state.tasks.get_nowait()
            if isinstance(task, _Task):
                task.fail(RunnerError("the runner is closed"))
    except queue.Empty:
        state.tasks.put(None)  # for threads that have not seen the end


def _enlist(state: _State, begun: Answer[None]) -> None:
    ended: Answer[None] = Answer()
    state.threads.append((threading.get_ident(), ended))
    begun.finish(None)
    ended.run(_work, (state,))


def _work(state: _State) -> None:
    # ``iter`` takes and hands over the next task in one step: no exception can come between.
    following: Iterator[_Task | weakref.ref[Crew]] = iter(state.tasks.get, None)
    task: _Task | weakref.ref[Crew] | None = None
    while True:
        try:
            for task in following:
                if not isinstance(task, _Task):
                    break  # nobody holds the crew
                state.running += 1
                try:
                    task.run()
                finally:
                    state.running -= 1
                task = None  # else its batch would stay in memory until the next one comes
        except BaseException as error:  # noqa: BLE001 - sent to this thread from outside: the caller must hear
            # One that came while the thread waited is raised when it has its next task.
            if isinstance(task, _Task):
                task.fail(error)
                task = None
            continue
        state.tasks.put(None)  # for the other threads
        return
