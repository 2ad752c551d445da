"""The life of a server: start, promise, reload, signals, and what goes wrong around it."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime.errors import HostError
from cpupack.runtime.serve.grpc_service import open_door
from cpupack.runtime.serve.held import Held
from cpupack.runtime.serve.keys import Keys
from cpupack.runtime.serve.lifecycle import Server
from cpupack.runtime.serve.metrics import Metrics
from cpupack.runtime.serve.options import ServeOptions
from cpupack.runtime.serve.service import Service, State
from helpers.other_code import with_other_code
from helpers.served import PHOTO, Served, run_serve, serving
from helpers.tiny_package import keep_manifest
from helpers.waiting import PATIENCE_S, wait_until

MODEL = "tiny-int8"
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="session")
def package_dir(native_package_dir: Path) -> Path:
    """A package whose processes start without torch. ``test_serve_http.py`` has one with it."""
    return native_package_dir


class Load:
    """Clients that send photos one after the other until they are stopped, and count what they get."""

    def __init__(self, served: Served, clients: int = 4, **headers: str) -> None:
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.broken: list[Exception] = []
        self._served, self._headers, self._stop = served, headers, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self._served.port, timeout=PATIENCE_S)
        ) as connection:
            self._ask(connection)

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        while not self._stop.is_set():
            try:
                connection.request("POST", "/predict?top_k=1", PHOTO, self._headers)
                answer = connection.getresponse()
                self.bodies.append(answer.read())
                self.statuses.append(answer.status)
                if answer.getheader("connection") == "close":
                    connection.close()
            except ConnectionRefusedError:  # the doors are closed: nothing was accepted
                return
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(error)
                return

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_stop_under_load_loses_no_request_that_was_taken(package_dir: Path) -> None:
    with serving(package_dir) as served:
        load = Load(served)
        wait_until(lambda: len(load.statuses) > 50)
        code = served.stop()
        load.stop()
        assert (code, "every admitted request was answered" in served.said) == (0, True), served.said
        assert set(load.statuses) <= {200, 503}
        # What was on its way to the socket when the doors closed was never taken; it may be cut off.
        assert all(isinstance(error, ConnectionError) for error in load.broken), load.broken
        assert served.process.returncode == 0


def test_in_the_grace_period_it_serves_and_says_that_it_is_not_ready(package_dir: Path) -> None:
    with serving(package_dir, "--grace", "600") as served:
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: served.get("/v2/health/ready").status == 503)
        assert served.get("/v2/health/ready").json() == {"ready": False}
        assert served.get("/v2/health/live").status == 200
        assert served.ask("POST", "/predict", PHOTO).status == 200
        assert served.stop() == 0  # a second signal ends the grace period


def test_a_reload_takes_another_version_without_a_lost_request(edited: Callable[..., Path], package_dir: Path) -> None:
    copy = edited()
    with serving(copy) as served:
        load = Load(served)
        wait_until(lambda: len(load.statuses) > 20)
        keep_manifest(copy, dataclasses.replace(with_other_code(copy), version="2.0.0"))
        served.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served.metric('cpupack_reloads_total{outcome="done"}') == 1)
        count = len(load.statuses)
        wait_until(lambda: len(load.statuses) > count + 20)
        load.stop()
        assert (set(load.statuses), load.broken) == ({200}, [])
        versions = [json.loads(body)["version"] for body in load.bodies]
        assert {versions[0], versions[-1]} == {"1.0.0", "2.0.0"}
        assert served.get(f"/v2/models/{MODEL}").json()["versions"] == ["2.0.0"]
        # The errors of the new copy of the code are still the client's.
        assert served.ask("POST", "/predict", b"no image").status == 400

        (copy / "labels.txt").write_text("damaged")
        served.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served.metric('cpupack_reloads_total{outcome="failed"}') == 1)
        assert served.ask("POST", "/predict", PHOTO).status == 200
        assert "labels.txt is not the file that was built" in served.said


def test_a_reload_that_is_asked_for_too_early_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server starts, and while it loads already. The token is read at once."""
    token = tmp_path / "token"
    token.write_text("battery-staple")
    said: list[str] = []
    reloads: list[asyncio.Event] = []

    async def run() -> None:
        server = Server(tmp_path, ServeOptions(token="correct-horse", token_file=token), said.append)

        async def reload() -> None:
            reloads.append(asyncio.Event())
            await reloads[-1].wait()

        monkeypatch.setattr(server, "_reload", reload)
        server._ask_to_reload()
        await asyncio.sleep(0)
        assert reloads == []
        server.service.state = State.READY
        server._reload_if_asked()
        await asyncio.sleep(0)
        assert len(reloads) == 1
        token.write_text("short")
        for _ in range(3):
            server._ask_to_reload()
        for number in (1, 2):
            assert len(reloads) == number
            reloads[-1].set()
            await asyncio.sleep(0.01)
        assert (len(reloads), server._reloading) == (2, None)
        server.app.close()
        server._loader.close()

    asyncio.run(run())
    assert said[0] == "read again: the token is a new one"
    assert said[1] == "the model will be loaded again as soon as the server is ready"
    assert said[2:] == ["a reload is under way already; another one follows"] * 3
    assert [each.getMessage() for each in caplog.records] == [
        "SIGHUP: the token before is kept: --token-file: the token must be at least 8 printable ASCII characters"
    ] * 3


