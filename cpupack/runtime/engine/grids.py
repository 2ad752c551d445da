"""Constants that grow with the image: patches of numbers that rise by the row and by the column."""

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


def _patch(raw: Mapping[str, Any]) -> Patch:
    steps = tuple((float(a), float(b), float(c)) for a, b, c in raw["steps"])
    if not steps:
        raise ValueError("a patch without numbers")
    return Patch(terms_of(raw["rows"]), terms_of(raw["columns"]), steps)
