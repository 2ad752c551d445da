"""All open connections together: what they share, and what clients may hold of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Protocol

from .held import SLOW_S, Held
from .messages import HttpAnswer, HttpRequest
from .reading import Desk


class Member(Protocol):
    """An open connection, as all of them together see it."""

    @property
    def held_bytes(self) -> int:
        """What it holds of a body that arrives, and of answers that its client has not read."""

    def check(self, now_s: float) -> float:
        """Close it where it has been waiting too long. Return for how long it has been sending or reading."""

    def give_way(self) -> None:
        """Refuse the request that it is sending, or cut it where it does not read."""

    def close(self) -> None:
        """Close it after what is still to be written."""

    def abort(self) -> None:
        """Cut it."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may hold. A request must arrive in ``request_s``, and the next one must begin within ``idle_s``.

    ``body_bytes`` is for one body.
    """

    body_bytes: int
    connections: int
    request_s: float
    idle_s: float


@dataclass
class Connections:
    """All open connections, and what they share.

    ``early`` may answer a request before its body is read. ``full`` is the answer to one for whose body is no room.
    ``at_work`` are those with a request that is being answered. All read at the same ``desk``. ``held`` counts what
    they hold. ``slow`` are those that had been sending or reading for long at the last ``sweep``, the slowest first.
    """

    handle: Callable[[HttpRequest], Coroutine[Any, Any, HttpAnswer]]
    early: Callable[[HttpRequest], HttpAnswer | None]
    full: Callable[[HttpRequest], HttpAnswer]
    answered: Callable[[HttpRequest, HttpAnswer], None]
    limits: ConnectionLimits
    held: Held
    open: dict[Member, None] = field(default_factory=dict)
    idle: dict[Member, None] = field(default_factory=dict)
    at_work: set[Member] = field(default_factory=set)
    slow: deque[Member] = field(default_factory=deque)
    draining: bool = False
    date: bytes = b""
    desk: Desk = field(default_factory=Desk)

    def sweep(self) -> None:
        """Close what has been waiting too long, and note who is slow.

        To be called every second, and once before the first connection.
        """
        now_s = time.monotonic()
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        times = {connection: connection.check(now_s) for connection in list(self.open)}
        slow = sorted((each for each, took_s in times.items() if took_s > SLOW_S), key=times.__getitem__, reverse=True)
        self.slow = deque(slow)
        self.held.note_slow("HTTP", ((times[each], each) for each in slow if each.held_bytes))

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
        """Cut the longest idle connection if there are too many, or the slowest. False when all are at work."""
        if len(self.open) <= self.limits.connections:
            return True
        oldest = next(iter(self.idle), None)
        while oldest is None and self.slow:
            if (slowest := self.slow.popleft()).check(time.monotonic()) > SLOW_S:
                oldest = slowest
        if oldest is None:
            return False
        oldest.abort()
        return True
