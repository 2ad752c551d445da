"""Runs child processes that end with this one: by every interrupt, at whatever moment, and when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import HostError

ENDS_WITH_PARENT = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv.pop(1)):
    os._exit(1)  # it ended before that line
"""
"""What a child runs first, so that the kernel kills it when its parent ends, however that ends.

Its first argument is the number of its parent, ``os.getpid()``.
"""

_BOOTSTRAP = f"""\
import sys
if not sys.path[0]:  # Python puts the working directory there for -c, and for -m
    del sys.path[0]
{ENDS_WITH_PARENT}
import runpy
module, place, also = sys.argv[1:4]
del sys.argv[1:4]
sys.path += [each for each in also.split(os.pathsep) if each]
if place:
    from importlib.util import module_from_spec, spec_from_file_location
    name = os.path.basename(place)
    spec = spec_from_file_location(name, os.path.join(place, "__init__.py"), submodule_search_locations=[place])
    sys.modules[name] = package = module_from_spec(spec)
    spec.loader.exec_module(package)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def module_command(module: str, package_dir: Path | None = None, also: Sequence[str] = ()) -> list[str]:
    """Return the command that runs ``module`` in a new interpreter, as ``python -m`` does, but isolated.

    The working directory is not on the import path: a ``json.py`` there would be run in place of Python's own. With
    ``package_dir`` the module's package is the one in that directory, whatever else is installed. ``also`` is searched
    last. PYTHONPATH is the user's own choice and stays. The interpreter ends with this process. Raises HostError.
    """
    place = "" if package_dir is None else str(package_dir.absolute())
    return [interpreter(), "-c", _BOOTSTRAP, str(os.getpid()), module, place, os.pathsep.join(also)]


def interpreter() -> str:
    """Return the path of this Python's interpreter. Raises HostError inside a program that does not say it."""
    if getattr(sys, "frozen", False):  # PyInstaller and others: it would start the whole program once more
        raise HostError(f"this Python cannot start another: it is frozen into {sys.executable}")
    if not sys.executable:
        raise HostError("this Python cannot start another: it does not know its interpreter (sys.executable is empty)")
    return sys.executable


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

    What it prints is taken as UTF-8 in every locale, and bytes that are none are ``\\x..``.

    ``options`` are those of ``subprocess.Popen``. ``subprocess.run`` would lose a child if the interrupt comes while
    the child starts, because it has no process to end yet. Raises ``subprocess.TimeoutExpired``, and HostError when the
    command cannot be started.
    """
    child: subprocess.Popen[str] | None = None
    try:
        with interrupts_held_back(), _start_refused(command[0]):
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                encoding="utf-8", errors="backslashreplace", **options,
            )  # fmt: skip
        out, err = child.communicate(timeout=timeout_s)
    except BaseException:
        if child is not None:
            child.kill()
            with child:  # closes its pipes and waits
                pass
        raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)


@contextmanager
def _start_refused(program: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"cannot start {program}: {error.strerror}") from error
