"""What happens around a server and must not reach its clients: clocks that jump, pauses, thousands of idle clients."""

from __future__ import annotations

import contextlib
import errno
import http.client
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_serve_lifecycle import PHOTO, Load

from cpupack.runtime.serve.metrics import Metrics
from helpers.served import serving
from helpers.waiting import PATIENCE_S, wait_until

JUMPS = """\
import time
_real, _calls = time.time, 0
def jumping():
    global _calls
    _calls += 1
    return _real() + (86_400.0 if _calls % 2 else -86_400.0)
time.time = jumping
"""
"""Code that Python runs at its start: the wall clock then goes a day forward or back at each look."""


@pytest.fixture(scope="session")
def package_dir(native_package_dir: Path) -> Path:
    """A package whose processes start without torch. ``test_serve_http.py`` has one with it."""
    return native_package_dir


@contextlib.contextmanager
def open_files(wanted: int) -> Iterator[int]:
    """Raise this process's limit of open files meanwhile, and give how many there may be."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(found, soft), hard))
    try:
        yield found
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_wall_clock_that_jumps_changes_no_answer_and_no_deadline(
    package_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with serving(package_dir, "--max-latency-ms", "600000") as served:
        for _ in range(20):
            assert served.ask("POST", "/predict", PHOTO).status == 200
        started = [served.metric("process_start_time_seconds") for _ in range(2)]
        assert started[0] == started[1]
        assert served.metric("cpupack_promise_kept_total") == 20
        assert served.metric("cpupack_promise_broken_total") == 0
        refused = served.ask("POST", "/predict", PHOTO, {"X-Deadline-Ms": "0.01"})
        assert (refused.status, refused.headers["x-refused"]) == (429, "deadline")
        assert served.stop() == 0
        assert "every admitted request was answered" in served.said


def test_a_server_that_was_paused_answers_or_refuses_all_that_came_meanwhile(package_dir: Path) -> None:
    """As a suspended virtual machine does, or a container that is frozen."""
    with serving(package_dir) as served:
        load = Load(served, 8, **{"X-Deadline-Ms": "600000"})
        wait_until(lambda: len(load.statuses) > 20)
        served.process.send_signal(signal.SIGSTOP)
        sockets = [socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) for _ in range(20)]
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(PHOTO)
        for one in sockets:
            one.sendall(head + PHOTO)
        served.process.send_signal(signal.SIGCONT)
        for one in sockets:
            with one:
                assert one.recv(100).startswith(b"HTTP/1.1 200")
        count = len(load.statuses)
        wait_until(lambda: len(load.statuses) > count + 20)
        load.stop()
        assert (set(load.statuses), load.broken) == ({200}, [])


def test_ten_thousand_idle_connections_disturb_nobody(package_dir: Path) -> None:
    """As many as the host's limit of open files allows, up to 10,000; some have sent half a request."""
    with open_files(12_000) as files, contextlib.ExitStack() as stack:
        count = min(10_000, files - 1_000)
        if count < 100:
            pytest.skip(f"the host allows {files} open files")
        patient = ("--client-timeout", "1200", "--idle-timeout", "1200")
        served = stack.enter_context(serving(package_dir, "--max-connections", str(count + 100), *patient))
        idle = []
        for number in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S))
            if number % 100 == 0:
                one.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n")
            idle.append(one)
        wait_until(lambda: served.metric("cpupack_connections") == count + 1)
        for _ in range(5):
            assert served.ask("POST", "/predict", PHOTO).status == 200
        assert served.get("/v2/health/live").status == 200
        for one in (idle[1], idle[count // 2 + 1], idle[-1]):  # each is as good as a new one
            one.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one.recv(100).startswith(b"HTTP/1.1 200")
        assert served.stop() == 0


def test_clients_that_go_in_the_middle_of_everything_leave_nothing_behind(package_dir: Path) -> None:
    """Some send half a head, some half a body, some all and do not wait; others are served meanwhile."""
    whole = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PHOTO) + PHOTO
    with serving(package_dir) as served:
        load = Load(served, 2)

        def go(cut: int) -> None:
            for _ in range(50):
                with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) as sock:
                    sock.sendall(whole[:cut])

        cuts = (10, len(whole) - len(PHOTO), len(whole) // 2, len(whole) - 1, len(whole))
        threads = [threading.Thread(target=go, args=(cut,)) for cut in cuts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load.stop()
        assert (set(load.statuses), load.broken) == ({200}, [])
        for name in ("queue_requests", "running_requests", "held_bytes", "body_bytes"):
            wait_until(lambda name=name: served.metric(f"cpupack_{name}") == 0)  # type: ignore[misc]
        wait_until(lambda: served.metric("cpupack_connections") == 1)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)) as connection:
            connection.request("POST", "/predict", PHOTO)
            assert connection.getresponse().status == 200


def test_a_host_with_few_open_files_is_named_and_ends_nothing_from_below(package_dir: Path) -> None:
    """libuv ends the process (SIGABRT) where an event loop finds no room for its own files."""
    code = (
        "import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))\n"
        "sys.argv[1:] = ['serve', '--port', '0']\nrunpy.run_module('tiny_int8', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package_dir.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert done.stderr.endswith("and this host allows 6 (ulimit -Hn); raise the limit\n")


def test_the_metrics_are_there_where_no_file_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page was an error of the server just when somebody wanted to know how many files are open."""

    def refused(*_: object, **__: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", refused)
    monkeypatch.setattr(Path, "iterdir", refused)
    text = Metrics().text()
    assert "\nprocess_open_fds " not in text
    assert "\nprocess_cpu_seconds_total " in text
