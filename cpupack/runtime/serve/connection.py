"""One connection of HTTP/1.1: hands whole requests to the application, and writes answers in order.

It is an own protocol on top of asyncio, because a general server copies a body three times and checks every header of
each answer (docs/explanation/serving.md says more). It bounds what a client can hold: the size of headers and
body, the time that a request may take to arrive, and the connections, of which the longest idle one gives way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import cast

from .connections import Connections
from .messages import STATUS_LINES, HttpAnswer, HttpError, HttpRequest
from .reading import Incoming
from .steps import run_at_once

LOGGER = logging.getLogger("cpupack.serve")
_MOST_PIPELINED = 16
_JOINED_BYTES = 64 * 1024
"""Up to this size head and body go out as one piece; larger bodies are not copied for it."""


class Connection(asyncio.BufferedProtocol):
    """The protocol of one connection.

    ``_current`` is the request that is being answered, ``_queue`` those that came after it. After ``_last`` nothing
    more is read or answered. ``_last_answer`` says that the answer which was written last is the last one.
    """

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._incoming = Incoming(shared.desk, self)
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._queue: deque[HttpRequest] = deque()
        self._current: HttpRequest | None = None
        self._paused = False
        self._last_answer = False
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
            self._incoming.stop()
            self.close()
            return
        shared.idle[self] = None
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else "local"

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.open.pop(self, None)
        self._shared.idle.pop(self, None)
        self._transport = None
        for request in (self._incoming.request, *self._queue):
            self._release(request)
        self._queue.clear()
        if self._current is not None and self._current.on_gone is not None:
            self._current.on_gone()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._incoming.place()

    def buffer_updated(self, nbytes: int) -> None:
        self._incoming.take(nbytes)

    # What is read.

    def request_begins(self) -> None:
        """Note when the first byte of a request is there."""
        self._since_s = time.monotonic()
        self._shared.idle.pop(self, None)

    def head_is_there(self, request: HttpRequest, length: int) -> None:
        """Look whether the request gets an answer whatever is in its body, and write that now if its turn has come."""
        request.client = self._client
        if length > self._shared.limits.body_bytes:
            request.early = self._too_large()
        else:
            request.early = self._shared.early(request)
            if request.early is None and length:
                self._reserve(request, length)
        if b"expect" in request.headers and request.headers[b"expect"].lower() == b"100-continue":
            if request.early is not None:
                request.keep_alive = False  # whether the body comes is the client's choice
                self._incoming.stop()
                self.request_is_there(request)
            elif self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif request.early is not None and self._current is None and not self._queue:
            request.answered = True
            self._send(request, request.early)

    def body_grows(self, request: HttpRequest, size_bytes: int) -> None:
        """Bound the body of a request whose length was not known, or is large."""
        if size_bytes > self._shared.limits.body_bytes:
            request.early = self._too_large()
        elif size_bytes > request.reserved_bytes:
            self._reserve(request, size_bytes - request.reserved_bytes)

    def request_is_there(self, request: HttpRequest) -> None:
        """Answer a whole request, after those before it."""
        if request.answered:
            self._release(request)
            self._after_answer()
            return
        request.complete_s = time.monotonic()
        if self._current is None:
            self._start(request)
            return
        self._queue.append(request)
        if len(self._queue) >= _MOST_PIPELINED and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def cannot_read(self, error: HttpError) -> None:
        """Answer what cannot be parsed, and close: nobody knows where the next request would begin."""
        request = self._incoming.request
        self._incoming.stop()
        self._queue.clear()
        if self._current is None:
            if request is None or not request.answered:
                self._write(error.answer(), keep_alive=False)
            self.close()

    def _reserve(self, request: HttpRequest, size: int) -> None:
        """Count bytes of a body, or answer that there is no room for them."""
        shared = self._shared
        if shared.body_bytes and shared.body_bytes + size > shared.limits.all_bytes:
            request.early = shared.full(request)
            return
        shared.body_bytes += size
        request.reserved_bytes += size

    def _release(self, request: HttpRequest | None) -> None:
        if request is not None:
            self._shared.body_bytes -= request.reserved_bytes
            request.reserved_bytes = 0

    def _too_large(self) -> HttpAnswer:
        most = self._shared.limits.body_bytes
        return HttpError(413, f"the body is larger than the {most} bytes that this server takes").answer()

    # Answers.

    def _start(self, request: HttpRequest) -> None:
        self._current = request
        self._shared.at_work.add(self)
        run_at_once(self._serve(request))

    async def _serve(self, request: HttpRequest) -> None:
        try:
            answer = request.early if request.early is not None else await self._shared.handle(request)
        except HttpError as error:
            answer = error.answer()
        except Exception:
            LOGGER.exception("a request to %s failed", request.path)
            answer = HttpAnswer(500, b'{"error":"the server failed; its log says why"}')
        self._release(request)
        self._send(request, answer)
        self._current = None
        self._shared.at_work.discard(self)
        self._after_answer()

    def _send(self, request: HttpRequest, answer: HttpAnswer) -> None:
        self._write(answer, keep_alive=request.keep_alive, head_only=request.method == b"HEAD")
        self._shared.answered(request, answer)

    def _after_answer(self) -> None:
        if self._transport is None:
            return
        if self._last_answer or self._incoming.stopped:
            self._incoming.stop()
            self.close()
        elif self._queue:
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._start(self._queue.popleft())
        else:
            if not self._incoming.receiving:
                self._shared.idle[self] = None
            self._since_s = time.monotonic()

    def _write(self, answer: HttpAnswer, *, keep_alive: bool = True, head_only: bool = False) -> None:
        transport, shared = self._transport, self._shared
        if transport is None:
            return
        self._last_answer = answer.close or shared.draining or not keep_alive
        body = answer.body
        head = b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b" % (
            STATUS_LINES[answer.status], shared.date, answer.content_type, len(body),
            b"".join([b"%b: %b\r\n" % header for header in answer.headers]) if answer.headers else b"",
            b"connection: close\r\n\r\n" if self._last_answer else b"\r\n",
        )  # fmt: skip
        if head_only:
            transport.write(head)
        elif len(body) <= _JOINED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines([head, body])

    # The end.

    def check(self, now_s: float) -> None:
        """Close the connection if its client is too slow."""
        if self._transport is None:
            return
        limits, waited_s, receiving = self._shared.limits, now_s - self._since_s, self._incoming.receiving
        if self._current is not None:
            return
        if self._transport.get_write_buffer_size():
            if waited_s > limits.request_s:
                self.abort()
        elif receiving and waited_s > limits.request_s:
            self.cannot_read(HttpError(408, f"the request did not arrive within {limits.request_s:g} s"))
        elif not receiving and waited_s > limits.idle_s:
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
