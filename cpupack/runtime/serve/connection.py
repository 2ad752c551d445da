"""One connection of HTTP/1.1: parses with httptools, hands whole requests to the application, writes answers.

It is an own protocol on top of asyncio, because a general server copies a body three times and checks every header of
each answer (docs/explanation/serving.md says more). It bounds what a client can hold: the size of headers and
body, the time that a request may take to arrive, and the connections, of which the longest idle one gives way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import cast
from urllib.parse import unquote

import httptools

from .messages import STATUS_LINES, HttpAnswer, HttpError, HttpRequest

LOGGER = logging.getLogger("cpupack.serve")
MAX_HEADER_BYTES = 32 * 1024
_MOST_PIPELINED = 16
_JOINED_BYTES = 64 * 1024
"""Up to this size head and body go out as one piece; larger bodies are not copied for it."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may hold. A request must arrive in ``request_s``, and the next one must begin within ``idle_s``.

    ``body_bytes`` is for one body, ``all_bytes`` for all that arrive or are not answered yet.
    """

    body_bytes: int
    all_bytes: int
    connections: int
    request_s: float
    idle_s: float


@dataclass
class Connections:
    """All open connections, and what they share.

    ``early`` may answer a request before its body is read. ``full`` is the answer to one for whose body is no room.
    """

    handle: Callable[[HttpRequest], Awaitable[HttpAnswer]]
    early: Callable[[HttpRequest], HttpAnswer | None]
    full: Callable[[HttpRequest], HttpAnswer]
    answered: Callable[[HttpRequest, HttpAnswer], None]
    limits: ConnectionLimits
    open: dict[Connection, None] = field(default_factory=dict)
    idle: dict[Connection, None] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    body_bytes: int = 0
    draining: bool = False
    date: bytes = b""

    def sweep(self) -> None:
        """Close what has been waiting too long. To be called every second, and once before the first connection."""
        now_s = time.monotonic()
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        for connection in list(self.open):
            connection.check(now_s)

    def begin_drain(self) -> None:
        """Close idle connections, and every other one after its answer."""
        self.draining = True
        for connection in list(self.idle):
            connection.close()

    def abort(self) -> None:
        """Cut every connection."""
        for connection in list(self.open):
            connection.abort()

    def make_room(self) -> bool:
        """Close the longest idle connection if there are too many. False when all of them are at work."""
        if len(self.open) <= self.limits.connections:
            return True
        oldest = next(iter(self.idle), None)
        if oldest is None:
            return False
        oldest.abort()
        return True


class Connection(asyncio.Protocol):
    """The protocol of one connection. The attributes below are of the request that is arriving."""

    _url: bytes
    _headers: dict[bytes, bytes]
    _header_bytes: int
    _chunks: list[bytes]
    _size: int
    _request: HttpRequest | None
    _early: HttpAnswer | None
    _answered_early: bool
    _receiving: bool
    _keep_alive: bool
    _last_answer: bool

    def __init__(self, shared: Connections) -> None:
        self._shared, self._loop = shared, asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._queue: deque[HttpRequest] = deque()
        self._current: HttpRequest | None = None
        self._paused = False
        self._last = False
        self._reset()
        self._since_s = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        shared = self._shared
        shared.open[self] = None
        if shared.draining or not shared.make_room():
            self._write(
                HttpAnswer(
                    503, b'{"error":"too many connections"}', headers=((b"x-refused", b"connections"),), close=True
                )
            )
            self._last = True
            self.close()
            return
        shared.idle[self] = None
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else "local"

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.open.pop(self, None)
        self._shared.idle.pop(self, None)
        self._transport = None
        for request in (self._request, *self._queue):
            self._release(request)
        self._queue.clear()
        if self._current is not None and self._current.on_gone is not None:
            self._current.on_gone()

    def data_received(self, data: bytes) -> None:
        if self._last:
            return
        if not self._receiving:
            self._receiving = True
            self._since_s = time.monotonic()
            self._shared.idle.pop(self, None)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(HttpError(400, "upgrades of the connection are not offered"))
        except httptools.HttpParserError as error:
            cause = error.__context__
            refusal = cause if isinstance(cause, HttpError) else HttpError(400, f"this is not HTTP/1.1: {error}")
            self._refuse(refusal)

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        self._reset()
        self._receiving = True

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._count(len(name) + len(value))
        if name in self._headers:
            if name in (b"content-length", b"host", b"inference-header-content-length", b"authorization"):
                raise HttpError(400, f"the header {name.decode('latin-1')} is there twice")
            value = self._headers[name] + b", " + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        parser = self._parser
        raw_path, _, query = self._url.partition(b"?")
        if not raw_path.startswith(b"/"):  # the absolute form, which proxies use
            try:
                raw_path = httptools.parse_url(self._url).path or b"/"
            except httptools.HttpParserInvalidURLError:
                raise HttpError(400, "the address is not valid") from None
        path = raw_path.decode("latin-1")
        request = HttpRequest(
            parser.get_method(),
            unquote(path) if "%" in path else path,
            query,
            self._headers,
            time.monotonic(),
            self._client,
        )
        self._request = request
        self._keep_alive = parser.should_keep_alive()
        length = self._headers.get(b"content-length", b"0")
        if int(length) > self._shared.limits.body_bytes if length.isdigit() else False:
            self._early = self._too_large()
        else:
            self._early = self._shared.early(request)
            if self._early is None and length != b"0":
                self._reserve(request, int(length) if length.isdigit() else 0)
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            if self._early is not None:
                self._keep_alive = False  # whether the body comes is the client's choice
                self._last = True
                self._finish_request(request)
            elif self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self._early is not None and self._current is None and not self._queue:
            self._answered_early = True
            self._send(request, self._early)

    def on_body(self, body: bytes) -> None:
        if self._early is not None:
            return
        self._size += len(body)
        if self._size > self._shared.limits.body_bytes:
            self._early = self._too_large()
        elif self._request is not None and self._size > self._request.reserved_bytes:
            self._reserve(self._request, len(body))
        if self._early is not None:
            self._chunks.clear()
            return
        self._chunks.append(body)

    def _reserve(self, request: HttpRequest, size: int) -> None:
        """Count bytes of a body, or answer that there is no room for them."""
        shared = self._shared
        if shared.body_bytes and shared.body_bytes + size > shared.limits.all_bytes:
            self._early = shared.full(request)
            return
        shared.body_bytes += size
        request.reserved_bytes += size

    def _release(self, request: HttpRequest | None) -> None:
        if request is not None:
            self._shared.body_bytes -= request.reserved_bytes
            request.reserved_bytes = 0

    def on_message_complete(self) -> None:
        request = self._request
        self._receiving = False
        if request is None or self._last:
            return
        if self._answered_early:
            self._release(request)
            self._after_answer()
            return
        request.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._finish_request(request)

    def _finish_request(self, request: HttpRequest) -> None:
        request.complete_s = time.monotonic()
        self._request = None
        request.log["early"] = self._early
        request.log["keep_alive"] = self._keep_alive
        if self._current is None:
            self._start(request)
            return
        self._queue.append(request)
        if len(self._queue) >= _MOST_PIPELINED and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    # Requests and answers.

    def _start(self, request: HttpRequest) -> None:
        self._current = request
        task = self._loop.create_task(self._serve(request))
        self._shared.tasks.add(task)
        task.add_done_callback(self._shared.tasks.discard)

    async def _serve(self, request: HttpRequest) -> None:
        early: HttpAnswer | None = request.log.pop("early")
        keep_alive: bool = request.log.pop("keep_alive")
        try:
            answer = early if early is not None else await self._shared.handle(request)
        except HttpError as error:
            answer = error.answer()
        except Exception:
            LOGGER.exception("a request to %s failed", request.path)
            answer = HttpAnswer(500, b'{"error":"the server failed; its log says why"}')
        self._keep_alive = keep_alive
        self._release(request)
        self._send(request, answer)
        self._current = None
        self._after_answer()

    def _send(self, request: HttpRequest, answer: HttpAnswer) -> None:
        self._write(answer, head_only=request.method == b"HEAD")
        self._shared.answered(request, answer)

    def _after_answer(self) -> None:
        if self._transport is None:
            return
        if self._last_answer or self._last:
            self._last = True
            self.close()
        elif self._queue:
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._start(self._queue.popleft())
        else:
            if not self._receiving:
                self._shared.idle[self] = None
            self._since_s = time.monotonic()

    def _write(self, answer: HttpAnswer, *, head_only: bool = False) -> None:
        transport, shared = self._transport, self._shared
        if transport is None:
            return
        self._last_answer = answer.close or shared.draining or not self._keep_alive
        parts = [
            STATUS_LINES[answer.status], shared.date, b"content-type: ", answer.content_type,
            b"\r\ncontent-length: %d\r\n" % len(answer.body),
        ]  # fmt: skip
        for name, value in answer.headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"connection: close\r\n\r\n" if self._last_answer else b"\r\n")
        if head_only:
            transport.write(b"".join(parts))
        elif len(answer.body) <= _JOINED_BYTES:
            parts.append(answer.body)
            transport.write(b"".join(parts))
        else:
            transport.writelines([b"".join(parts), answer.body])

    def _refuse(self, error: HttpError) -> None:
        """Answer what cannot be parsed, and close: nobody knows where the next request would begin."""
        self._keep_alive = False
        self._last = True
        self._queue.clear()
        if self._current is None:
            self._write(error.answer())
            self.close()

    def _too_large(self) -> HttpAnswer:
        most = self._shared.limits.body_bytes
        return HttpError(413, f"the body is larger than the {most} bytes that this server takes").answer()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise HttpError(431, f"the headers have more than {MAX_HEADER_BYTES} bytes")

    def _reset(self) -> None:
        self._url = b""
        self._headers = {}
        self._header_bytes = 0
        self._chunks = []
        self._size = 0
        self._request = None
        self._early = None
        self._answered_early = False
        self._receiving = False
        self._keep_alive = True
        self._last_answer = False

    # The end.

    def check(self, now_s: float) -> None:
        """Close the connection if its client is too slow."""
        if self._transport is None:
            return
        limits, waited_s = self._shared.limits, now_s - self._since_s
        if self._current is not None:
            return
        if self._transport.get_write_buffer_size():
            if waited_s > limits.request_s:
                self.abort()
        elif self._receiving and waited_s > limits.request_s:
            self._refuse(HttpError(408, f"the request did not arrive within {limits.request_s:g} s"))
        elif not self._receiving and waited_s > limits.idle_s:
            self.close()

    def close(self) -> None:
        """Close after what is written has been sent."""
        if self._transport is not None:
            self._shared.idle.pop(self, None)
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()
