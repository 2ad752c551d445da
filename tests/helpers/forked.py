"""Processes of Python that begin with torch imported: forked from one that has done only that.

A fresh interpreter takes 2 s of a CPU to import torch, and 5 s to import what ``cpupack build`` needs. Most tests of
builds are not about that. Those that are start processes as a user does: ``test_readme``, ``test_lite0``,
``test_twin_builds``, ``test_interrupt``, ``test_full_disk`` and what tests of ``run_worker`` there are.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

TORCH = ("torch", "cpupack.runtime.engine.pool", "cpupack.runtime.images.inputs", "cpupack.runtime.rows")
BUILDS = ("torch._dynamo", "torch.ao.quantization.quantize_fx", "cpupack.cli", "cpupack.pipeline", "cpupack.lock")
_SEEN_LATER = (
    "TMPDIR", "XDG_CACHE_HOME", "COLUMNS", "CPUPACK_NO_CACHE", "SOURCE_DATE_EPOCH", "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR", "PYTHONDONTWRITEBYTECODE", "NNCF_CI",
)  # fmt: skip
"""Variables that Python code looks up when it runs. Others may count while a library is loaded."""


class Forks:
    """A process that has imported ``modules``, and whatever it forks. It starts with the first and ends with this one.

    With ``workers`` the workers of a build that is forked are forks of those.
    """

    def __init__(self, modules: Sequence[str], workers: Forks | None = None) -> None:
        self._modules, self._workers = modules, workers
        self._environ: dict[str, str] = {}
        self.socket = ""

    def fits(self, environ: Mapping[str, str]) -> bool:
        """Whether a fork can have these variables: what libraries read while they are loaded is what it was."""
        self.start()
        return _lasting(environ) == _lasting(self._environ)

    def start(self) -> None:
        """Start the server unless it runs."""
        if self.socket:
            return
        directory = tempfile.mkdtemp(prefix="forks-", dir="/tmp")  # the path of a socket has 108 bytes at most
        path = os.pathsep.join(filter(None, [*map(str, _PLACES), os.environ.get("PYTHONPATH")]))
        server = subprocess.Popen(
            [sys.executable, __file__, f"{directory}/socket", *self._modules],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.read(1) == b"."
        self.socket, self._environ = f"{directory}/socket", dict(os.environ)

        def stop() -> None:
            server.kill()  # and with it its forks
            with server:
                shutil.rmtree(directory)

        atexit.register(stop)

    def popen(
        self,
        module: str,
        arguments: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str],
        streams: Sequence[int] | None = None,
        also: Sequence[str] = (),
    ) -> Fork:
        """Begin ``python -m module`` in a group of its own, with stdin, stdout and stderr in ``streams``.

        ``also`` is searched for modules last.
        """
        self.start()
        if self._workers is not None:
            self._workers.start()
        request = {
            "module": module, "arguments": list(arguments), "cwd": str(cwd), "environ": dict(environ),
            "also": list(also), "workers": self._workers and self._workers.socket,
        }  # fmt: skip
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.socket)
        with Path(os.devnull).open("r+b") as null:
            socket.send_fds(connection, [b"."], streams or [null.fileno()] * 3)
        connection.sendall(json.dumps(request).encode() + b"\n")
        return Fork(connection)

    def run(
        self, module: str, arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -m module`` to its end."""
        with (
            Path(os.devnull).open("rb") as null,
            tempfile.TemporaryFile("w+", dir="/tmp", encoding="utf-8") as out,
            tempfile.TemporaryFile("w+", dir="/tmp", encoding="utf-8") as err,
        ):
            fork = self.popen(module, arguments, cwd, environ, [each.fileno() for each in (null, out, err)])
            code = fork.wait(timeout)
            for each in (out, err):
                each.seek(0)
            return subprocess.CompletedProcess([], code, out.read(), err.read())


