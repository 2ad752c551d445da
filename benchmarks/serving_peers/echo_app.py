"""A server that does nothing: reads a request of known length and answers 4 KB at once, on a bare socket of uvloop's.

    python echo_app.py PORT

What a client measures with it is its own time and the kernel's: no server can be faster.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n" + bytes(4000)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Echo(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self._room = bytearray(1 << 20)
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        if not self._left:
            head = self._room.index(b"\r\n\r\n", 0, nbytes) + 4
            length = LENGTH.search(self._room, 0, head)
            self._left = head + (int(length[1]) if length else 0)
        self._left -= nbytes
        if not self._left:
            self._transport.write(ANSWER)


async def serve(port: int) -> None:
    """Serve until the process is killed."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
