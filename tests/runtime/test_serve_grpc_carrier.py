"""Messages of gRPC are bounded in bytes together with the bodies of HTTP, and slow clients end."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from cpupack.runtime.serve import grpc_carrier
from cpupack.runtime.serve.grpc_carrier import Carried, Carrier
from cpupack.runtime.serve.held import Held

MOST, LARGEST = 200_000, 100_000


class Door:
    """A server of gRPC with one method, whose answer is ``answer_bytes`` long. Its messages wait at ``gate``."""

    def __init__(self) -> None:
        self.held = Held(MOST)
        self.carrier = Carrier(self.held, LARGEST, client_s=5.0)
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer_bytes = 10
        self.at_work = 0
        self.port = 0

    async def answer(self, _: bytes, context: Any, call: Carried) -> bytes:
        try:
            call.hold(lambda: 0.5)
        except grpc_carrier.RefusedError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.refusal.reason)
        self.at_work += 1
        await self.gate.wait()
        return bytes(self.answer_bytes)


def talk(client: Callable[[Door, Any], Awaitable[None]], host: str = "127.0.0.1") -> None:
    """Run ``client`` with a door and a channel to it. At the end nothing is held."""

    async def run() -> None:
        door = Door()

        async def method(_: Any, context: Any) -> None:
            await door.carrier.carry(context, bytes, door.answer)

        server = grpc.aio.server()
        handlers = {"Ask": grpc.stream_stream_rpc_method_handler(method)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", handlers),))
        door.port = server.add_insecure_port(f"{host}:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"{host}:{door.port}") as channel:
                await client(door, channel)
        finally:
            await server.stop(None)
        assert door.held.used == 0

    asyncio.run(asyncio.wait_for(run(), 60.0))


async def code_of(call: Any) -> Any:
    """Return the status of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_message_that_has_no_room_beside_the_others_is_refused() -> None:
    async def client(door: Door, channel: Any) -> None:
        ask = channel.unary_unary("/a/Ask")
        door.gate.clear()
        waiting = asyncio.ensure_future(ask(bytes(90_000)))
        await until(lambda: door.at_work == 1)
        door.held.add(50_000)  # bodies of HTTP
        assert await code_of(ask(bytes(70_000))) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert door.held.used == 140_000
        door.held.give(50_000)
        door.gate.set()
        assert await waiting == bytes(10)
        assert await ask(bytes(90_000)) == bytes(10)

    talk(client)


async def _silent(stop: asyncio.Event) -> AsyncIterator[bytes]:
    await stop.wait()
    yield b""


def test_who_sends_slowly_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages may be read at once here, and two clients begin a call and send nothing."""

    async def client(door: Door, channel: Any) -> None:
        stop = asyncio.Event()
        silent = [channel.stream_unary("/a/Ask")(_silent(stop)) for _ in range(2)]
        codes = [asyncio.ensure_future(code_of(call)) for call in silent]
        await until(lambda: len(door.carrier._reading) == 2)
        other = asyncio.ensure_future(channel.unary_unary("/a/Ask")(bytes(1000)))
        await until(lambda: len(door.carrier._calls) == 3)
        assert not other.done()
        now_s = time.monotonic() + 1.1
        # The module's own clock, not that of the process: the loop's timers go on.
        monkeypatch.setattr(grpc_carrier, "time", SimpleNamespace(monotonic=lambda: now_s))
        door.carrier.sweep()
        assert await other == bytes(10)
        # Whichever of the two the server saw first gives way.
        (first,), (second,) = await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
        assert await first is grpc.StatusCode.RESOURCE_EXHAUSTED
        now_s += 5.0
        door.carrier.sweep()
        assert await second is grpc.StatusCode.DEADLINE_EXCEEDED
        stop.set()

    talk(client)


def test_a_call_without_a_message_is_an_error() -> None:
    async def client(door: Door, channel: Any) -> None:
        async def nothing() -> AsyncIterator[bytes]:
            return
            yield b""

        assert await code_of(channel.stream_unary("/a/Ask")(nothing())) is grpc.StatusCode.INVALID_ARGUMENT

    talk(client)


class SlowReader:
    """What gRPC tells of a call whose client reads nothing until ``gate``."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.written = b""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def read(self) -> bytes:
        return bytes(10)

    async def write(self, answer: bytes) -> None:
        await self.gate.wait()
        self.written = answer


def test_an_answer_counts_until_it_is_read() -> None:
    async def run() -> None:
        door, context = Door(), SlowReader()
        door.answer_bytes = MOST
        call = asyncio.ensure_future(door.carrier.carry(context, bytes, door.answer))
        await until(lambda: door.held.used == MOST)
        assert not door.held.fits(1)
        context.gate.set()
        await call
        assert (len(context.written), door.held.used) == (MOST, 0)

    asyncio.run(run())


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header of HTTP/2 without compression."""
    return bytes((0, len(name))) + name + bytes((len(value),)) + value


class Deaf:
    """A client of HTTP/2 whose window is closed: it asks, answers pings, and never takes a byte of an answer."""

    DATA, HEADERS, SETTINGS, PING, ACK, END_STREAM, END_HEADERS = 0, 1, 4, 6, 1, 1, 4

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        closed = _frame(self.SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
        pairs = {
            ":method": "POST", ":scheme": "http", ":path": "/a/Ask", ":authority": "a",
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        headers = b"".join(_literal(name.encode(), value.encode()) for name, value in pairs.items())
        ask = _frame(self.HEADERS, self.END_HEADERS, 1, headers)
        message = _frame(self.DATA, self.END_STREAM, 1, struct.pack(">BI", 0, 10) + bytes(10))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + closed + ask + message)

    async def stay(self) -> None:
        """Answer pings and settings until the connection ends."""
        try:
            while head := await self._reader.readexactly(9):
                body = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] in (self.PING, self.SETTINGS) and not head[4] & self.ACK:
                    self._writer.write(_frame(head[3], self.ACK, 0, body if head[3] == self.PING else b""))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._writer.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("why", ["time", "room"])
def test_who_does_not_read_its_answer_is_cut(host: str, why: str) -> None:
    """After the time that clients have, or as soon as others need its room. A client of another connection goes on."""

    async def client(door: Door, channel: Any) -> None:
        door.answer_bytes = MOST
        deaf = asyncio.create_task(Deaf(*await asyncio.open_connection(host.strip("[]"), door.port)).stay())
        await until(lambda: door.held.used == MOST)
        (call,) = door.carrier._calls
        call.since_s -= 5.1 if why == "time" else 1.1
        door.carrier.sweep()
        door.answer_bytes = 10
        if why == "room":
            assert not deaf.done()
            assert door.held.used == MOST
        assert await channel.unary_unary("/a/Ask")(bytes(1000)) == bytes(10)
        await deaf
        await until(lambda: call not in door.carrier._calls)
        assert door.held.used == 0

    talk(client, host)
