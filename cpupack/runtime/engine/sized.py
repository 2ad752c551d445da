"""Programs for images of any size, made when they are needed. All share the weights.

One block of memory has, in this order: places for the heads of programs (header, buffers, layers), the constants that
all share, and places for the constants that a size has for itself. So every program finds the shared constants at one
address, and what the kernels prepare from weights is prepared once.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..open_sizes import Size
from .program_format import HEADER
from .sizes import Resized, Sizes, head_bytes

Bytes = npt.NDArray[np.uint8]
_PLACES = 64
"""Sizes whose programs are kept, of which any number may run."""
_PAGE = 4096


@dataclass(frozen=True)
class Sized:
    """The program of one size: its bytes in memory, and the memory that a sample needs while it is computed."""

    memory: Bytes
    arena_bytes: int


class SizedPrograms:
    """The programs of one model. ``stored`` is the one that was built. Any thread may ask for a size."""

    def __init__(self, stored: Bytes, sizes: Sizes) -> None:
        self.sizes = sizes
        begin = int(stored[: HEADER.itemsize].view(HEADER)[0]["constants"])
        self._head = stored[: head_bytes(stored)].copy()
        self._head_place = _whole(self._head.size, 64)
        self._own_place = _whole(self.resized(sizes.range.most, stored[begin:]).own.size, 64)
        self._constants_at = _whole(_PLACES * self._head_place, _PAGE)
        self._own_at = self._constants_at + _whole(stored.size - begin, _PAGE)
        # Private, because Python's default is shared memory, which gets large pages on few systems.
        memory = mmap.mmap(
            -1, self._own_at + _PLACES * self._own_place + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE, self._constants_at, self._own_at - self._constants_at)
        self._memory = np.frombuffer(memory, np.uint8)
        self._constants = self._memory[self._constants_at : self._constants_at + stored.size - begin]
        self._constants[:] = stored[begin:]
        self._lock = threading.Lock()
        self._kept: OrderedDict[Size, tuple[int, Sized]] = OrderedDict()
        self._users: dict[Size, int] = {}
        self._free = list(range(_PLACES))

    @property
    def nbytes(self) -> int:
        """Memory of the weights, and of the programs of the sizes that were used."""
        return int(self._constants.size + (_PLACES - len(self._free)) * (self._head_place + self._own_place))

    @contextmanager
    def at(self, *size: int) -> Iterator[Sized]:
        """Give the program of a size. Its memory stays as it is until the caller has left.

        Where all places are in use, it is made for this caller alone: nobody waits, not even for a place that an
        exception of a signal handler has kept from being given back.
        """
        found = self._taken(size)
        if found is None:
            yield Sized(self.alone(*size), self.resized(size, self._constants).arena_bytes)
            return
        try:
            yield found
        finally:
            self._left(size)

    def _taken(self, size: Size) -> Sized | None:
        """Return the program of a size, which now has one user more; None where no place is free."""
        with self._lock:
            if size not in self._kept:
                if not self._free and not self._make_room():
                    return None
                place = self._free.pop()
                self._kept[size] = place, self._written(place, size)
            self._kept.move_to_end(size)
            self._users[size] = self._users.get(size, 0) + 1
            return self._kept[size][1]

    def _left(self, size: Size) -> None:
        with self._lock:
            self._users[size] -= 1
            if not self._users[size]:
                del self._users[size]

    def arena_bytes(self, *size: int) -> int:
        """Return the memory that a sample of a size needs while it is computed."""
        with self.at(*size) as found:
            return found.arena_bytes

    def alone(self, *size: int) -> Bytes:
        """Return the program of a size as one block, without those of other sizes."""
        begin = _whole(self._head.size, 64)
        at = _whole(self._constants.size, 64)
        found = self.sizes.resized(self._head, self._constants, size, at, begin)
        block = np.zeros(begin + at + found.own.size, np.uint8)
        block[: self._head.size] = found.head
        block[begin : begin + self._constants.size] = self._constants
        block[begin + at :] = found.own
        return block

    def resized(self, size: Size, constants: Bytes) -> Resized:
        """Return what a size has for itself, as if it stood alone."""
        return self.sizes.resized(self._head, constants, size, 0, 0)

    def _make_room(self) -> bool:
        """Free the place of the size that was not used for longest. Returns False where all are in use."""
        for size, (place, _) in self._kept.items():
            if size not in self._users:
                del self._kept[size]
                self._free.append(place)
                return True
        return False

    def _written(self, place: int, size: Size) -> Sized:
        head_at, own_at = place * self._head_place, self._own_at + place * self._own_place
        found = self.sizes.resized(
            self._head, self._constants, size, own_at - self._constants_at, self._constants_at - head_at
        )
        self._memory[head_at : head_at + found.head.size] = found.head
        self._memory[own_at : own_at + found.own.size] = found.own
        return Sized(self._memory[head_at : own_at + _whole(found.own.size, 64)], found.arena_bytes)


def _whole(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
