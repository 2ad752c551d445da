"""A connection reads requests however they are cut, past the parser or through it, and answers them in order."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
from collections.abc import Callable, Coroutine, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from cpupack.runtime.serve import connection as connection_module
from cpupack.runtime.serve import connections as connections_module
from cpupack.runtime.serve.connection import Connection
from cpupack.runtime.serve.connections import ConnectionLimits, Connections
from cpupack.runtime.serve.held import Held
from cpupack.runtime.serve.messages import HttpAnswer, HttpRequest
from cpupack.runtime.serve.reading import Desk, Head

SIMPLE = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
REFUSED = b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n\r\n\r\nGET"
NO_BODY = b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
UPGRADE = b"POST /d HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody"
UPGRADE_ALONE = b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
ALL = SIMPLE + REFUSED + NO_BODY + CHUNKED + UPGRADE + UPGRADE_ALONE + SIMPLE
EXPECTED = [b"/a hello", b"refused", b"/b ", b"/c abcde", b"/d body", b"/e ", b"/a hello"]


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = b"", False
        self.unread = 0
        self.on_abort: Callable[[], None] = lambda: None

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.written += b"".join(list_of_data)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True
        self.on_abort()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Reading goes on: what is in the buffer is there already."""

    def resume_reading(self) -> None:
        """See above."""


def shared(handle: Callable[[HttpRequest], Coroutine[Any, Any, HttpAnswer]], **limits: int) -> Connections:
    def early(request: HttpRequest) -> HttpAnswer | None:
        return HttpAnswer(429, b"refused") if request.path == "/refused" else None

    bounds = {"body_bytes": 2**22, "connections": 10} | limits
    held = Held(bounds.pop("all_bytes", 2**24))
    found = Connections(
        handle, early, lambda _: HttpAnswer(429, b"full"), lambda request, answer: None,
        ConnectionLimits(**bounds, request_s=1.0, idle_s=1.0), held,
    )  # fmt: skip
    found.sweep()
    return found


async def echo(request: HttpRequest) -> HttpAnswer:
    return HttpAnswer(200, request.path.encode() + b" " + request.body)


async def echo_later(request: HttpRequest) -> HttpAnswer:
    await asyncio.sleep(0.001)
    return await echo(request)


def receive(connection: Connection, data: bytes, piece: int) -> None:
    """Hand over ``data`` as a transport does: into the connection's buffer, at most ``piece`` bytes at a time."""
    at = 0
    while at < len(data):
        buffer = connection.get_buffer(-1)
        count = min(piece, len(buffer), len(data) - at)
        buffer[:count] = data[at : at + count]
        buffer.release()
        connection.buffer_updated(count)
        at += count


def bodies(written: bytes) -> list[bytes]:
    """Return the bodies of the answers, in order."""
    found, at = [], 0
    while at < len(written):
        head = written.index(b"\r\n\r\n", at) + 4
        match = re.search(rb"content-length: (\d+)", written[at:head])
        assert match is not None
        at = head + int(match[1])
        found.append(written[head:at])
    return found


def talk(data: bytes, piece: int, handle: Callable[[HttpRequest], Coroutine[Any, Any, HttpAnswer]] = echo) -> Wire:
    async def run() -> Wire:
        connections, wire = shared(handle), Wire()
        connection = Connection(connections)
        connection.connection_made(wire)
        receive(connection, data, piece)
        before = None
        while connections.at_work or before != wire.written:
            before = wire.written
            await asyncio.sleep(0)
        assert connections.held.used == 0
        return wire

    return asyncio.run(run())


@pytest.mark.parametrize("piece", [*range(1, 60), len(ALL)])
def test_pipelined_requests_are_read_however_they_are_cut(piece: int) -> None:
    assert bodies(talk(ALL, piece).written) == EXPECTED


@pytest.mark.parametrize("piece", [1, 7, 50, len(ALL)])
def test_answers_that_take_time_keep_their_order(piece: int) -> None:
    assert bodies(talk(ALL, piece, echo_later).written) == EXPECTED


