"""One connection of HTTP/1.1: hands whole requests to the application, and writes answers in order.

It is an own protocol on top of asyncio, because a general server copies a body three times and checks every header of
each answer (docs/explanation/serving.md says more). It bounds what a client can hold: the size of headers and
body, the time that a request may take to arrive, answers that the client does not read, and the connections, of which
the longest idle one gives way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import cast

from .connections import Connections
from .held import SLOW_S
from .messages import STATUS_LINES, HttpAnswer, HttpError, HttpRequest
from .reading import Incoming
from .steps import run_at_once

LOGGER = logging.getLogger("cpupack.serve")
_MOST_PIPELINED = 16
_MOST_A_TURN = 16
"""Requests of one client that are begun in one turn of the loop. Thousands may be there at once, and others wait."""
_JOINED_BYTES = 64 * 1024
"""Up to this size head and body go out as one piece; larger bodies are not copied for it."""


class Connection(asyncio.BufferedProtocol):
    """The protocol of one connection.

    ``_current`` is the request that is being answered, ``_queue`` those that came after it. ``_last_answer`` says that
    the answer which was written last is the last one. ``_end`` is written after all others, where what came cannot be
    read. ``_unread`` says that the client has answers to read before it gets more, of ``_unread_bytes``. ``_begun``
    counts the requests of this turn of the loop; ``_next_turn`` says that there will be another one without new bytes.
    """

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._incoming = Incoming(shared.desk, self)
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._queue: deque[HttpRequest] = deque()
        self._current: HttpRequest | None = None
        self._begun = 0
        self._going_on = self._next_turn = False
        self._resting = False
        self._unread = False
        self._unread_bytes = 0
        self._last_answer = False
        self._end: HttpAnswer | None = None
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
        self._count_unread(0)
        self._queue.clear()
        if self._current is not None and self._current.on_gone is not None:
            self._current.on_gone()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._incoming.place()

    def buffer_updated(self, nbytes: int) -> None:
        self._begun = 0
        self._incoming.take(nbytes)

    def pause_writing(self) -> None:
        """Answer and read nothing more: of a client that asks and does not read, each answer would stay in memory."""
        self._unread, self._since_s = True, time.monotonic()
        self._count_unread(0 if self._transport is None else self._transport.get_write_buffer_size())
        self._read_or_rest()

    def resume_writing(self) -> None:
        """Go on: the client has read most of what was written."""
        self._unread, self._since_s = False, time.monotonic()
        self._count_unread(0)
        self._go_on()

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
            if request.early is None and length and not self._shared.held.fits(length):
                request.early = self._shared.full(request)
        if b"expect" in request.headers and request.headers[b"expect"].lower() == b"100-continue":
            if request.early is not None:
                request.keep_alive = False  # whether the body comes is the client's choice
                self._incoming.stop()
                self.request_is_there(request)
            elif self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif request.early is not None:
            self._answer_early(request, request.early)

    def body_grows(self, request: HttpRequest, size_bytes: int) -> None:
        """Count what of a body is there, and refuse it where there is no room, or where it is too large."""
        if size_bytes > self._shared.limits.body_bytes:
            self._refuse(request, self._too_large())
        elif size_bytes > request.reserved_bytes:
            own = request.reserved_bytes
            fits = self._shared.held.take(size_bytes, own)
            if request.early is not None:  # it was the slowest itself, and gave way
                self._shared.held.give(size_bytes - own if fits else 0)
            elif fits:
                request.reserved_bytes = size_bytes
            else:
                self._refuse(request, self._shared.full(request))

    def request_is_there(self, request: HttpRequest) -> None:
        """Answer a whole request, after those before it."""
        if request.answered:
            self._release(request)
            self._after_answer()
            return
        request.complete_s = time.monotonic()
        if not self._queue and self._may_begin():
            self._start(request)
            return
        self._queue.append(request)
        self._go_on()

    def cannot_read(self, error: HttpError) -> None:
        """Answer what cannot be parsed, and close: nobody knows where the next request would begin."""
        if self._incoming.stopped:  # the last answer is written, or will be
            return
        request = self._incoming.request
        self._incoming.stop()
        if request is None or not request.answered:
            self._end = error.answer()
        self._go_on()

    def _refuse(self, request: HttpRequest, answer: HttpAnswer) -> None:
        """Keep nothing more of the body that arrives, and answer now if it is the request's turn."""
        request.early = answer
        self._release(request)
        self._incoming.drop()
        self._answer_early(request, answer)

    def _answer_early(self, request: HttpRequest, answer: HttpAnswer) -> None:
        if not self._queue and self._may_begin():
            self._begun += 1
            request.answered = True
            self._send(request, answer)

    def _release(self, request: HttpRequest | None) -> None:
        if request is not None:
            self._shared.held.give(request.reserved_bytes)
            request.reserved_bytes = 0

    def _count_unread(self, size: int) -> None:
        self._shared.held.add(size - self._unread_bytes)
        self._unread_bytes = size

    def _too_large(self) -> HttpAnswer:
        most = self._shared.limits.body_bytes
        return HttpError(413, f"the body is larger than the {most} bytes that this server takes").answer()

    # Answers.

    def _may_begin(self) -> bool:
        return self._current is None and not self._unread and self._begun < _MOST_A_TURN

    def _start(self, request: HttpRequest) -> None:
        self._begun += 1
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
        try:
            self._send(request, answer)
        finally:
            self._current = None
            self._shared.at_work.discard(self)
        self._after_answer()

    def _send(self, request: HttpRequest, answer: HttpAnswer) -> None:
        self._write(answer, keep_alive=request.keep_alive, head_only=request.method == b"HEAD")
        self._shared.answered(request, answer)

    def _after_answer(self) -> None:
        self._go_on()
        over = self._last_answer or self._incoming.stopped or self._transport is None
        if self._current is None and not self._queue and not over:
            if not self._incoming.receiving:
                self._shared.idle[self] = None
            self._since_s = time.monotonic()

    def _go_on(self) -> None:
        """Answer what waits, in order, and close after the last answer.

        An answer that is there at once comes back here, and finds that the loop is at work. Each would call the next
        one from within itself otherwise, deeper than Python goes.
        """
        if self._going_on:
            return
        self._going_on = True
        try:
            while self._queue and not self._last_answer and self._may_begin():
                self._start(self._queue.popleft())
        finally:
            self._going_on = False
        if self._queue and self._begun >= _MOST_A_TURN and not self._next_turn:
            self._next_turn = True
            asyncio.get_running_loop().call_soon(self._take_turn)
        if self._current is None and (self._last_answer or (self._incoming.stopped and not self._queue)):
            if self._end is not None and not self._last_answer:
                self._write(self._end, keep_alive=False)
            self._incoming.stop()
            self.close()
        self._read_or_rest()

    def _take_turn(self) -> None:
        self._begun, self._next_turn = 0, False
        self._go_on()

    def _read_or_rest(self) -> None:
        """Read on, or not as long as enough requests wait."""
        transport, rest = self._transport, self._unread or len(self._queue) >= _MOST_PIPELINED
        if rest != self._resting and transport is not None and not transport.is_closing():
            self._resting = rest
            if rest:
                transport.pause_reading()
            else:
                transport.resume_reading()

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

    @property
    def held_bytes(self) -> int:
        """What it holds of a body that arrives, and of answers that its client has not read."""
        request = self._incoming.request
        return self._unread_bytes + (0 if request is None else request.reserved_bytes)

    def check(self, now_s: float) -> float:
        """Close the connection if its client is too slow. Return for how long it has been sending or reading."""
        if self._transport is None or self._current is not None:
            return 0.0
        limits, waited_s, receiving = self._shared.limits, now_s - self._since_s, self._incoming.receiving
        if self._transport.get_write_buffer_size():
            if waited_s > limits.request_s:
                self.abort()
        elif receiving:
            if waited_s > limits.request_s:
                self.cannot_read(HttpError(408, f"the request did not arrive within {limits.request_s:g} s"))
        else:
            if waited_s > limits.idle_s:
                self.close()
            return 0.0
        return waited_s

    def give_way(self) -> None:
        """Refuse the request that it is sending, or cut it where it does not read."""
        if self.check(time.monotonic()) <= SLOW_S or self._incoming.stopped:
            return
        request = self._incoming.request
        if self._unread_bytes:
            self.abort()
            self._count_unread(0)
        elif request is not None and request.early is None:
            self._refuse(request, self._shared.full(request))

    def close(self) -> None:
        """Close after what is written has been sent."""
        if self._transport is not None:
            self._shared.idle.pop(self, None)
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()
