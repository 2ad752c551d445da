"""Carries the messages of inference over gRPC: bounds their bytes, and the time that a client may take.

gRPC itself reads a whole message into memory, however slowly it comes, and keeps an answer until its client has read
it. So a message is read only when it is its turn, and what is there counts as bodies of HTTP do. A client that sends
for too long is told so. Of one that does not read its answer the connection is cut, with all other calls on it: gRPC
itself never drops what it was given to send, and a client that answers its pings looks alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from .cutting import cut
from .held import SLOW_S, Held
from .request import RefusedError
from .scheduler import BYTES, Refusal

Answering = Callable[[Any, Any, "Carried"], Awaitable[bytes]]
Trailing = tuple[tuple[str, str], ...]
_RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Carried:
    """One call of ``peer``: since when its client has been sending or reading, and the bytes that it holds."""

    def __init__(self, held: Held, peer: str) -> None:
        self._held, self._peer = held, peer
        self._task = asyncio.current_task()
        self.message_bytes = 0
        self.size = 0
        self.at_work = self.has_all = False
        self.since_s = time.monotonic()
        self.cut: tuple[Any, str, Trailing] | None = None
        """The status, the text and the metadata of a call that was ended because its client is slow."""

    def hold(self, backlog_s: Callable[[], float]) -> None:
        """Count the message. Raises RefusedError where there is no room for it."""
        if not self._held.take(self.message_bytes, self.size):
            raise RefusedError(Refusal(BYTES, backlog_s()))
        self.size = self.message_bytes

    def has_answer(self, size: int) -> None:
        """Count the answer in place of the message: it is there already. From now on its client reads."""
        self._held.add(size - self.size)
        self.size = size
        self.at_work, self.has_all, self.since_s = False, True, time.monotonic()

    def release(self) -> None:
        """Count nothing more."""
        self._held.give(self.size)
        self.size = 0

    def slow_s(self, now_s: float) -> float:
        """Return for how long its client has been sending or reading."""
        return 0.0 if self.at_work or self.cut is not None else now_s - self.since_s

    def end(self, code: Any, text: str, trailing: Trailing = ()) -> None:
        """End the call, because its client is slow. Where that has its answer to read, cut the connection."""
        if self.cut is None and self._task is not None:
            self.cut = code, text, trailing
            self.release()
            if not (self.has_all and cut(self._peer)):
                self._task.cancel()

    def give_way(self) -> None:
        """End the call for others, if its client is still slow."""
        if self.slow_s(time.monotonic()) > SLOW_S:
            text = f"refused ({BYTES}): the client is slow, and others need the room"
            self.end(_RESOURCE_EXHAUSTED, text, (("x-refused", BYTES),))


class Carrier:
    """Reads messages of at most ``body_bytes``, as many at once as ``held`` has room for, and writes the answers."""

    def __init__(self, held: Held, body_bytes: int, client_s: float) -> None:
        self._held, self._client_s = held, client_s
        self._turns = asyncio.Semaphore(max(1, held.most // body_bytes))
        self._calls: dict[Carried, None] = {}
        self._reading: dict[Carried, None] = {}
        self._waiting = 0

    async def carry(self, context: Any, parse: Callable[[bytes], Any], answering: Answering) -> None:
        """Read a message, and write what ``answering`` makes of what ``parse`` finds in it."""
        call = Carried(self._held, context.peer())
        self._calls[call] = None
        try:
            data = await self._read(call, context)
            if data is grpc.aio.EOF:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
            call.at_work, call.message_bytes = True, len(data)
            try:
                message = parse(data)
            except DecodeError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no ModelInferRequest: {error}")
            del data  # the message has its own copy
            answer = await answering(message, context, call)
            call.has_answer(len(answer))
            await context.write(answer)
        except asyncio.CancelledError:
            if call.cut is None or call.has_all:
                raise
            await context.abort(*call.cut)
        finally:
            call.release()
            del self._calls[call]

    def sweep(self) -> None:
        """End calls whose client is too slow. To be called every second."""
        now_s = time.monotonic()
        for call in list(self._calls):
            if call.slow_s(now_s) > self._client_s:
                call.end(grpc.StatusCode.DEADLINE_EXCEEDED, f"the request did not arrive within {self._client_s:g} s")
        self._held.note_slow(
            "gRPC",
            ((slow_s, call) for call in self._calls if call.size and (slow_s := call.slow_s(now_s)) > SLOW_S),
        )
        self._hurry()

    async def _read(self, call: Carried, context: Any) -> Any:
        self._waiting += 1
        try:
            if self._turns.locked():
                self._hurry()
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        call.since_s = time.monotonic()
        self._reading[call] = None
        try:
            return await context.read()
        finally:
            del self._reading[call]
            self._turns.release()

    def _hurry(self) -> None:
        """Let those who send slowly give way where others wait for their turn."""
        for call in list(self._reading)[: self._waiting]:
            call.give_way()