@pytest.mark.parametrize("size", [2**16 - 1, 2**18, 2**18 + 1, 2**20, 2**20 + 1, 2**21])
def test_large_bodies_arrive_whole(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    request = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body
    assert bodies(talk(request * 2, 100_000).written) == [b"/x " + body] * 2


def test_a_refused_body_may_be_larger_than_what_is_kept() -> None:
    request = b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % 2**22 + bytes(2**22)
    assert bodies(talk(request + SIMPLE, 2**16).written) == [b"refused", b"/a hello"]


def test_a_refusal_is_written_before_the_body_is_there() -> None:
    async def run() -> None:
        wire = Wire()
        connection = Connection(shared(echo))
        connection.connection_made(wire)
        receive(connection, REFUSED[:-7], 1000)
        assert bodies(wire.written) == [b"refused"]
        connection.check(float("inf"))  # the body never comes: no second answer
        assert bodies(wire.written) == [b"refused"]
        assert wire.closed

    asyncio.run(run())


def test_a_chunked_body_beside_an_offer_to_upgrade_is_refused() -> None:
    request = CHUNKED.replace(b"\r\n", b"\r\nConnection: upgrade\r\nUpgrade: h2c\r\n", 1)
    wire = talk(request + SIMPLE, 1000)
    assert wire.written.startswith(b"HTTP/1.1 411 ")
    assert wire.closed


def test_what_fails_after_a_wait_is_an_answer_too() -> None:
    async def fail(request: HttpRequest) -> HttpAnswer:
        await asyncio.sleep(0.001)
        raise ValueError("on purpose")

    written = talk(SIMPLE + NO_BODY, 1000, fail).written
    assert written.startswith(b"HTTP/1.1 500 ")
    assert len(bodies(written)) == 2


def test_a_head_that_is_known_is_read_as_at_the_first_time() -> None:
    """Each message is read alone, by the parser, and then again and again, past it."""
    empty = b"POST /f HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    for message in (SIMPLE, NO_BODY, CHUNKED, UPGRADE, REFUSED, empty):
        once = bodies(talk(message, 1000).written)
        assert len(once) == 1
        assert bodies(talk(message * 4, 1000).written) == once * 4
        assert bodies(talk(message * 4, len(message)).written) == once * 4


def test_a_head_is_known_by_every_byte_of_it() -> None:
    other = SIMPLE.replace(b"/a", b"/z")
    assert bodies(talk(SIMPLE + other + SIMPLE + other, 1000).written) == [b"/a hello", b"/z hello"] * 2


def test_a_head_that_is_known_takes_a_body_of_any_length() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: a\r\ncontent-length:%b\r\nX: y\r\n\r\n"
    messages = [head % b" 5" + b"hello", head % b" 0", head % b" 12" + b"hello, world", head % b" 001" + b"a"]
    assert bodies(talk(b"".join(messages) * 2, 1000).written) == [b"/a hello", b"/a ", b"/a hello, world", b"/a a"] * 2
    large = b"z" * 2_000_000  # it goes the long way
    written = bodies(talk(messages[0] + head % b" 2000000" + large + messages[0], 1000).written)
    assert written == [b"/a hello", b"/a " + large, b"/a hello"]


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length:  5", b"Content-Length: 5 ", b"Content-Length:\t5", b"CONTENT-LENGTH:5",
        b"content-length: 0005", b"X: Content-Length: 3\r\nContent-Length: 5", b"Content-Length: 0000000000000000005",
    ],
)  # fmt: skip
def test_a_body_is_read_however_its_length_is_written(line: bytes) -> None:
    """Once a head with two blanks before the length was known as one without a body."""
    message = b"POST /a HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\nhello"
    once = bodies(talk(message, 1).written)
    assert once == [b"/a hello"]
    assert bodies(talk(message * 4, 1000).written) == once * 4


