"""Finds constants that grow with the input, and are cut from one table at all sizes.

What a model makes of positions alone (``torch.triu`` of ones, distances between positions, sines of places) is the same
at a position whatever the size. Such a constant is stored once, for the largest size.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.cuts import Cut
from cpupack.runtime.engine.program_format import HEADER
from cpupack.runtime.open_sizes import OpenSizes, Terms
from cpupack.size_terms import Fit
from cpupack.stages.quantize.native.lowered import Lowered, content_of

Words = npt.NDArray[np.uint32]
_FILLED = 16
"""A constant may end with fewer zeros than this, which no layer reads: constants begin at multiples of 64 bytes."""
_MOST_BYTES = 1 << 28
_ALIGNED = 64


@dataclass(frozen=True)
class Shaped:
    """A constant as an array at each size: ``terms`` are those of its dimensions."""

    terms: tuple[Terms, ...]
    arrays: tuple[Words, ...]


def shaped(contents: Sequence[Words], lengths: Sequence[Sequence[int]], fit: Fit) -> Shaped | None:
    """Return a constant, ``contents`` at each size, whose positions have the same values at all; None for another one.

    ``lengths`` has, of each length that may be one of its dimensions, what it is at each size.
    """
    for sides in sides_of(contents, lengths):
        every = np.array(sides)
        sides = [tuple(each) for each in every[:, (every > 1).any(axis=0)].tolist()]
        arrays = tuple(one[: np.prod(side)].reshape(side) for one, side in zip(contents, sides, strict=True))
        if not all(_agree(one, other) for one, other in itertools.combinations(arrays, 2)):
            continue
        try:
            terms = tuple(fit.terms(np.array(each), "a side of a table") for each in zip(*sides, strict=True))
        except QuantizationError:
            continue
        return Shaped(terms, arrays)
    return None


class Tables:
    """Tables of the ``largest`` size that programs of all sizes cut constants from.

    Without it, ``missing`` tells afterwards why it is needed.
    """

    def __init__(self, largest: Lowered | None = None, sizes: OpenSizes | None = None) -> None:
        self.missing: QuantizationError | None = None
        self._largest = largest
        self._powers = np.array(sizes.powers(sizes.most) if sizes is not None else (), np.int64)
        self._found: list[tuple[int, Words]] = []

    def cut(self, layer: int, name: str, found: Shaped, end: int, refusal: QuantizationError) -> list[Cut]:
        """Return how a constant is cut from its table, which comes after constants that ``end`` there.

        Nothing without the largest size; ``refusal`` is why there is no other way. Raises QuantizationError where the
        largest has another constant, or one that takes too much memory.
        """
        if self._largest is None:
            self.missing = self.missing or refusal
            return []
        largest = content_of(self._largest, layer, name).view("<u4")
        sides = [int(np.dot(each, self._powers)) for each in found.terms]
        whole = largest[: np.prod(sides, dtype=np.int64)].reshape(sides)
        if not all(_agree(one, whole) for one in found.arrays):
            raise refusal
        table, rows = _shortened(whole)
        if table.nbytes > _MOST_BYTES:
            raise QuantizationError(
                f"[sizes] max: a table of the largest size takes {table.nbytes >> 20} MB, more than "
                f"{_MOST_BYTES >> 20}",
                hint="lower max",
            )
        end = max(end, *(begin + one.nbytes for begin, one in self._found), 0)
        begin = end + -end % _ALIGNED
        self._found.append((begin, table))
        return [Cut(layer, name, begin, table.shape, found.terms, rows)]

    def after(self, program: bytes) -> bytes:
        """Return a program with the tables at its end."""
        if not self._found:
            return program
        first = int(np.frombuffer(program[: HEADER.itemsize], HEADER)[0]["constants"])
        whole = bytearray(program)
        for begin, table in self._found:
            whole += bytes(first + begin - len(whole)) + table.tobytes()
        digest = hashlib.sha256(whole).digest()
        np.frombuffer(whole, HEADER, 1)["identity"] = np.frombuffer(digest[:8], "<i4")
        return bytes(whole)


def _shortened(whole: Words) -> tuple[Words, int]:
    """Return a table without what it repeats, and how many rows it has where distances make its numbers, else 0."""
    rows, table = 0, whole
    if whole.ndim > 1 and min(whole.shape[-2:]) > 1 and np.array_equal(whole[..., 1:, 1:], whole[..., :-1, :-1]):
        rows = whole.shape[-2]
        table = np.concatenate([whole[..., :0:-1, 0], whole[..., 0, :]], axis=-1)
    for axis in range(table.ndim - bool(rows)):
        first = table.take([0], axis)
        if np.array_equal(np.broadcast_to(first, table.shape), table):
            table = first
    return np.ascontiguousarray(table), rows


def sides_of(contents: Sequence[Words], lengths: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, ...]]]:
    """Yield shapes that the contents may have at each size: how many arrays, rows, columns, channels.

    What is left of a content fills it up, and is zero.
    """
    ones = (1,) * len(contents)
    distinct = dict.fromkeys(tuple(each) for each in lengths)
    growing = [each for each in distinct if len(set(each)) > 1]
    fixed = [each for each in distinct if len(set(each)) == 1 and each[0] > 1]
    for rows, columns, channels in itertools.product([ones, *growing], growing, [ones, *fixed]):
        each = [a * b * c for a, b, c in zip(rows, columns, channels, strict=True)]
        count = min(len(one) // size for one, size in zip(contents, each, strict=True))
        ends = [count * size for size in each]
        if count and all(
            0 <= len(one) - end < _FILLED and not one[end:].any() for one, end in zip(contents, ends, strict=True)
        ):
            yield [(count, a, b, c) for a, b, c in zip(rows, columns, channels, strict=True)]
            if count > 1:  # or so many numbers at each place
                yield [(1, a, b, c * count) for a, b, c in zip(rows, columns, channels, strict=True)]


def _agree(one: Words, other: Words) -> bool:
    """Whether two arrays have the same values at the positions that both have."""
    both = tuple(slice(min(a, b)) for a, b in zip(one.shape, other.shape, strict=True))
    return np.array_equal(one[both], other[both])
