"""Resizes RGB images with the native kernels and Pillow's filters, only inside the crop.

The factors are Pillow's (src/libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc), and so is the
rounding to bytes between rows and columns. Pillow resizes some images columns first, which rounds differently. With the
bilinear filter the results then differ by one level at most. With filters that have negative factors they differ by
dozens in the worst case, so ``fast`` leaves such images to Pillow.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_PLACES, _LOW_BITS, _GROUP = 22, 11, 4
_KEPT_BYTES = 16 * 2**20
"""Scratch memory up to this size is kept by the thread for its next image."""


class _Taps(ctypes.Structure):
    """``struct cpupack_taps`` of kernels/image/resize.h."""

    _fields_ = (
        ("count", ctypes.c_int64), ("pairs", ctypes.c_int64), ("first", ctypes.c_void_p), ("factors", ctypes.c_void_p),
        ("pairs_of", ctypes.c_void_p),
    )  # fmt: skip


class _Image(ctypes.Structure):
    """``struct cpupack_image`` of kernels/image/resize.h."""

    _fields_ = (
        ("pixels", ctypes.c_void_p), ("width", ctypes.c_int32), ("height", ctypes.c_int32),
        ("first_row", ctypes.c_int32), ("rows", ctypes.c_int32),
    )  # fmt: skip


@dataclass(frozen=True)
class Window:
    """The part of a resized image to compute: the whole would be ``height`` x ``width`` pixels."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not (0 <= self.top <= self.height - self.rows and 0 <= self.left <= self.width - self.columns):
            raise ValueError(f"{self} is not inside the image")


@dataclass(frozen=True)
class _Axis:
    """Factors along one axis as the kernel reads them, and the range of source pixels that they use."""

    taps: _Taps
    begin: int
    end: int
    arrays: tuple[npt.NDArray[np.int32], ...]  # what ``taps`` points into


class Scratch(threading.local):
    """Memory for one image at a time, separate for each thread."""

    def __init__(self) -> None:
        self._kept = np.empty(0, np.uint8)

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """Return uint8 ``(>= size,)``: what was given back, or new memory.

        A signal handler may decode an image while its thread decodes another. Each then has memory of its own.
        """
        kept, self._kept = self._kept, np.empty(0, np.uint8)
        return kept if len(kept) >= size else np.empty(size, np.uint8)

    def give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        """Keep memory for the thread's next image, unless that is much."""
        if len(memory) <= _KEPT_BYTES:
            self._kept = memory


_scratch = Scratch()


def resize(
    library: ctypes.CDLL,
    pixels: npt.NDArray[np.uint8],
    window: Window,
    out: npt.NDArray[np.uint8],
    interpolation: str,
) -> None:
    """Resize RGB ``pixels`` ``(h, w, 3)``, contiguous, and write the window of it to ``out`` ``(rows, columns, 3)``.

    ``interpolation`` is one of ``FILTERS``, ``library`` the kernels'. Raises ValueError for arrays of another kind,
    RuntimeError when the CPU cannot run the kernels.
    """
    shape = (window.rows, window.columns, 3)
    for array, wanted in ((pixels, (*pixels.shape[:2], 3)), (out, shape)):
        if array.dtype != np.uint8 or array.shape != wanted or not array.flags.c_contiguous:
            raise ValueError(f"{array.dtype} {array.shape} is not contiguous uint8 {wanted}")
    height, width = pixels.shape[:2]
    down = _axis(height, window.height, window.top, window.rows, interpolation, across=False)
    across = _axis(width, window.width, window.left, window.columns, interpolation, across=True)
    rows = down.end - down.begin
    scratch = _scratch.take(library.cpupack_resize_bytes(width, rows, window.columns, across.taps.pairs))
    image = _Image(pixels.ctypes.data, width, height, down.begin, rows)
    failed = library.cpupack_resize(
        ctypes.byref(image), ctypes.byref(across.taps), ctypes.byref(down.taps), out.ctypes.data, scratch.ctypes.data
    )
    _scratch.give_back(scratch)
    if failed:
        raise RuntimeError("the native kernels do not run on this CPU")


@lru_cache(maxsize=256)
def _axis(size: int, resized: int, first: int, count: int, interpolation: str, *, across: bool) -> _Axis:
    starts, factors = _factors(size, resized, interpolation, first, count)
    used = np.maximum(1, factors.shape[1] - (factors[:, ::-1] != 0).argmax(axis=1))
    pairs_of = ((used + 1) // 2).astype(np.int32)
    pairs = int(pairs_of.max())
    whole = -(-count // _GROUP) * _GROUP if across else count
    padded = np.zeros((whole, 2 * pairs), np.int64)
    kept = min(2 * pairs, factors.shape[1])
    padded[:count, :kept] = factors[:, :kept]
    halves = np.stack([_pairs(padded >> _LOW_BITS), _pairs(padded & (1 << _LOW_BITS) - 1)])  # (2, whole, pairs)
    order = halves.reshape(2, -1, _GROUP, pairs).transpose(1, 3, 0, 2) if across else halves.transpose(1, 2, 0)
    packed = np.ascontiguousarray(order, np.int32)
    begins = np.zeros(whole, np.int32)
    begins[:count] = starts
    begins[count:] = starts[-1]
    # Pillow's taps read no further. Where their number is odd, one more tap with the factor 0 is read.
    end = min(size, int((starts + used).max()))
    arrays = (begins, packed, pairs_of)
    taps = _Taps(count, pairs, *(array.ctypes.data for array in arrays))
    return _Axis(taps, int(starts.min()), end, arrays)


def _pairs(halves: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return two 16-bit numbers in each: ``(n, 2 * pairs)`` becomes ``(n, pairs)``."""
    return np.ascontiguousarray(halves.astype("<i2")).view("<i4")


def _factors(
    size: int, resized: int, interpolation: str, first: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for ``count`` of ``resized`` outputs their first source pixels and their factors, ``(count, taps)``."""
    shape, reach = FILTERS[interpolation]
    scale = size / resized
    stretch = max(scale, 1.0)
    support = reach * stretch
    taps = math.ceil(support) * 2 + 1
    centers = (np.arange(first, first + count) + 0.5) * scale
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centers + support + 0.5).astype(np.int64), size) - starts
    positions = np.arange(taps)
    weights = shape((positions + starts[:, None] - centers[:, None] + 0.5) * (1.0 / stretch))
    weights[positions >= counts[:, None]] = 0.0
    total = np.zeros(count)
    for position in positions:  # one by one as Pillow does: numpy's own sum adds in another order
        total += weights[:, position]
    weights /= total[:, None]
    return starts, (np.copysign(0.5, weights) + weights * (1 << _PLACES)).astype(np.int64)


def _bilinear(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys's cubic convolution with a = -0.5 (https://doi.org/10.1109/TASSP.1981.1163711)."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Lanczos's windowed sinc of three lobes."""
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


FILTERS: dict[str, tuple[Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Each filter, and how far it reaches in pixels of the smaller image."""
