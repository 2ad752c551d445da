"""The memory that clients hold, of HTTP and gRPC together: bodies, and answers that nobody has read yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

SLOW_S = 1.0
"""A client that has been sending or reading for longer gives way to others where there is no room."""


class Slow(Protocol):
    """A client that has been sending its request, or reading its answer, for a while."""

    def give_way(self) -> None:
        """Give back what it holds, if it still is where it was."""


class Held:
    """Counts bytes of bodies and answers, at most ``most``. One body is always let in where nothing is held.

    ``slow`` are the clients that give way where there is no room, those that have taken the longest first. Without
    them a few clients that send half a body each would keep all others out. Each door notes its own every second.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0
        self.slow: deque[Slow] = deque()
        self._noted: dict[str, list[tuple[float, Slow]]] = {}

    def note_slow(self, door: str, slow: Iterable[tuple[float, Slow]]) -> None:
        """Note who is slow at ``door``, and for how many seconds, in place of those noted before."""
        self._noted[door] = list(slow)
        everyone = [each for noted in self._noted.values() for each in noted]
        self.slow = deque(client for _, client in sorted(everyone, key=lambda pair: pair[0], reverse=True))

    def fits(self, size: int, own: int = 0) -> bool:
        """Return whether there is room for ``size`` bytes in the place of ``own``. Slow clients give way for it."""
        while self.used > own and self.used - own + size > self.most:
            if not self.slow:
                return False
            self.slow.popleft().give_way()
        return True

    def take(self, size: int, own: int = 0) -> bool:
        """Count ``size`` bytes in the place of ``own`` where there is room for them, and return whether there is."""
        if not self.fits(size, own):
            return False
        self.used += size - own
        return True

    def add(self, size: int) -> None:
        """Count ``size`` bytes that are there already, whatever else is held."""
        self.used += size

    def give(self, size: int) -> None:
        """Count ``size`` bytes no more."""
        self.used -= size
