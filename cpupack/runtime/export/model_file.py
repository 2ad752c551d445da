"""The file of an exported model: ``struct model_header`` of kernels/api/model_file.h, then the program."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

MAGIC, VERSION = b"CPKMODEL", 1
_HEADER = struct.Struct("<8siiqQQ24x")


def header(program: npt.NDArray[np.uint8], mask: int | None) -> bytes:
    """Return what comes before ``program``. ``mask`` is the last channel of pixels, None where there are none."""
    last = -1 if mask is None else mask
    return _HEADER.pack(MAGIC, VERSION, last, program.nbytes, *_sums(program, last))


def _sums(program: npt.NDArray[np.uint8], mask: int) -> tuple[int, int]:
    """Return two sums: of the program's 64-bit words, and of the words times their positions from 1 on.

    Both begin with the 32 bits of the mask.
    """
    begin = np.uint64(mask % 2**32)
    words = np.frombuffer(program.tobytes() + bytes(-program.nbytes % 8), "<u8")
    with np.errstate(over="ignore"):
        places = np.arange(1, len(words) + 1, dtype=np.uint64)
        plain, placed = words.sum(dtype=np.uint64) + begin, (words * places).sum(dtype=np.uint64) + begin
    return int(plain), int(placed)
