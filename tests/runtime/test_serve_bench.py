"""``bench --server``: an open-loop client in a process of its own, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cpupack.runtime.bench.options import BenchOptions
from cpupack.runtime.bench.server import Load
from cpupack.runtime.errors import InputError
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.serve.alarm import Alarm
from cpupack.runtime.serve.load_client import FAILED, OK, REFUSED, HttpDoor, Outcome, offer
from cpupack.runtime.serve.remote_bench import format_table, judge, parse_url
from helpers.served import Served, serving


@pytest.fixture(scope="session")
def package_dir(native_package_dir: Path) -> Path:
    """A package whose processes start without torch. ``test_serve_http.py`` has one with it."""
    return native_package_dir


@pytest.fixture(scope="module")
def server(package_dir: Path) -> Iterator[Served]:
    with serving(package_dir, "--grpc-port", "0") as served:
        yield served


def bench(package_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", package_dir.name, "bench", *options]
    return subprocess.run(command, cwd=package_dir.parent, env=os.environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_every_request_of_the_schedule_is_accounted_for(package_dir: Path, server: Served, protocol: str) -> None:
    port = server.port if protocol == "http" else server.grpc_port
    url = f"{protocol}://127.0.0.1:{port}"
    done = bench(package_dir, "--server", url, "--rate", "40", "--duration", "2", "--max-latency-ms", "60000", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answered"] + found["refused"] + found["failed"] == found["requests"] > 0
    assert (found["failed"], found["passed"], found["body"]) == (0, True, "tensors of 768 bytes")
    assert found["client"]["cpu_s"] > 0
    assert found["valid"] is False  # 80 requests are too few for a p99
    assert any("a p99 needs 459" in reason for reason in found["invalid_reasons"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--server", "ftp://x", "--rate", "1"], "expected http://HOST:PORT or grpc://HOST:PORT"),
        (["--server", "http://me:secret@x", "--rate", "1"], "--server: a server takes no user and no password"),
        (["--server", "http://x"], "needs --rate PER_SECOND"),
        (["--server", "http://x", "--rate", "1", "--threads", "2"], "--threads is the server's own setting"),
        (["--server", "http://x", "--rate", "1", "--html", "a.html"], "--html is not for --server"),
        (["--server", "http://x", "--rate", "1", "--ca", "a.pem"], "--ca a.pem is for https:// and grpcs://"),
        (["--token-file", "token"], "--token-file is for --server"),
        (["--server", "http://x", "--rate", "1", "--token-file", "none"], "--token-file none: "),
        (["--server", "http://127.0.0.1:1", "--rate", "1"], "cannot connect to 127.0.0.1:1"),
    ],
)
def test_what_makes_no_sense_is_refused(package_dir: Path, options: list[str], words: str) -> None:
    done = bench(package_dir, *options)
    assert done.returncode in {2, 3}
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_url_names_protocol_host_and_port() -> None:
    assert str(parse_url("http://localhost")) == "http://localhost:8000"
    assert str(parse_url("grpc://localhost/")) == "grpc://localhost:8001"
    assert str(parse_url("https://models.example:443")) == "https://models.example:443"
    assert str(parse_url("grpcs://localhost")) == "grpcs://localhost:8001"
    for wrong in ("http://localhost:1/v2", "httpss://localhost", "https://", "s://localhost"):
        with pytest.raises(InputError, match="expected http"):
            parse_url(wrong)


class Scripted:
    """A door that answers, refuses and fails in turn."""

    def __init__(self, *, awaits_futures_only: bool) -> None:
        self.awaits_futures_only = awaits_futures_only

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, number: int) -> tuple[int, str]:
        if number % 3 == 2:
            raise EOFError
        return (OK, "") if number % 3 == 0 else (REFUSED, "")


@pytest.mark.parametrize("at_once", [True, False])
def test_latency_counts_from_the_schedule_and_failures_are_told(at_once: bool) -> None:
    due_s = np.linspace(0.0, 0.05, 9)
    found = asyncio.run(offer(Scripted(awaits_futures_only=at_once), due_s))
    assert found.state.tolist() == [OK, REFUSED, FAILED] * 3
    assert found.errors == {"EOFError": 3}
    assert (found.sent_s >= due_s).all()
    assert (found.end_s >= found.sent_s).all()


class Impostor:
    """A server that answers what it is told to, whatever it is asked, and closes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    async def __aenter__(self) -> HttpDoor:
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return HttpDoor("127.0.0.1", self.server.sockets[0].getsockname()[1], "/", [b"x"], [])

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(self.answer)
        await writer.drain()
        writer.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "the server closed the connection"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "the answer is no HTTP"),  # what a server with TLS says
        (b'HTTP/1.1 401 Unauthorized\r\nContent-Length: 18\r\n\r\n{"error": "hello"}', "status 401: hello"),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "status 503"),  # of a proxy, not the server
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 1\r\n\r\n<", "status 502"),
    ],
)
def test_what_another_server_answers_is_told(answer: bytes, error: str) -> None:
    async def run() -> Outcome:
        async with Impostor(answer) as door:
            found = await offer(door, np.zeros(2))
            await door.close()
            return found

    found = asyncio.run(run())
    assert (found.state.tolist(), found.errors) == ([FAILED, FAILED], {error: 2})


def test_a_server_that_fails_some_does_not_pass(package_dir: Path) -> None:
    """One that died after a second passed, by the few that it had answered in time."""
    target, manifest = parse_url("http://127.0.0.1:1"), read_manifest(package_dir)
    options, load = BenchOptions("server", rate_per_s=100.0, max_latency_ms=1000.0), Load(100.0, 6.0, 0)
    found = Outcome.of(load.arrivals_s())
    found.sent_s[:] = found.end_s[:] = found.due_s
    found.state[:] = OK
    for passed in (True, False):
        judged = judge(target, manifest, options, load, found, "tensors", 0.1, 6.0)
        assert (judged["passed"], judged["failed"]) == (passed, 0 if passed else 1)
        found.state[-1] = FAILED
    assert "  FAIL       p99 of what was answered against 1000 ms, and no request may fail;" in format_table(judged)


def test_an_alarm_rings_once_and_never_too_early() -> None:
    async def run() -> list[tuple[float, float]]:
        rung: list[tuple[float, float]] = []
        due_s = [time.monotonic() - 1.0, *(time.monotonic() + after_s for after_s in (0.0, 0.0001, 0.01, 0.0103))]
        over = asyncio.Event()

        def ring() -> None:
            rung.append((due_s[len(rung)], time.monotonic()))
            if len(rung) < len(due_s):
                alarm.set(due_s[len(rung)])
            else:
                over.set()

        alarm = Alarm(asyncio.get_running_loop(), ring)
        alarm.set(due_s[0])
        await over.wait()
        alarm.set(time.monotonic())
        alarm.close()
        alarm.close()
        await asyncio.sleep(0.01)
        return rung

    rung = asyncio.run(run())
    assert len(rung) == 5
    assert all(due_s <= at_s for due_s, at_s in rung)
