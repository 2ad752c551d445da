"""A connection of the server without a socket: what it writes, and requests that are cut anywhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from cpupack.runtime.serve.connection import Connection
from cpupack.runtime.serve.connections import ConnectionLimits, Connections
from cpupack.runtime.serve.held import Held
from cpupack.runtime.serve.messages import HttpAnswer, HttpRequest

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
