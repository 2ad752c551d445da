"""Brings calls from the threads of instances to the event loop.

``loop.call_soon_threadsafe`` of uvloop does it, too, but it keeps Python's lock while the kernel wakes the loop's core.
The loop is awake before the call returns, and then waits for the lock. Here the lock is free meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

_MANY_RINGS = 4096


class Doorbell:
    """Calls for ``loop``, run in the order of their ``post``. To be made and closed on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)
        loop.add_reader(self._inside, self._answer)

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Let the loop call the function soon. From any thread.

        An exception from outside may strike between the two lines. Then the next ring, or ``look``, brings both calls.
        """
        self._calls.append((function, arguments))
        with contextlib.suppress(OSError):  # so many rings are unheard that one more says nothing, or it is closed
            self._outside.send(b"\0")

    def look(self) -> None:
        """Run what was posted."""
        while self._calls:
            function, arguments = self._calls.popleft()
            try:
                function(*arguments)
            except Exception as error:  # noqa: BLE001 - the others must go on; the loop logs it
                self._loop.call_exception_handler({"message": "a call from an instance failed", "exception": error})

    def close(self) -> None:
        """Run what was posted, and take no more."""
        self.look()
        if self._inside.fileno() >= 0:
            self._loop.remove_reader(self._inside)
            self._inside.close()
            self._outside.close()

    def _answer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._inside.recv(_MANY_RINGS)
        self.look()