def test_liveness_is_true_before_the_model_is_loaded_and_a_stop_then_is_clean(package_dir: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(package_dir, "--port", str(port), wait=False) as served:
        served.port = port

        def alive() -> bool:
            try:
                return served.get("/v2/health/live").status == 200
            except OSError:
                return False

        wait_until(alive)
        assert served.get("/v2/health/ready").status in {200, 503}
        assert served.ask("POST", "/predict", PHOTO).status in {200, 503}
        assert served.stop() == 0


@pytest.mark.parametrize("allowed", range(3))
def test_each_thread_that_is_refused_is_said_before_a_door_is_open(
    package_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: int
) -> None:
    """Of the log, of the loader, of the parser of JSON. The last was started by the first large request."""
    started: list[object] = []
    real = _thread.start_new_thread

    def refuse(*arguments: Any) -> int:
        if len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(arguments)
        return real(*arguments)

    async def run() -> None:
        Server(package_dir, ServeOptions(port=0, access_log=str(tmp_path / "log")), print)

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    with pytest.raises(HostError, match="refuses to start another thread"):
        asyncio.run(run())


def test_grpc_is_not_begun_where_its_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library ends the process with SIGABRT then."""
    started: list[object] = []
    real = _thread.start_new_thread

    def refuse_the_third(*arguments: Any) -> int:
        started.append(arguments)
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        return real(*arguments)

    async def run() -> None:
        options = ServeOptions(grpc_port=0)
        await open_door(Service(Metrics(), None), options, Keys(options), Held(2**24), None)

    monkeypatch.setattr(_thread, "start_new_thread", refuse_the_third)
    with pytest.raises(HostError, match="refuses to start another thread"):
        asyncio.run(run())
    assert len(started) == 3


def test_a_port_that_is_taken(package_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options in (["--port", port], ["--port", "0", "--grpc-port", port]):
            found = run_serve(package_dir, *options)
            assert found.returncode == 2, found.stderr
            assert f"127.0.0.1:{port}" in found.stderr
            assert "choose another" in found.stderr
            assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-latency-ms", "0.5"], 3, "0.5 ms cannot be held here: one request takes"),
        (["--plan"], 2, "--plan needs --max-latency-ms"),
        (["--port", "70000"], 2, "expected a port"),
        (["--port", "9", "--grpc-port", "9"], 2, "HTTP has this port"),
        (["--tls-cert", "c.pem"], 2, "go together"),
        (["--token-file", "/proc/nonexistent"], 2, "--token-file /proc/nonexistent"),
        (["--host", "no.such.host.invalid"], 2, "--host no.such.host.invalid"),
        (["--host", "192.0.2.1"], 2, "choose another --host"),  # an address for documentation, which no host has
        (["--access-log", "/proc/nonexistent/log"], 2, "--access-log /proc/nonexistent/log"),
        (["--drain", "-1"], 2, "--drain -1"),
        (["--emit", "compose", "--token-file", "t"], 2, "--token-file t"),
        (["--emit", "systemd", "--access-log", "x.log"], 2, "name /var/log/tiny-int8/access.log, or - for the journal"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_served(
    package_dir: Path, options: list[str], code: int, words: str
) -> None:
    port = () if "--port" in options else ("--port", "0")
    found = run_serve(package_dir, *port, *options)
    assert (found.returncode, words in found.stderr) == (code, True), found.stderr
    assert "Traceback" not in found.stderr


def test_a_missing_extra_is_named(package_dir: Path) -> None:
    hide = f"import sys; sys.modules['httptools'] = None; sys.path.insert(0, {str(package_dir.parent)!r}); "
    code = hide + f"import {package_dir.name}._entry as e; sys.argv = ['x', 'serve']; sys.exit(e.main())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 3
    assert "pip install 'tiny-int8[serve]'" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_plan_says_what_the_host_carries(package_dir: Path) -> None:
    found = run_serve(package_dir, "--plan", "--max-latency-ms", "10000", "--json")
    assert found.returncode == 0, found.stderr
    plan = json.loads(found.stdout)
    assert set(plan["carries"]) == {"tensors", "images"}
    assert plan["carries"]["tensors"]["rate_per_s"] >= plan["carries"]["images"]["rate_per_s"] > 0
    assert run_serve(package_dir, "--plan", "--max-latency-ms", "10000").stdout.startswith(
        "a promise of 10000 ms on this host"
    )


def test_a_request_that_cannot_be_answered_in_time_is_refused_with_all_that_a_client_needs(package_dir: Path) -> None:
    with serving(package_dir, "--shed-status", "503", "--max-latency-ms", "10000") as served:
        answer = served.ask("POST", "/predict", PHOTO, {"X-Deadline-Ms": "0.01"})
        assert answer.status == 503
        assert (answer.headers["x-refused"], answer.headers["retry-after"]) == ("deadline", "1")
        assert float(answer.headers["x-retry-after-ms"]) >= 1
        assert "could not be answered by its deadline" in answer.json()["error"]
        assert served.metric('cpupack_refused_total{reason="deadline"}') == 1
        assert served.metric('cpupack_requests_total{route="predict",code="503"}') == 1
        assert served.ask("POST", "/predict", PHOTO, {"X-Priority": "high"}).status == 200
        assert served.metric("cpupack_promise_kept_total") + served.metric("cpupack_promise_broken_total") == 1
        assert served.metric("cpupack_promise_seconds") == 10


def test_more_load_than_it_carries_is_refused_and_health_still_answers(package_dir: Path) -> None:
    with serving(package_dir, "--max-queue", "2", "--instances", "1", "--batch-size", "1") as served:
        load = Load(served, 16)
        wait_until(lambda: 429 in load.statuses and load.statuses.count(200) > 20)
        assert served.get("/v2/health/live").status == 200
        load.stop()
        assert (set(load.statuses), load.broken) == ({200, 429}, [])
        assert served.metric('cpupack_refused_total{reason="queue"}') == load.statuses.count(429)
        wait_until(lambda: served.metric("cpupack_held_bytes") == 0)


def test_the_access_log_has_a_line_for_each_request_with_its_trace(package_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with serving(package_dir, "--access-log", str(log)) as served:
        served.ask("POST", "/predict", PHOTO, {"traceparent": f"00-{trace}-{span}-01"})
        served.ask("POST", "/predict", PHOTO, {"X-Deadline-Ms": "0.01"})
        log.rename(tmp_path / "old.log")  # as logrotate does
        served.process.send_signal(signal.SIGHUP)
        wait_until(log.exists)
        served.get("/nothing")
        assert served.stop() == 0
    first, second = map(json.loads, (tmp_path / "old.log").read_text().splitlines())
    assert (first["status"], first["path"], first["trace_id"], first["parent_id"]) == (200, "/predict", trace, span)
    assert first["batch"] == 1
    assert first["duration_ms"] >= first["compute_ms"] > 0
    assert (second["status"], second["refused"]) == (429, "deadline")
    assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [404]


def test_a_full_disk_costs_log_lines_and_nothing_else(package_dir: Path) -> None:
    with serving(package_dir, "--access-log", "/dev/full") as served:
        for _ in range(3):
            assert served.ask("POST", "/predict", PHOTO).status == 200
        wait_until(lambda: served.metric("cpupack_access_log_lost_total") >= 3)


def test_idle_connections_give_way_to_new_ones(package_dir: Path) -> None:
    with serving(package_dir, "--max-connections", "100") as served, contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S))
        assert served.ask("POST", "/predict", PHOTO).status == 200
        assert served.metric("cpupack_connections") <= 101


def test_bodies_that_arrive_together_are_bounded(package_dir: Path) -> None:
    """Not only what is admitted: what clients have sent of a body counts. What they announce alone does not."""
    with (
        serving(package_dir, "--max-queue-mb", "2", "--client-timeout", "3") as served,
        contextlib.ExitStack() as stack,
    ):
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % 2**20

        def clients(count: int) -> list[socket.socket]:
            found = [socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) for _ in range(count)]
            return [stack.enter_context(one) for one in found]

        silent = clients(5)
        for one in silent:
            one.sendall(head)
        assert served.ask("POST", "/predict", PHOTO).status == 200
        assert served.metric("cpupack_body_bytes") == 0
        sending = clients(5)
        for one in sending:
            one.sendall(head + bytes(900_000))
        statuses = sorted(one.recv(100).split(b" ")[1] for one in (*silent, *sending))
        assert statuses == [b"408"] * 7 + [b"429"] * 3
        wait_until(lambda: served.metric("cpupack_body_bytes") == 0)
        assert served.ask("POST", "/predict", PHOTO).status == 200


@pytest.mark.parametrize("takes", ["images", "arrays"])
def test_the_openapi_document_describes_what_the_server_does(
    package_dir: Path, array_package_dir: Path, takes: str, tmp_path: Path
) -> None:
    """With every check, also that what fits is accepted, what does not is refused, and other methods get 405."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    samples = {} if takes == "images" else {"SAMPLE_SHAPE": "3,16,16"}
    with serving(package_dir if takes == "images" else array_package_dir) as served:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{served.port}/openapi.json",
             "--max-examples", "15", "--seed", "1", "--no-color", "--suppress-health-check", "all"],
            capture_output=True, text=True, check=False, timeout=PATIENCE_S,
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(HELPERS), **samples},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
