"""Exceptions that come between any two bytecodes, as tools that limit time raise them, leave a runner usable.

The work is done in processes of their own: a lock that is lost there would make the test session hang at its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpupack.runtime.engine import library
from helpers.tiny_package import RUNTIME
from helpers.waiting import PATIENCE_S

_HEAD = """
import ctypes, os, random, signal, sys, threading, time
import numpy as np
from cpupack.runtime.runner import Runner
from pathlib import Path

class TimesUp(Exception): pass

def ring(*_): raise TimesUp

signal.signal(signal.SIGALRM, ring)
random.seed(0)
package, wanted = Path(sys.argv[1]), int(sys.argv[2])
images = list(np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))

WAYS = (
    lambda runner: runner.predict(images[0]),
    lambda runner: runner.predict(images),
    lambda runner: runner(np.stack(images)).tolist(),
)

def work(runner):
    return [way(runner) for way in WAYS]
"""

_SIGNALS = (
    _HEAD
    + """
with Runner(package, threads=1, instances=2) as runner:
    right, count = work(runner), 0
    while count < wanted:
        number = random.randrange(3)
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1e-3))
            found = WAYS[number](runner)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert found == right[number]
        except TimesUp:
            count += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert work(runner) == right
print("usable after", count)
"""
)

_THREADS = (
    _HEAD
    + """
with Runner(package, threads=1, instances=2) as runner:
    right, stop, caught = work(runner), threading.Event(), []

    def serve():
        while not stop.is_set():
            try:
                while not stop.is_set():
                    assert work(runner) == right
            except TimesUp:
                caught.append(1)

    server = threading.Thread(target=serve)
    server.start()
    while len(caught) < wanted:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(server.ident), ctypes.py_object(TimesUp))
        time.sleep(random.uniform(0, 2e-3))
    stop.set()
    server.join()
    assert work(runner) == right
print("usable after", wanted)
"""
)

_OPENING = (
    _HEAD
    + """
def open_and_use():
    with Runner(package, threads=2, instances=2) as runner:
        runner.predict(images)

open_and_use()
before, begin = len(os.listdir("/proc/self/task")), time.perf_counter()
open_and_use()
one_s, count = time.perf_counter() - begin, 0
while count < wanted:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, min(one_s, 0.1)))
        open_and_use()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except TimesUp:
        count += 1
signal.setitimer(signal.ITIMER_REAL, 0)
open_and_use()
while len(os.listdir("/proc/self/task")) > before:  # threads of the last one may still be ending
    time.sleep(0.01)
print("usable after", count)
"""
)


def run(code: str, package_dir: Path, count: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(package_dir), str(count)],
        env={**os.environ, "PYTHONPATH": str(RUNTIME.parent.parent)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(library.describe()["problem"] is not None, reason="needs the native kernels")
def test_a_native_runner_is_usable_after_ten_thousand_timeouts(native_package_dir: Path) -> None:
    assert run(_SIGNALS, native_package_dir, 10_000) == "usable after 10000\n"


def test_a_runner_of_torch_is_usable_after_a_thousand_timeouts(package_dir: Path) -> None:
    assert run(_SIGNALS, package_dir, 1_000) == "usable after 1000\n"


def test_exceptions_sent_to_a_calling_thread_lose_nothing(native_package_dir: Path) -> None:
    assert run(_THREADS, native_package_dir, 1_000) == "usable after 1000\n"


def test_timeouts_while_a_runner_opens_and_closes_leave_no_thread(native_package_dir: Path) -> None:
    assert run(_OPENING, native_package_dir, 200) == "usable after 200\n"
