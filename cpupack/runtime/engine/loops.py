"""Lists of numbers that grow with the size: rows in loops, as which values are moved where, or a mask of attention.

A list is the same program at all sizes: what is in a loop comes as often as the size says, and each of its rows goes on
by its own distance each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..open_sizes import Terms, terms_of

Ints = npt.NDArray[np.int64]
Numbers = tuple[Terms, ...]
_MOST = 1 << 28
"""Numbers of a list: a damaged one may not take all memory."""


@dataclass(frozen=True)
class Row:
    """A row of a list: its numbers, and how far they go on in each of the loops around it, outer ones first."""

    first: Numbers
    steps: tuple[Numbers, ...]


@dataclass(frozen=True)
class Loop:
    """What comes ``count`` times."""

    count: Terms
    body: tuple[Row | Loop, ...]


Part = Row | Loop


def terms_in(parts: Sequence[Part]) -> Iterator[Terms]:
    """Yield the terms of all numbers."""
    for part in parts:
        if isinstance(part, Loop):
            yield part.count
            yield from terms_in(part.body)
        else:
            yield from part.first
            for step in part.steps:
                yield from step


def rows_of(parts: Sequence[Part], powers: Ints) -> Ints:
    """Return the rows ``(n, numbers)`` of a list for a size. Raises ValueError for damaged ones."""
    found: Ints = _rows(parts, powers, 0)[0]
    return found


def _rows(parts: Sequence[Part], powers: Ints, depth: int) -> Ints:
    """Return rows, and how far each goes on in each of the loops around, ``(1 + depth, n, numbers)``."""
    found = []
    for part in parts:
        if isinstance(part, Row):
            found.append(np.array([part.first, *part.steps], np.int64)[:, None] @ powers)
            continue
        inner, count = _rows(part.body, powers, depth + 1), int(np.array(part.count, np.int64) @ powers)
        if not 0 <= count * inner.size < _MOST:
            raise ValueError(f"a list of a size has {count} times {inner.shape[1]} rows")
        whole = np.repeat(inner[:-1, None], count, 1)
        whole[0] += np.arange(count)[:, None, None] * inner[-1]
        found.append(whole.reshape(depth + 1, -1, inner.shape[2]))
    return np.concatenate(found, 1)


def parts_of(raw: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    """Read what ``dataclasses.asdict`` made. Raises ValueError, KeyError or TypeError on damage."""
    return tuple(
        Loop(terms_of(each["count"]), parts_of(each["body"]))
        if "count" in each
        else Row(_numbers(each["first"]), tuple(_numbers(step) for step in each["steps"]))
        for each in raw
    )


def _numbers(raw: Sequence[Any]) -> Numbers:
    return tuple(terms_of(each) for each in raw)
