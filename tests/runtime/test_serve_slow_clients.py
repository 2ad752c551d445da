"""What clients hold of a server's memory: bodies that arrive, answers that are not read, many requests at once."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from cpupack.runtime.serve import connection as connection_module
from cpupack.runtime.serve import connections as connections_module
from cpupack.runtime.serve.connection import Connection
from cpupack.runtime.serve.messages import HttpAnswer, HttpRequest
from helpers.wire import (
    NO_BODY,
    REFUSED,
    SIMPLE,
    Wire,
    bodies,
    echo,
    echo_later,
    receive,
    shared,
    talk,
)


def test_a_client_that_reads_no_answer_gets_no_further_one() -> None:
    """Of a client that asked and never read, each answer stayed in the server's memory, without a bound."""

    connections = shared(echo)
    connection = Connection(connections)

    class Full(Wire):
        """Takes one answer, and says that the client has not read it."""

        reading = True

        def write(self, data: Any) -> None:
            super().write(data)
            connection.pause_writing()

        def pause_reading(self) -> None:
            self.reading = False

        def resume_reading(self) -> None:
            self.reading = True

    async def run() -> None:
        wire = Full()
        connection.connection_made(wire)
        receive(connection, NO_BODY + REFUSED + SIMPLE, 1000)
        for answers in ([b"/b "], [b"/b ", b"refused"], [b"/b ", b"refused", b"/a hello"]):
            assert bodies(wire.written) == answers
            assert not wire.reading
            connection.resume_writing()
        assert wire.reading
        assert connections.idle
        assert not connections.held.used

    asyncio.run(run())


class Clients:
    """Connections of clients that share a bound of 100 kB on what they send."""

    def __init__(self, *, most: int = 100_000, connections: int = 10) -> None:
        self.shared = shared(echo, all_bytes=most, connections=connections)
        self.shared.limits = dataclasses.replace(self.shared.limits, request_s=5.0)

    def connect(self) -> tuple[Connection, Wire]:
        connection, wire = Connection(self.shared), Wire()
        wire.on_abort = lambda: connection.connection_lost(None)
        connection.connection_made(wire)
        return connection, wire

    def send(self, length: int, here: int) -> tuple[Connection, Wire]:
        """Connect a client that announces ``length`` bytes and sends ``here`` of them."""
        connection, wire = self.connect()
        receive(connection, b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length, 1000)
        receive(connection, bytes(here), 1000)
        return connection, wire


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the clock of connections go on by ``seconds``, and not that of the process, by which the loop's timers go."""
    now_s = connection_module.time.monotonic() + seconds
    for module in (connection_module, connections_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s))


def test_a_body_holds_what_is_there_of_it_and_not_what_is_announced() -> None:
    async def run() -> None:
        clients = Clients()
        for _ in range(5):
            clients.send(90_000, 0)
        assert clients.shared.held.used == 0
        _, wire = clients.send(90_000, 90_000)
        assert bodies(wire.written) == [b"/a " + bytes(90_000)]
        assert clients.shared.held.used == 0
        _, wire = clients.send(99_000, 70_000)
        assert clients.shared.held.used == 99_000
        _, wire = clients.send(2000, 0)
        assert bodies(wire.written) == [b"full"]

    asyncio.run(run())


def test_a_body_that_has_no_room_in_its_midst_is_refused_and_the_next_request_is_read() -> None:
    async def run() -> None:
        clients = Clients()
        other, _ = clients.send(90_000, 40_000)
        connection, wire = clients.send(30_000, 0)
        receive(other, bytes(30_000), 1000)
        assert (clients.shared.held.used, bodies(wire.written)) == (90_000, [])
        receive(connection, bytes(500), 500)
        assert bodies(wire.written) == [b"full"]
        receive(connection, bytes(29_500) + NO_BODY, 999)
        assert bodies(wire.written) == [b"full", b"/b "]
        assert clients.shared.held.used == 90_000

    asyncio.run(run())


def test_who_sends_slowly_gives_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        clients = Clients()
        slow, slow_wire = clients.send(90_000, 89_000)
        _, wire = clients.send(30_000, 30_000)
        assert bodies(wire.written) == [b"full"]
        later(monkeypatch, 0.9)
        clients.shared.sweep()
        _, wire = clients.send(30_000, 30_000)
        assert bodies(wire.written) == [b"full"]
        later(monkeypatch, 0.15)
        clients.shared.sweep()
        _, wire = clients.send(30_000, 30_000)
        assert (bodies(wire.written), bodies(slow_wire.written)) == ([b"/a " + bytes(30_000)], [b"full"])
        receive(slow, bytes(1000) + NO_BODY, 777)
        assert bodies(slow_wire.written) == [b"full", b"/b "]
        assert clients.shared.held.used == 0

    asyncio.run(run())


def test_who_does_not_read_holds_memory_and_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        clients = Clients()
        connection, wire = clients.send(5, 5)
        wire.unread = 80_000
        connection.pause_writing()
        assert clients.shared.held.used == 80_000
        _, full = clients.send(30_000, 30_000)
        assert bodies(full.written) == [b"full"]
        later(monkeypatch, 1.1)
        clients.shared.sweep()
        _, answered = clients.send(30_000, 30_000)
        assert (bodies(answered.written), wire.closed) == ([b"/a " + bytes(30_000)], True)
        assert clients.shared.held.used == 0

    asyncio.run(run())


def test_a_new_connection_may_take_the_place_of_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        clients = Clients(connections=2)
        wires = [clients.send(1000, 10)[1], clients.send(1000, 10)[1]]
        _, refused = clients.connect()
        assert b"too many connections" in refused.written
        later(monkeypatch, 1.1)
        clients.shared.sweep()
        clients.connect()
        assert [wire.closed for wire in wires] == [True, False]

    asyncio.run(run())


def test_many_answers_that_are_there_at_once_follow_one_that_takes_time() -> None:
    """Each called the next one from within itself: the 250th went deeper than Python goes."""

    async def first_later(request: HttpRequest) -> HttpAnswer:
        return await (echo_later if request.path == "/a" else echo)(request)

    assert bodies(talk(SIMPLE + NO_BODY * 1000, 2**18, first_later).written) == [b"/a hello", *[b"/b "] * 1000]


@pytest.mark.parametrize("end", [b"\x00\r\n\r\n", SIMPLE.replace(b"Host", b"Expect: 100-continue\r\nHost")])
def test_what_came_before_the_end_is_answered_and_its_memory_is_free(end: bytes) -> None:
    """Requests that waited for one before them were dropped, and their bodies counted for ever."""
    refused = end.replace(b"/a", b"/refused")
    wire = talk(SIMPLE * 3 + refused, 1000, echo_later)
    assert bodies(wire.written)[:3] == [b"/a hello"] * 3
    assert len(bodies(wire.written)) == 4
    assert wire.closed


def test_a_client_with_thousands_of_requests_takes_turns_with_others() -> None:
    """All that one read had brought was answered in one turn of the loop: others waited for seconds."""

    async def run() -> None:
        wire = Wire()
        connection = Connection(shared(echo))
        connection.connection_made(wire)
        receive(connection, (NO_BODY + REFUSED) * 200, 2**18)
        most = len(bodies(wire.written))
        assert most < 100
        for _ in range(400 // most):
            await asyncio.sleep(0)
        assert bodies(wire.written) == [b"/b ", b"refused"] * 200

    asyncio.run(run())
