"""Controls an engine's process: starts it, sends commands, stops it while others are measured, and kills it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cpupack.peers.job import Job
from cpupack.runtime.host.processes import interrupts_held_back, module_command

_PACKAGE = Path(__file__).parents[1]


class EngineFailedError(Exception):
    """The engine's process answered with an error, ended, or took too long."""


class EngineProcess:
    """A ``workers.peer`` process in its own session, so that Ctrl-C only reaches the parent, which then kills it.

    Its libraries write into ``scratch``: caches, temporary files, output. Leaving the context kills the process and its
    children, even stopped ones.
    """

    def __init__(self, job: Job, scratch: Path, *, timeout_s: float) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._timeout_s = timeout_s
        self._log = scratch / "stderr.txt"
        path = scratch / "job.json"
        job.write(path)
        self._unread = b""
        started = False
        try:
            with self._log.open("wb") as log, interrupts_held_back():
                self._process = subprocess.Popen(
                    [*module_command("cpupack.workers.peer", _PACKAGE, _own_modules()), str(path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=scratch,  # some libraries write into the working directory
                    env=_environment(os.environ, job.work),
                    start_new_session=True,
                )
                started = True
        except BaseException:
            if started:  # interrupted before the context that would kill it was entered
                self.__exit__()
            raise

    @property
    def pid(self) -> int:
        """The process, which is also its session."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its answer. Raises EngineFailedError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EngineFailedError(self._last_words()) from None
        answer: dict[str, Any] = json.loads(self._line(do))
        if "error" in answer:
            raise EngineFailedError(answer["error"])
        return answer

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let a paused process run inside ``with``, and pause it again."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stop the process and its children, so that none of their threads can spin."""
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a command that the killed process never read
                pipe.close()

    def _line(self, do: str) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline_s = time.monotonic() + self._timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                raise EngineFailedError(f"{do} was not finished after {self._timeout_s:.0f} s")
            read = os.read(descriptor, 1 << 20)
            if not read:
                self._process.wait()
                raise EngineFailedError(self._last_words())
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, probably because memory ran out"
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        ended = f"its process ended with status {code}"
        return f"{ended}: {lines[-1].strip()}" if lines else ended

    def _signal(self, signum: int) -> None:
        with suppress(ProcessLookupError):  # it has ended; the next command will report that
            os.killpg(self._process.pid, signum)


def _environment(inherited: Mapping[str, str], work: Path) -> dict[str, str]:
    """Return a child's environment: all temporary files are below ``work``."""
    scratch = work / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    return {
        **inherited,
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),  # shared by all processes of the engine
        "NNCF_CI": "1",  # turns off NNCF's telemetry
    }


def _own_modules() -> list[str]:
    """Return this directory if modules can be imported from it: the recipe's may be here. The child is elsewhere."""
    here = str(Path.cwd())
    return [here] if {"", here} & set(sys.path) else []
