"""All open connections together: what they share, and what clients may hold of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Protocol

from .messages import HttpAnswer, HttpRequest
from .reading import Desk


class Member(Protocol):
    """An open connection, as all of them together see it."""

    def check(self, now_s: float) -> None:
        """Close it where it has been waiting too long."""

    def close(self) -> None:
        """Close it after what is still to be written."""

    def abort(self) -> None:
        """Cut it."""


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
    ``at_work`` are those with a request that is being answered. All read at the same ``desk``.
    """

    handle: Callable[[HttpRequest], Coroutine[Any, Any, HttpAnswer]]
    early: Callable[[HttpRequest], HttpAnswer | None]
    full: Callable[[HttpRequest], HttpAnswer]
    answered: Callable[[HttpRequest, HttpAnswer], None]
    limits: ConnectionLimits
    open: dict[Member, None] = field(default_factory=dict)
    idle: dict[Member, None] = field(default_factory=dict)
    at_work: set[Member] = field(default_factory=set)
    body_bytes: int = 0
    draining: bool = False
    date: bytes = b""
    desk: Desk = field(default_factory=Desk)

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
