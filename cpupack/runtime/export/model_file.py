"""The file of an exported model: ``struct model_header`` of kernels/api/model_file.h, the limits, then the program."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .limits import Limit

MAGIC, VERSION = b"CPKMODEL", 2
_HEADER = struct.Struct("<8siiqQQq16x")
_LIMIT = struct.Struct("<iiiiff")
_ALIGNMENT = 64


def beginning(program: npt.NDArray[np.uint8], mask: int | None, limits: Sequence[Limit] = ()) -> bytes:
    """Return what comes before ``program``. ``mask`` is the last channel of pixels, None where there are none.

    ``limits`` say what the values of float input may be.
    """
    last = -1 if mask is None else mask
    packed = b"".join(_LIMIT.pack(each.kind, each.first, each.count, each.step, each.low, each.high) for each in limits)
    packed += bytes(-len(packed) % _ALIGNMENT)
    sums = _sums(packed + program.tobytes(), last)
    return _HEADER.pack(MAGIC, VERSION, last, program.nbytes, *sums, len(limits)) + packed


def _sums(contents: bytes, mask: int) -> tuple[int, int]:
    """Return two sums: of 64-bit words, and of the words times their positions from 1 on.

    Both begin with the 32 bits of the mask.
    """
    begin = np.uint64(mask % 2**32)
    words = np.frombuffer(contents + bytes(-len(contents) % 8), "<u8")
    with np.errstate(over="ignore"):
        places = np.arange(1, len(words) + 1, dtype=np.uint64)
        plain, placed = words.sum(dtype=np.uint64) + begin, (words * places).sum(dtype=np.uint64) + begin
    return int(plain), int(placed)
