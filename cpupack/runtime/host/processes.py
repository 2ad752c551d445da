"""Runs child processes that every interrupt ends, at whatever moment it comes."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Let a block run to its end, then raise KeyboardInterrupt with the number of the signal that came meanwhile.

    It holds back those of SIGINT, SIGTERM and SIGHUP that Python handles. Outside the main thread it does nothing,
    because Python interrupts only the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handled = [signum for signum in _SIGNALS if callable(signal.getsignal(signum))]
    before = {signum: signal.signal(signum, lambda number, _: waiting.append(number)) for signum in handled}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if waiting:
            raise KeyboardInterrupt(waiting[0])


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
