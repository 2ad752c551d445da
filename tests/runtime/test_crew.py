"""Threads that take calls from a queue: what they answer, and that nothing which arrives at a bad moment hurts them."""

from __future__ import annotations

import _thread
import ctypes
import errno
import gc
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cpupack.runtime.engine.crew import Crew
from cpupack.runtime.errors import HostError, RunnerError
from cpupack.runtime.handlers import raise_refusal
from cpupack.runtime.host.limits import system_fault, why_no_memory, why_no_thread
from cpupack.runtime.threads import Answer, ThreadRefusedError, start
from helpers.threads import crew_threads
from helpers.waiting import PATIENCE_S, wait_until


def test_calls_run_in_order_and_answer() -> None:
    before = crew_threads()
    seen: list[int] = []
    crew = Crew()
    answers = [crew.submit(lambda number=number: seen.append(number) or number * 2) for number in range(5)]
    assert [answer.result(PATIENCE_S) for answer in answers] == [0, 2, 4, 6, 8]
    assert seen == [0, 1, 2, 3, 4]
    crew.close()
    crew.close()
    wait_until(lambda: crew_threads() == before)


def test_what_a_call_raises_is_raised_to_the_caller_and_the_thread_goes_on() -> None:
    crew = Crew()
    answer = crew.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        answer.result(PATIENCE_S)
    assert isinstance(answer.exception(PATIENCE_S), ZeroDivisionError)
    assert crew.submit(lambda: 7).result(PATIENCE_S) == 7
    crew.close()


def test_callbacks_are_called_once_before_or_after_the_end() -> None:
    answer: Answer[int] = Answer()
    seen: list[str] = []
    answer.add_done_callback(lambda done: seen.append(f"before {done.result()}"))
    assert not answer.done()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        answer.result(0.01)
    answer.finish(3)
    answer.finish(4)  # the first one counts
    answer.add_done_callback(lambda done: seen.append(f"after {done.result()}"))
    assert seen == ["before 3", "after 3"]


def test_several_threads_may_wait_for_one_answer() -> None:
    answer: Answer[int] = Answer()
    found: list[int] = []
    waiting = [threading.Thread(target=lambda: found.append(answer.result(PATIENCE_S))) for _ in range(4)]
    for thread in waiting:
        thread.start()
    answer.finish(5)
    for thread in waiting:
        thread.join(PATIENCE_S)
    assert found == [5, 5, 5, 5]


def test_closing_finishes_what_was_given_and_refuses_the_rest() -> None:
    crew, gate = Crew(2), threading.Event()
    answers = [crew.submit(gate.wait, PATIENCE_S) for _ in range(6)]
    closing = threading.Thread(target=crew.close)
    closing.start()
    gate.set()
    closing.join(PATIENCE_S)
    assert all(answer.done() for answer in answers)
    with pytest.raises(RunnerError, match="the runner is closed"):
        crew.submit(gate.wait)


def test_no_call_given_while_it_closes_is_left_without_an_answer() -> None:
    for _ in range(20):
        crew, answers = Crew(), []

        def give(crew: Crew = crew, answers: list[Answer[int]] = answers) -> None:
            try:
                while len(answers) < 1000:
                    answers.append(crew.submit(lambda: 1))
            except RunnerError:
                pass

        giver = threading.Thread(target=give)
        giver.start()
        crew.close()
        giver.join(PATIENCE_S)
        for answer in answers:
            error = answer.exception(PATIENCE_S)
            assert error is None or isinstance(error, RunnerError)


def test_a_crew_that_nobody_holds_ends_its_threads() -> None:
    before = crew_threads()
    Crew(3).submit(int)
    gc.collect()
    wait_until(lambda: crew_threads() == before)


