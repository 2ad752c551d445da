"""Keeps what the C library has got from the kernel, instead of giving it back after each request."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Names of glibc's options (mallopt(3))."""
_SETTINGS = ((_TRIM_THRESHOLD, 64 * 1024 * 1024), (_MMAP_THRESHOLD, 4 * 1024 * 1024), (_ARENA_MAX, 1))
"""Free memory at the end of the heap that is kept; blocks from this size on go back to the kernel at once; heaps."""
_CHOSEN_BY = (
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
)


def keep_memory(environment: Mapping[str, str]) -> None:
    """Keep freed memory for the next request. To be called before there are threads: each would get a heap of its own.

    A body of 150 KB cost 14 page faults, and each answer two calls of the kernel to let the heap of a thread grow.
    Nothing happens where the user has chosen these settings, and with another C library than glibc.
    """
    if any(name in environment for name in _CHOSEN_BY):
        return
    with contextlib.suppress(
        OSError, AttributeError
    ):  # no mallopt here: memory goes back and forth, and all else works
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in _SETTINGS:
            mallopt(ctypes.c_int(name), ctypes.c_int(value))
