"""Child processes: what they answer, and that none outlives who started it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import cpupack
from cpupack.errors import VerificationError
from cpupack.runtime.errors import HostError
from cpupack.runtime.host import processes
from cpupack.workers.client import run_worker
from helpers.waiting import wait_until

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


def test_a_child_may_print_any_bytes() -> None:
    """In the locale C they were an error, after minutes of work."""
    code = "import os; os.write(1, 'größe'.encode()); os.write(2, b'\\xff')"
    done = processes.run([sys.executable, "-c", code])
    assert (done.stdout, done.stderr) == ("größe", "\\xff")


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


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules of Python's own names, and another cpupack, none of which may be run."""
    for name in ("json", "runpy", "importlib", "os", "numpy", "cpupack", "argparse"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('ran {name}.py of the working directory')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("hostile")
def test_a_module_runs_without_the_working_directory_on_its_path() -> None:
    done = processes.run([*processes.module_command("json.tool"), os.devnull, os.devnull])
    assert "Expecting value" in done.stderr  # of json.tool itself, about an empty file
    done = processes.run([*processes.module_command("cpupack.cli", Path(cpupack.__file__).parent), "--version"])
    assert done.stdout.startswith("cpupack, version"), done.stderr


@pytest.mark.usefixtures("hostile")
def test_workers_of_the_build_run_nothing_of_the_working_directory(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"in a fresh process \(race\): KeyError: 'inputs'"):
        run_worker("race", {}, tmp_path / "spec.json")


def test_a_worker_that_cannot_start_is_an_error_of_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path))  # a directory: as a Python that this user may not run
    with pytest.raises(VerificationError, match=r"cannot be tried .* cannot start .*: Permission denied"):
        run_worker("race", {}, tmp_path / "spec.json")


def test_the_package_that_runs_is_the_one_in_the_directory(package_dir: Path, hostile: Path) -> None:
    (hostile / "tiny_int8.py").write_text("raise SystemExit('another package of that name')")
    done = processes.run([*processes.module_command("tiny_int8", package_dir, [str(hostile)]), "--version"])
    assert (done.stdout, done.stderr) == ("tiny-int8 1.0.0\n", "")


def test_what_else_is_searched_comes_last(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('ran json.py')")
    (tmp_path / "own_module.py").write_text("import json; print(json.dumps({'own': 1}))")
    done = processes.run(processes.module_command("own_module", None, [str(tmp_path)]))
    assert (done.stdout, done.stderr) == ('{"own": 1}\n', "")


def test_pythonpath_is_the_users_own_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module.py").write_text("print('found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert processes.run(processes.module_command("own_module")).stdout == "found\n"


def test_an_interpreter_that_cannot_be_started_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unusable = tmp_path / "python"
    unusable.write_text("")
    monkeypatch.setattr(sys, "executable", str(unusable))
    with pytest.raises(HostError, match=f"^cannot start {re.escape(str(unusable))}: Permission denied$"):
        processes.run(processes.module_command("this"))
    monkeypatch.setattr(sys, "executable", "")  # as in a program that embeds Python
    with pytest.raises(HostError, match=r"does not know its interpreter"):
        processes.module_command("this")
    monkeypatch.setattr(sys, "executable", "/opt/app/app")
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # as PyInstaller does: the program would start itself
    with pytest.raises(HostError, match=r"it is frozen into /opt/app/app$"):
        processes.module_command("this")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path, signum: int) -> None:
    """As with `kill -9` of `NAME tune`, or where memory ran out: nobody is left to end the child."""
    (tmp_path / "own_module.py").write_text(
        "import os, time; print(os.getpid(), file=open('child', 'w')); time.sleep(600)"
    )
    code = (
        "from cpupack.runtime.host import processes; "
        f"processes.run(processes.module_command('own_module', None, [{str(tmp_path)!r}]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as parent:
        wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().endswith("\n"))
        parent.send_signal(signum)
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_a_child_whose_parent_is_gone_does_not_begin() -> None:
    """The parent may end before the child has told the kernel that it wants to end with it."""
    module = processes.module_command("json.tool")
    module[3] = "1" if os.getpid() != 1 else "2"
    done = processes.run(module)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
