"""Finds constants that grow with the input, and are cut from one table at all sizes.

What a model makes of positions alone (``torch.triu`` of ones, distances between positions, sines of places) is the same
at a position whatever the size. Such a constant is stored once, for the largest size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpupack.errors import QuantizationError
from cpupack.runtime.open_sizes import Terms
from cpupack.size_terms import Fit

Words = npt.NDArray[np.uint32]
FILLED = 16
"""A constant may end with fewer zeros than this, which no layer reads: constants begin at multiples of 64 bytes."""


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
        if not all(agree(one, other) for one, other in itertools.combinations(arrays, 2)):
            continue
        try:
            terms = tuple(fit.terms(np.array(each), "a side of a table") for each in zip(*sides, strict=True))
        except QuantizationError:
            continue
        return Shaped(terms, arrays)
    return None


def shortened(whole: Words) -> tuple[Words, int]:
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
            0 <= len(one) - end < FILLED and not one[end:].any() for one, end in zip(contents, ends, strict=True)
        ):
            yield [(count, a, b, c) for a, b, c in zip(rows, columns, channels, strict=True)]
            if count > 1:  # or so many numbers at each place
                yield [(1, a, b, c * count) for a, b, c in zip(rows, columns, channels, strict=True)]


def agree(one: Words, other: Words) -> bool:
    """Whether two arrays have the same values at the positions that both have."""
    both = tuple(slice(min(a, b)) for a, b in zip(one.shape, other.shape, strict=True))
    return np.array_equal(one[both], other[both])
