"""Memory for results. What a large one had is used again when nobody holds it any more.

The system hands out memory page by page and fills it with zeros. For the maps of a segmentation, 45 MB for two images,
that took a fifth as long as the network.
"""

from __future__ import annotations

import mmap
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

LARGE_BYTES = 1 << 20
"""Smaller results are numpy's: malloc uses their memory again by itself."""
MOST_KEPT_BYTES = 256 << 20
"""Memory that waits for its next use, at most."""


class ResultMemory:
    """Makes arrays for results. Any thread may take and drop them."""

    def __init__(self) -> None:
        self._kept: deque[mmap.mmap] = deque()

    def take(self, samples: int, values: int) -> npt.NDArray[np.float32]:
        """Return float32 ``(samples, values)`` with anything in it."""
        if 4 * samples * values < LARGE_BYTES:
            return np.empty((samples, values), np.float32)
        return np.asarray(_Lease(self._kept, self._block(4 * samples * values), (samples, values)))

    @property
    def kept_bytes(self) -> int:
        """Memory that waits for its next use."""
        return sum(map(len, list(self._kept)))

    def _block(self, size: int) -> mmap.mmap:
        """Return a block of that size at least. Those that are too small for the batches of today are given up."""
        with suppress(IndexError):  # none is left
            while len(block := self._kept.pop()) < size:
                pass
            return block
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        return block


class _Lease:
    """Owns a block as long as an array, or a view of it, is held: it is the array's base."""

    def __init__(self, kept: deque[mmap.mmap], block: mmap.mmap, shape: tuple[int, int]) -> None:
        self._kept, self._block = kept, block
        address = np.frombuffer(block, np.uint8).ctypes.data
        self.__array_interface__: dict[str, Any] = {
            "version": 3, "shape": shape, "typestr": "<f4", "data": (address, False),
        }  # fmt: skip

    def __del__(self) -> None:
        if sum(map(len, list(self._kept))) + len(self._block) <= MOST_KEPT_BYTES:
            self._kept.append(self._block)
