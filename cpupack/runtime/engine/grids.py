"""Constants that grow with the image: numbers that rise by the row and by the column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..open_sizes import Terms, terms_of


@dataclass(frozen=True)
class Patch:
    """``rows`` x ``columns`` places. ``steps`` has for each number of a place the first one, and its steps."""

    rows: Terms
    columns: Terms
    steps: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Grid:
    """The constant ``name`` of layer ``layer``: ``patches`` one after the other."""

    layer: int
    name: str
    patches: tuple[Patch, ...]

    def all_terms(self) -> Iterator[Terms]:
        """Yield the terms of its numbers."""
        for each in self.patches:
            yield each.rows
            yield each.columns

    def values(self, powers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the constant for a size, whose ``powers`` the terms are multiplied by."""
        return np.concatenate([_values(each, powers) for each in self.patches])

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], name: str) -> Grid:
        """Read what ``dataclasses.asdict`` made. Raises ValueError, KeyError or TypeError on damage."""
        return cls(int(raw["layer"]), name, tuple(_patch(each) for each in raw["patches"]))


def _values(patch: Patch, powers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    rows, columns = (int(np.dot(each, powers)) for each in (patch.rows, patch.columns))
    if rows < 0 or columns < 0:
        raise ValueError(f"a patch of {rows} x {columns} places")
    down, across = np.arange(rows)[:, None, None], np.arange(columns)[None, :, None]
    begin, by_row, by_column = np.array(patch.steps, np.float64).T
    found: npt.NDArray[np.float32] = (begin + down * by_row + across * by_column).astype(np.float32).ravel()
    return found


Step = tuple[float, float, int]
"""A number that follows from how long a side is: the first one, and the second one divided by a length. The third one
says by which: rows, rows - 1, columns or columns - 1, from 1 on, and 0 says that it is the same for all sizes."""


@dataclass(frozen=True)
class Plane:
    """The constant ``name`` of layer ``layer``: a map of numbers that rise in equal steps to the same end at any size.

    ``steps`` has, for each of ``channels`` or once for all of them, the first number and its steps by the row and by
    the column: coordinates from 0 to 1. The build computes them in another order, so the last bit may differ.
    """

    layer: int
    name: str
    rows: Terms
    columns: Terms
    channels: int
    steps: tuple[tuple[Step, Step, Step], ...]

    def all_terms(self) -> Iterator[Terms]:
        """Yield the terms of its numbers."""
        yield self.rows
        yield self.columns

    def values(self, powers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the constant for a size, whose ``powers`` the terms are multiplied by."""
        rows, columns = (int(np.dot(each, powers)) for each in (self.rows, self.columns))
        by = divisors(rows, columns)
        begin, down, across = np.array([[a + b / by[c] for a, b, c in each] for each in self.steps]).T
        places = np.arange(rows)[:, None, None] * down + np.arange(columns)[None, :, None] * across
        whole = np.broadcast_to(begin + places, (rows, columns, self.channels))
        found: npt.NDArray[np.float32] = whole.astype(np.float32).ravel()
        return found

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], name: str) -> Plane:
        """Read what ``dataclasses.asdict`` made. Raises ValueError, KeyError or TypeError on damage."""
        steps = tuple((_step(a), _step(b), _step(c)) for a, b, c in raw["steps"])
        channels = int(raw["channels"])
        if len(steps) not in (1, channels):
            raise ValueError(f"{len(steps)} steps of {channels} channels")
        return cls(int(raw["layer"]), name, terms_of(raw["rows"]), terms_of(raw["columns"]), channels, steps)


def divisors(rows: int, columns: int) -> tuple[float, ...]:
    """Return what the numbers of a step are divided by."""
    return 1.0, rows, max(rows - 1, 1), columns, max(columns - 1, 1)


def _step(raw: Any) -> Step:
    first, more, by = raw
    if by not in range(len(divisors(1, 1))):
        raise ValueError(f"a step by {by}")
    return float(first), float(more), int(by)


def _patch(raw: Mapping[str, Any]) -> Patch:
    steps = tuple((float(a), float(b), float(c)) for a, b, c in raw["steps"])
    if not steps:
        raise ValueError("a patch without numbers")
    return Patch(terms_of(raw["rows"]), terms_of(raw["columns"]), steps)
