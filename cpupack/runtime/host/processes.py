"""Runs child processes that every interrupt ends, at whatever moment it comes."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Let a block run to its end, then deliver the signals that came meanwhile.

    It holds back every signal that Python handles, whoever set the handler: one that raises would come between the
    start of a child and the line that knows of it. Outside the main thread it does nothing, because Python runs
    handlers only in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handled = {number: found for number in signal.valid_signals() if callable(found := signal.getsignal(number))}
    try:
        for signum in handled:
            signal.signal(signum, lambda number, _: waiting.append(number))
        yield
    finally:
        for signum, handler in handled.items():
            signal.signal(signum, handler)
        for number in waiting:
            signal.raise_signal(number)


def run(command: Sequence[str], *, timeout_s: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and return its exit code, stdout and stderr as text; every exception ends the child.

    ``options`` are those of ``subprocess.Popen``. ``subprocess.run`` would lose a child if the interrupt comes while
    the child starts, because it has no process to end yet. Raises ``subprocess.TimeoutExpired``.
    """
    child: subprocess.Popen[str] | None = None
    try:
        with interrupts_held_back():
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        out, err = child.communicate(timeout=timeout_s)
    except BaseException:
        if child is not None:
            child.kill()
            with child:  # closes its pipes and waits
                pass
        raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)
