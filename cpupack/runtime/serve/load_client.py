"""An open-loop client: sends requests at times that were drawn before, over HTTP or gRPC, and notes every answer.

Latency counts from the scheduled time, even when this process was late, so a stalled server cannot hide ("coordinated
omission"). The client shares its host with the server where both run on one: what it uses itself is kept small.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httptools
import numpy as np
import numpy.typing as npt

from ..errors import HostError
from ..host.limits import system_fault
from . import steps
from .addresses import address
from .alarm import Alarm
from .steps import run_at_once

Floats = npt.NDArray[np.float64]
OK, REFUSED, FAILED = 0, 1, 2
_MOST_CONNECTIONS = 512
_PATIENCE_S = 10.0
_REFUSED = "x-refused"
"""The header, and the metadata of gRPC, with which the server says that it refused on purpose."""


@dataclass
class Outcome:
    """What became of each request, in the order of the schedule; times in seconds from the start.

    ``state`` is OK, REFUSED or FAILED. ``sent_s`` and ``end_s`` are NaN for what was never sent or never answered.
    """

    due_s: Floats
    sent_s: Floats
    end_s: Floats
    state: npt.NDArray[np.int8]
    errors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, due_s: Floats) -> Outcome:
        """Return the outcome before anything was sent."""
        nothing = np.full(len(due_s), np.nan)
        return cls(due_s, nothing, nothing.copy(), np.full(len(due_s), FAILED, np.int8))

    def failed(self, text: str) -> None:
        """Count an error by its text."""
        self.errors[text[:200]] = self.errors.get(text[:200], 0) + 1


class Door(Protocol):
    """How one request is sent. ``ask`` returns its state and, for a failure, why.

    ``awaits_futures_only`` is true where ``ask`` needs no task of its own.
    """

    awaits_futures_only: bool

    async def open(self) -> None: ...

    async def ask(self, number: int) -> tuple[int, str]: ...

    async def close(self) -> None: ...


async def offer(door: Door, due_s: Floats) -> Outcome:
    """Send a request at each time and return what became of them. Waits for late answers for ten seconds."""
    loop = asyncio.get_running_loop()
    found, tasks = Outcome.of(due_s), set[asyncio.Task[None]]()
    all_sent, all_there = asyncio.Event(), asyncio.Event()
    begin_s = time.monotonic() + 0.2
    number = under_way = 0
    over = False

    async def one(number: int) -> None:
        nonlocal under_way
        found.sent_s[number] = time.monotonic() - begin_s
        try:
            state, text = await door.ask(number)
        except (OSError, EOFError, asyncio.CancelledError) as error:
            state, text = FAILED, _words(error)
        if over:
            return
        if state == FAILED:
            found.failed(text)
        found.end_s[number] = time.monotonic() - begin_s
        found.state[number] = state
        under_way -= 1
        if not under_way:
            all_there.set()

    def start_those_due() -> None:
        nonlocal number, under_way
        while number < len(due_s) and begin_s + due_s[number] <= time.monotonic():
            under_way += 1
            all_there.clear()
            if door.awaits_futures_only:
                run_at_once(one(number))
            else:
                task = loop.create_task(one(number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            number += 1
        if number < len(due_s):
            alarm.set(begin_s + float(due_s[number]))
        else:
            all_sent.set()

    alarm = Alarm(loop, start_those_due)
    try:
        start_those_due()
        await all_sent.wait()
        if under_way:
            await asyncio.wait_for(all_there.wait(), _PATIENCE_S)
    except asyncio.TimeoutError:
        found.errors[f"no answer within {_PATIENCE_S:g} s"] = under_way
    finally:
        over = True
        alarm.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


def _words(error: BaseException) -> str:
    """Return what went wrong with a request, the same text for all that failed alike."""
    if (refused := system_fault(error)) is not None:
        return f"this client, not the server: {refused}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class HttpDoor:
    """Sends the same few requests in turn over HTTP/1.1, on as many connections as are needed at a time."""

    awaits_futures_only = True

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        bodies: Sequence[bytes],
        headers: Sequence[tuple[str, str]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self._requests = [
            f"POST {path} HTTP/1.1\r\nHost: {address(host, port)}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ]
        self._host, self._port, self._tls = host, port, tls
        self._idle: list[_HttpConnection] = []
        self._all: set[_HttpConnection] = set()
        self._room = asyncio.Semaphore(_MOST_CONNECTIONS)

    async def open(self) -> None:
        """Connect once. Raises HostError when nobody listens, or nobody answers."""
        where = address(self._host, self._port)
        try:
            self._idle.append(await asyncio.wait_for(self._connect(), _PATIENCE_S))
        except asyncio.TimeoutError:  # an OSError, too, from Python 3.11 on
            raise HostError(f"cannot connect to {where}: no answer within {_PATIENCE_S:g} s") from None
        except OSError as error:  # those of TLS, too
            raise HostError(f"cannot connect to {where}: {error}") from error

    async def ask(self, number: int) -> tuple[int, str]:
        """Send request ``number`` and return what became of it."""
        async with self._room:
            while self._idle and self._idle[-1].closed:
                self._idle.pop()
            connection = self._idle.pop() if self._idle else await self._connect()
            status = await connection.ask(self._requests[number % len(self._requests)])
            if not connection.closed:
                self._idle.append(connection)
        if status == 200:
            return OK, ""
        if status in (429, 503) and connection.refused():
            return REFUSED, ""
        return FAILED, f"status {status}{connection.told()}"

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._all:
            connection.close()

    async def _connect(self) -> _HttpConnection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_HttpConnection, self._host, self._port, ssl=self._tls)
        self._all.add(connection)
        return connection


class _HttpConnection(asyncio.Protocol):
    def __init__(self) -> None:
        self.closed = False
        self._transport: Any = None
        self._waiting: steps.Outcome | None = None
        self._last = b""
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._waiting is not None:
            self._waiting.settle(None, EOFError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._last = data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
            if self._waiting is not None:
                self._waiting.settle(None, EOFError("the answer is no HTTP"))

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 100:
            return
        if not self._parser.should_keep_alive():
            self.close()
        if self._waiting is not None:
            self._waiting.settle(status)

    async def ask(self, request: bytes) -> int:
        self._waiting = steps.Outcome(asyncio.get_running_loop())
        self._transport.write(request)
        status: int = await self._waiting
        return status

    def refused(self) -> bool:
        """Return whether the server itself refused: a proxy whose server is gone answers with 503, too."""
        return _REFUSED.encode() in self._last.lower()

    def told(self) -> str:
        """Return what the server says of the error that it has just answered with, where it does so in its own form."""
        body = self._last.partition(b"\r\n\r\n")[2]
        try:
            return f": {json.loads(body)['error']}"
        except (ValueError, LookupError, TypeError):
            return ""

    def close(self) -> None:
        self.closed = True
        self._transport.close()


class GrpcDoor:
    """Sends the same few messages in turn with gRPC, on a channel for every hundred requests under way."""

    awaits_futures_only = False

    def __init__(
        self,
        host: str,
        port: int,
        method: str,
        bodies: Sequence[bytes],
        metadata: Sequence[tuple[str, str]],
        *,
        tls: bool = False,
        roots: bytes | None = None,
    ) -> None:
        """With ``tls`` the certificates in ``roots`` vouch for the server, or where that is None, gRPC's own."""
        self._tls, self._roots = tls, roots
        self._address, self._method, self._bodies = address(host, port), method, bodies
        self._metadata = tuple((name.lower(), value) for name, value in metadata)
        self._channels: list[Any] = []
        self._calls: list[Any] = []

    async def open(self) -> None:
        """Connect. Raises HostError when nobody listens."""
        import grpc

        for _ in range(4):
            options = [
                ("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1),
                ("grpc.enable_http_proxy", 0),  # it measures the server, as over HTTP
            ]  # fmt: skip
            if self._tls:
                trusted = grpc.ssl_channel_credentials(self._roots)
                channel = grpc.aio.secure_channel(self._address, trusted, options=options)
            else:
                channel = grpc.aio.insecure_channel(self._address, options=options)
            self._channels.append(channel)
            self._calls.append(channel.unary_unary(self._method, bytes, bytes))
        try:
            await asyncio.wait_for(self._channels[0].channel_ready(), _PATIENCE_S)
        except asyncio.TimeoutError:
            raise HostError(f"cannot connect to {self._address} with gRPC") from None

    async def ask(self, number: int) -> tuple[int, str]:
        """Send request ``number`` and return what became of it."""
        import grpc

        try:
            await self._calls[number % len(self._calls)](
                self._bodies[number % len(self._bodies)], metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            # UNAVAILABLE is also what gRPC says where the server is gone.
            if any(key == _REFUSED for key, _ in error.trailing_metadata() or ()):
                return REFUSED, ""
            return FAILED, f"{error.code().name}: {error.details()}"
        return OK, ""

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()