def test_a_head_means_the_same_whoever_reads_it() -> None:
    """Heads in many spellings, each four times: in one piece, past the parser where it is known, and byte by byte."""

    def dated(wire: Wire) -> tuple[bytes, bool]:
        return re.sub(rb"date: [^\r]*\r\n", b"", wire.written), wire.closed

    names = (b"Content-Length", b"CONTENT-length", b"X-Content-Length", b"Content-Length ", b" Content-Length")
    values = (b"5", b"05", b" 5 ", b"\t5", b"+5", b"-5", b"5,5", b"", b"1e1", b"0x5", b"9" * 20, b"5\x00", b"5\r\n 5")
    for name, value in itertools.product(names, values):
        message = b"POST /a HTTP/1.1\r\nHost: a\r\n%b:%b\r\n\r\nhello" % (name, value)
        assert dated(talk(message * 4, 1000)) == dated(talk(message * 4, 1)), message


def test_blanks_around_a_header_s_value_are_not_part_of_it() -> None:
    async def headers(request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(200, b"|".join([request.headers[name] for name in (b"x-a", b"x-b", b"x-c")]))

    message = b"GET /a HTTP/1.1\r\nHost: a\r\nX-A: \t a b \t \r\nX-B:\r\nx-c: 1 \r\nX-C: 2\t\r\n\r\n"
    for piece in (1, 1000):
        assert bodies(talk(message * 2, piece, headers).written) == [b"a b||1, 2"] * 2


def test_a_client_of_http_1_0_is_never_told_to_continue() -> None:
    """It would take that for the answer."""
    message = b"POST /a HTTP/1.%d\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
    for piece in (1, 1000):
        assert talk(message % 1, piece).written.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert talk(message % 0, piece).written.startswith(b"HTTP/1.1 200 OK\r\n")


def test_who_begins_with_http_2_is_told_what_is_spoken_here() -> None:
    written = talk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1000).written
    assert bodies(written) == [
        b'{"error": "this is not HTTP/1.1: it is HTTP/2; gRPC has a port of its own, --grpc-port"}'
    ]


def test_nothing_is_answered_after_the_last_answer() -> None:
    last = SIMPLE.replace(b"HTTP/1.1", b"HTTP/1.0")
    wire = talk(last + SIMPLE, 1000)
    assert bodies(wire.written) == [b"/a hello"]
    assert wire.closed


@pytest.mark.parametrize("length", [b"", b" ", b" -5", b" 5, 6", b" 5 6", b" 0x5", b" \x00"])
def test_a_length_that_is_no_number_is_refused_also_in_a_head_that_is_known(length: bytes) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length:%b\r\n\r\n"
    wire = talk(head % b" 5" + b"hello" + head % length + b"hello", 1000)
    assert wire.written.count(b"HTTP/1.1 200") == 1
    assert wire.written.count(b"HTTP/1.1 400") == 1
    assert wire.closed


def test_two_requests_that_look_like_one_head_are_never_known_as_one() -> None:
    """Lines that end without a carriage return may be two requests up to the first blank line that counts."""
    twice = b"GET /b HTTP/1.1\nHost: a\n\nGET /g HTTP/1.1\r\nHost: a\r\n\r\n"
    assert talk(twice * 3, 1000).written == talk(twice * 3, 1).written


def test_the_last_request_of_a_client_closes_the_connection_also_when_it_comes_again() -> None:
    last = b"GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    wire = talk(NO_BODY + NO_BODY + last + NO_BODY, 1000)
    assert bodies(wire.written) == [b"/b "] * 3
    assert wire.closed


def test_there_is_a_bound_on_the_heads_that_are_known() -> None:
    desk = Desk()
    for number in range(5000):
        desk.learn(b"%d" % number, Head(b"GET", "/", b"", {}), 0)
    assert 0 < len(desk.heads) <= 512
    desk.learn(bytes(5000), Head(b"GET", "/", b"", {}), 0)
    assert bytes(5000) not in desk.heads


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
