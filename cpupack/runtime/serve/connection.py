"""One connection of HTTP/1.1: parses with httptools, hands whole requests to the application, writes answers.

It is an own protocol on top of asyncio, because a general server copies a body three times and checks every header of
each answer (docs/explanation/serving.md says more). It bounds what a client can hold: the size of headers and
body, the time that a request may take to arrive, and the connections, of which the longest idle one gives way.

The parser sees the head of a request. A body of known length does not pass through it: it is read into its place, or
dropped where the request is refused. Chunked and very large bodies take the long way, through the parser.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import cast
from urllib.parse import unquote

import httptools

from .connections import Connections
from .messages import STATUS_LINES, HttpAnswer, HttpError, HttpRequest
from .steps import run_at_once

LOGGER = logging.getLogger("cpupack.serve")
MAX_HEADER_BYTES = 32 * 1024
_MOST_PIPELINED = 16
_JOINED_BYTES = 64 * 1024
"""Up to this size head and body go out as one piece; larger bodies are not copied for it."""
_WHOLE_BYTES = 1024 * 1024
"""Up to this size room for a whole body is made at once; for a larger one it grows as the body comes."""


class Connection(asyncio.BufferedProtocol):
    """The protocol of one connection. The attributes below are of the request that is arriving.

    ``_body`` is the place of a body that is read into it, up to ``_at``. ``_skip`` bytes of a body are to be dropped.
    ``_left_body`` says that the parser does not take the body.
    """

    _url: bytes
    _headers: dict[bytes, bytes]
    _header_bytes: int
    _chunks: list[bytes | bytearray]
    _size: int
    _body: bytearray | None
    _at: int
    _skip: int
    _left_body: bool
    _request: HttpRequest | None
    _early: HttpAnswer | None
    _answered_early: bool
    _receiving: bool
    _keep_alive: bool
    _last_answer: bool

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
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

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return memoryview(self._body)[self._at :]
        return memoryview(self._shared.scratch)

    def buffer_updated(self, nbytes: int) -> None:
        if self._last:
            return
        if self._body is None:
            self._read(0, nbytes)
            return
        self._at += nbytes
        if self._at == len(self._body):
            self._body_is_there()

    def _read(self, start: int, stop: int) -> None:
        """Take what is in a part of the scratch: the rest of a body that is dropped, whole heads, partial heads."""
        scratch = self._shared.scratch
        while start < stop and not self._last:
            if self._skip:
                dropped = min(self._skip, stop - start)
                self._skip -= dropped
                start += dropped
                if not self._skip:
                    self._message_is_there()
                continue
            fresh = not self._receiving
            if fresh:
                self._receiving = True
                self._since_s = time.monotonic()
                self._shared.idle.pop(self, None)
            end = scratch.find(b"\r\n\r\n", start, stop) if fresh else -1
            start = self._feed(start, stop if end < 0 else end + 4)
            # Where the head came in pieces the parser sees all until the next request, if it does not leave the body.
            if (end >= 0 or self._left_body) and self._request is not None and not self._last:
                start = self._take_body(self._request, start, stop)

    def _feed(self, start: int, stop: int) -> int:
        """Let the parser see a part of the scratch, and return where it stopped."""
        try:
            with memoryview(self._shared.scratch) as scratch:
                self._parser.feed_data(scratch[start:stop])
        except httptools.HttpParserUpgrade as error:  # another protocol is offered: HTTP/1.1 goes on (RFC 9110, 7.8)
            self._parser = httptools.HttpRequestParser(self)
            return start + int(error.args[0])
        except httptools.HttpParserError as error:
            cause = error.__context__
            refusal = cause if isinstance(cause, HttpError) else HttpError(400, f"this is not HTTP/1.1: {error}")
            self._refuse(refusal)
        return stop

    def _take_body(self, request: HttpRequest, start: int, stop: int) -> int:
        """Read the body of a request whose head is there past the parser, and return where the next one begins."""
        text = request.headers.get(b"content-length", b"")
        length = int(text) if text.isdigit() else 0
        if not length or b"transfer-encoding" in request.headers:
            return start
        if self._early is not None:
            self._skip = length
        elif length <= _WHOLE_BYTES or self._left_body:
            here = min(length, stop - start)
            self._body, self._at = bytearray(length), here
            self._body[:here] = memoryview(self._shared.scratch)[start : start + here]
            start += here
        else:
            return start
        self._parser = httptools.HttpRequestParser(self)  # the one before waits for the body
        if self._body is not None and self._at == length:
            self._body_is_there()
        return start

    def _body_is_there(self) -> None:
        body, self._body = self._body, None
        assert body is not None
        self._chunks = [body]
        self._message_is_there()

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
        if parser.should_upgrade():  # the parser takes the body for that of the other protocol
            self._left_body = length != b"0"
            if b"transfer-encoding" in self._headers or not length.isdigit():
                raise HttpError(411, "a body beside an offer to change the protocol needs a Content-Length")
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
        if not self._left_body:
            self._message_is_there()

    def _message_is_there(self) -> None:
        request = self._request
        self._receiving = False
        if request is None or self._last:
            return
        if self._answered_early:
            self._request = None
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
        self._shared.at_work.add(self)
        run_at_once(self._serve(request))

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
        self._shared.at_work.discard(self)
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
            if not self._answered_early:
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
        self._body = None
        self._at = 0
        self._skip = 0
        self._left_body = False
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