def test_an_exception_sent_to_the_thread_fails_the_call_and_not_the_thread() -> None:
    class SentError(Exception):
        pass

    crew, begun, go = Crew(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        while not go.is_set():
            pass  # bytecodes between which the exception can come

    ident = crew.submit(threading.get_ident).result(PATIENCE_S)
    answer = crew.submit(call)
    begun.wait(PATIENCE_S)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SentError))
    with pytest.raises(SentError):
        answer.result(PATIENCE_S)
    assert crew.submit(threading.get_ident).result(PATIENCE_S) == ident
    crew.close()


def test_an_exception_sent_to_an_idle_thread_leaves_no_caller_waiting() -> None:
    """It is raised when the thread has its next call. That call was lost, and its caller waited for ever."""

    class SentError(Exception):
        pass

    crew = Crew()
    ident = crew.submit(threading.get_ident).result(PATIENCE_S)
    for _ in range(50):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SentError))
        assert isinstance(crew.submit(int).exception(PATIENCE_S), SentError | type(None))
    assert crew.submit(threading.get_ident).result(PATIENCE_S) == ident
    crew.close()


def test_a_refused_thread_is_a_host_error_and_the_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    before = crew_threads()
    real, started = _thread.start_new_thread, []

    def start(call: Callable[..., object], arguments: tuple[object, ...]) -> int:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(real(call, arguments))
        return started[-1]

    monkeypatch.setattr(_thread, "start_new_thread", start)
    with pytest.raises(HostError, match="refuses to start another thread"):
        Crew(4)
    wait_until(lambda: crew_threads() == before)


def test_the_end_of_the_program_is_no_limit_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(_thread, "start_new_thread", refused)
    with pytest.raises(ThreadRefusedError, match="this program ends, and Python starts no more threads in it"):
        start(int)


def test_a_library_without_memory_is_told_from_one_that_is_missing() -> None:
    """As Pillow and numpy say it."""
    for kind in (ImportError, OSError):  # of modules, and of what ctypes loads
        assert system_fault(kind("libtiff-0e.so.6: failed to map segment from shared object")) == why_no_memory()
        many = kind("libtiff-0e.so.6: cannot open shared object file: Too many open files")
        assert str(system_fault(many)).startswith("too many files are open")
    blamed = ImportError("IMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!")
    raise_refusal(blamed)  # nothing
    blamed.__cause__ = ImportError("libz.so.1: cannot map zero-fill pages: Cannot allocate memory")
    with pytest.raises(HostError, match="there is not enough memory"):
        raise_refusal(blamed)
    for other in ("No module named 'PIL'", "libgomp.so.1: cannot allocate memory in static TLS block"):
        assert system_fault(ImportError(other)) is None


def test_the_limits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "proc/self/cgroup": "0::/app\n",
        "proc/self/mountinfo": "30 20 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/app/pids.max": "64\n",
        "sys/fs/cgroup/app/pids.current": "64\n",
        "sys/fs/cgroup/pids.max": "max\n",
        "proc/sys/kernel/threads-max": "5000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (4_194_304_000, -1) if which == resource.RLIMIT_AS else (-1, -1)
    )
    text = why_no_thread(tmp_path)
    assert "the control group's threads (pids.max): 64 of 64" in text
    assert "the system's threads: 5000" in text
    assert "the process's memory in KiB (ulimit -v): 4096000" in text  # a thread that has no room for its stack
    assert text.endswith("raise the limit, or use fewer threads and instances")


def test_what_the_system_refuses_is_no_fault_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package was called damaged, and to be installed again, where memory or open files ran out."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, -1) if which != resource.RLIMIT_AS else (-1, -1))
    assert system_fault(OSError(errno.ENOMEM, "no")) == why_no_memory()
    assert why_no_memory().startswith("there is not enough memory (the process's data in KiB (ulimit -d): 64); raise")
    for number in (errno.EMFILE, errno.ENFILE):
        assert str(system_fault(OSError(number, "no"))).startswith("too many files are open (the process's open files")
    for other in (OSError(errno.EIO, "no"), OSError("no"), ValueError("no")):
        assert system_fault(other) is None
