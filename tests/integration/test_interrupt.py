"""Ctrl-C and kill in the middle of a build: one line, no child left, no file left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from cpupack.runtime.host.cpu import machine
from helpers.tiny_recipes import FAST, Project
from helpers.waiting import PATIENCE_S, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]

_SLOW_DATA = "import sys, time\n\ndef load():\n    print('loading', file=sys.stderr, flush=True)\n    time.sleep(600)\n"


@contextmanager
def started(project: Project, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a build in a process group of its own, as a shell does."""
    errors = (project.root / "stderr").open("w")
    command = [sys.executable, "-m", "cpupack", "build", "colors.toml", *arguments]
    with errors, subprocess.Popen(
        command, cwd=project.root, env=project.environ(), stdout=subprocess.PIPE, stderr=errors, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            for each in _group(process.pid):
                each.kill()


def _group(leader: int) -> list[psutil.Process]:
    """Return the processes of a group that have not ended."""
    found = []
    for each in psutil.process_iter():
        try:
            if os.getpgid(each.pid) == leader and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _runs(process: subprocess.Popen[str], module: str) -> bool:
    """Whether a child runs ``python -m module``."""
    for each in _group(process.pid):
        try:
            if each.pid != process.pid and module in " ".join(each.cmdline()):
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def _wait(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    def now() -> bool:
        assert process.poll() is None, "the build ended before it could be interrupted"
        return seen()

    wait_until(now)


def _stopped(process: subprocess.Popen[str], project: Project, code: int) -> list[str]:
    """Check that the build ended as it must, and return the lines of its stderr."""
    out, _ = process.communicate(timeout=PATIENCE_S)
    lines = (project.root / "stderr").read_text().splitlines()
    assert process.returncode == code, lines
    assert out == ""
    assert lines[-1] == "cpupack: interrupted"
    assert not any("Traceback" in line or "KeyboardInterrupt" in line for line in lines)
    assert _group(process.pid) == []
    assert project.left_behind() == []
    return lines


def _says(project: Project, text: str) -> Callable[[], bool]:
    return lambda: text in (project.root / "stderr").read_text()


def test_while_data_is_read(project: Project) -> None:
    project.write("data.py", _SLOW_DATA)
    with started(project, *FAST, "--quiet", "--set", "calibration.source=python:data.py:load") as process:
        _wait(process, _says(project, "loading"))
        os.killpg(process.pid, signal.SIGINT)
        lines = _stopped(process, project, 130)
    assert lines == ["this file prints while it is imported", "loading", "cpupack: interrupted"]


def test_while_it_calibrates(project: Project) -> None:
    long = ("--set", "calibration.source=synthetic", "--set", "calibration.samples=20000")
    with started(project, *FAST, *long, "--set", "calibration.batch_size=1") as process:
        _wait(process, _says(project, "calibrate ..."))
        os.killpg(process.pid, signal.SIGINT)
        lines = _stopped(process, project, 130)
    assert lines[-2] == "calibrate ..."


def test_while_a_worker_verifies(project: Project) -> None:
    with started(project, *FAST) as process:
        _wait(process, lambda: _runs(process, "cpupack.workers.replay"))
        os.killpg(process.pid, signal.SIGINT)
        _stopped(process, project, 130)


def test_a_kill_that_the_worker_does_not_get(project: Project) -> None:
    """``kill PID`` and a supervisor's stop reach the build alone; it must end its child itself."""
    with started(project, *FAST) as process:
        _wait(process, lambda: _runs(process, "cpupack.workers"))
        process.send_signal(signal.SIGTERM)
        _stopped(process, project, 128 + signal.SIGTERM)


def test_while_it_tunes(project: Project) -> None:
    """The wheel of an earlier build stays what it was."""
    (project.root / "dist").mkdir()
    earlier = project.root / "dist" / "tiny_colors-0.1.0-py3-none-manylinux_2_28_x86_64.whl"
    earlier.write_bytes(b"earlier")
    with started(project, "--set", "target.x86_64.engine=fbgemm", "--set", "tune.budget_s=300") as process:
        _wait(process, lambda: _runs(process, "tiny_colors"))
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE_S)
        assert earlier.read_bytes() == b"earlier"
        earlier.unlink()
        lines = _stopped(process, project, 130)
    assert "tune (x86_64) ..." in lines