class Fork:
    """A process that was forked. ``pid`` is its number, and that of its group."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = self._number()
        self.returncode: int | None = None
        self.stdin: BinaryIO | None = None
        self.stdout: BinaryIO | None = None

    def running(self) -> bool:
        """Whether it has not ended. No other process gets its number before ``wait``."""
        return self.returncode is None and not select.select([self._connection], [], [], 0)[0]

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code, which is negative after a signal."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = self._number()
            except BaseException:
                os.killpg(self.pid, signal.SIGKILL)
                raise
            finally:
                self._connection.close()
        return self.returncode

    def _number(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            line += (more := self._connection.recv(1))
            assert more, "the server of forks has ended"
        return int(line)


WORKERS = Forks(TORCH)
COMMANDS = Forks((*TORCH, *BUILDS), WORKERS)
_PLACES = (Path(__file__).parents[2], Path(__file__).parents[1])


def run_worker(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Take the place of ``processes.run`` in ``cpupack.workers.client``."""
    from cpupack.runtime.host import processes

    module, place, also, *arguments = command[4:]
    own = str(_PLACES[0] / "cpupack")
    if options or also or place != own or list(command[:3]) != processes.module_command(module)[:3]:
        return processes.run(command, **options)
    if not WORKERS.fits(os.environ):
        return processes.run(command)
    return WORKERS.run(module, arguments, Path.cwd(), os.environ)


def start_peer(command: Sequence[str], **options: Any) -> Any:
    """Take the place of ``subprocess.Popen`` in ``cpupack.peers.process``: an engine of ``compare``."""
    module, place, also, *arguments = command[4:]
    if place != str(_PLACES[0] / "cpupack") or not WORKERS.fits(options["env"]):
        return subprocess.Popen(command, **options)
    (given, stdin), (stdout, answers) = os.pipe(), os.pipe()
    streams = (given, answers, options["stderr"].fileno())
    fork = WORKERS.popen(module, arguments, options["cwd"], options["env"], streams, also.split(os.pathsep))
    os.close(given)
    os.close(answers)
    fork.stdin, fork.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
    return fork


def use(patch: Callable[[str, object], object]) -> None:
    """Have the builds and comparisons of this process fork. ``patch`` sets what a name like ``json.loads`` means."""
    patch("cpupack.workers.client.run", run_worker)
    patch("cpupack.peers.process.subprocess", SimpleNamespace(Popen=start_peer, PIPE=subprocess.PIPE))


def run_command(
    arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m cpupack``: a fork, or a fresh interpreter where the variables matter to it."""
    if COMMANDS.fits(environ):
        return COMMANDS.run("cpupack", arguments, cwd, environ, timeout)
    return subprocess.run(
        [sys.executable, "-m", "cpupack", *arguments],
        cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


def _lasting(environ: Mapping[str, str]) -> dict[str, str]:
    # Which packages are found through PYTHONPATH: the same, as far as the checkout goes.
    kept = {name: value for name, value in environ.items() if name not in (*_SEEN_LATER, "PYTHONPATH")}
    places = filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))
    return kept | {"PYTHONPATH": os.pathsep.join(each for each in places if each not in map(str, _PLACES))}


# --- the server


def _serve(path: str, modules: Sequence[str]) -> None:
    """Import ``modules``, then fork for whoever connects, until the one that started this has ended."""
    for module in modules:
        import_module(module)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those between are not waited for
    os.write(1, b".")
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _between(connection)
        connection.close()


def _between(connection: socket.socket) -> None:
    """Fork again, say the number, wait, say the exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _end_with_parent()
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    child = os.fork()
    if child == 0:
        connection.close()
        _run(request, streams)
    for each in streams:
        os.close(each)
    os.setpgid(child, child)
    connection.sendall(b"%d\n" % child)
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more
        connection.sendall(b"%d\n" % code)
        connection.recv(1)  # until it is read, no other process gets the number
    os._exit(0)


def _run(request: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Be ``python -m module``, from here to the end of the process."""
    import runpy

    _end_with_parent()
    os.setpgid(0, 0)
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    if request["workers"] is not None:
        _use_workers(request["workers"])
    sys.path += filter(None, request["also"])
    sys.argv[1:] = request["arguments"]
    code = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter: it shows what ends it
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _use_workers(path: str) -> None:
    WORKERS.socket, WORKERS._environ = path, dict(os.environ)
    use(lambda name, value: setattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2], value))


def _end_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _end_with_parent()
    del sys.path[0]  # tests/helpers
    _serve(sys.argv[1], sys.argv[2:])
