"""Child processes: what they answer, and that none outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cpupack.runtime.host import processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[str]]]:
    """Every child that is started; none may be left."""
    children: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    def popen(*command: Any, **options: Any) -> subprocess.Popen[str]:
        children.append(real(*command, **options))
        return children[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    yield children
    left = [child for child in children if child.returncode is None]
    for child in left:
        child.kill()
        child.wait()
    assert not left


def test_the_answer_is_the_childs() -> None:
    code = "import sys; print(sys.stdin.read()); print('why', file=sys.stderr); sys.exit(3)"
    done = processes.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (3, "\n", "why\n")


def test_an_interrupt_while_a_child_is_started_ends_it(
    started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = processes.subprocess.Popen

    def interrupted(*command: Any, **options: Any) -> subprocess.Popen[str]:
        child = counted(*command, **options)
        os.kill(os.getpid(), signal.SIGINT)  # the child is there, and nobody knows it yet
        return child

    monkeypatch.setattr(processes.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        processes.run(SLEEP)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert [child.returncode for child in started] == [-signal.SIGKILL]


def test_an_interrupt_while_a_child_runs_ends_it(
    started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        processes.run([sys.executable, "-c", code])
    assert [child.returncode for child in started] == [-signal.SIGKILL]


def test_a_child_that_takes_too_long_is_ended(started: list[subprocess.Popen[str]]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run(SLEEP, timeout_s=0.1)
    assert [child.returncode for child in started] == [-signal.SIGKILL]


def test_an_interrupt_is_not_lost_where_the_block_fails() -> None:
    def fail() -> None:
        with processes.interrupts_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            raise FileNotFoundError("no such program")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert isinstance(caught.value.__context__, FileNotFoundError)
    assert signal.getsignal(signal.SIGINT) == before


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with processes.interrupts_held_back():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_may_start_children() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(processes.run([sys.executable, "-c", "print(1)"]).stdout))
    thread.start()
    thread.join()
    assert found == ["1\n"]
