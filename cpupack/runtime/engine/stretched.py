"""Constants that are a table resized to the size of a map: learned positions of the patches of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..open_sizes import Terms, terms_of
from .resampling import KINDS, matrix


@dataclass(frozen=True)
class Stretched:
    """The constant ``name`` of layer ``layer``: a table of ``shape`` (rows, columns, channels), resized.

    The table lies ``begin`` bytes after the program's first constant, after ``alone`` places that are the same for all
    sizes, as that of a class token. ``way`` is one of ``resampling.KINDS``. The build sums in another order, so the
    last bits may differ.
    """

    layer: int
    name: str
    begin: int
    alone: int
    shape: tuple[int, int, int]
    way: str
    rows: Terms
    columns: Terms

    def all_terms(self) -> Iterator[Terms]:
        """Yield the terms of its numbers."""
        yield self.rows
        yield self.columns

    def values(self, powers: npt.NDArray[np.int64], constants: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the constant for a size, whose ``powers`` the terms are multiplied by."""
        rows, columns, channels = self.shape
        first = self.alone * channels
        stored = constants[self.begin : self.begin + 4 * (first + rows * columns * channels)].view("<f4")
        lengths = [int(np.dot(each, powers)) for each in (self.rows, self.columns)]
        found = stretch(stored[first:].reshape(self.shape), self.way, lengths[0], lengths[1])
        return np.concatenate([stored[:first], found.astype(np.float32).ravel()])

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], name: str) -> Stretched:
        """Read what ``dataclasses.asdict`` made. Raises ValueError, KeyError or TypeError on damage."""
        rows, columns, channels = (int(each) for each in raw["shape"])
        begin, alone, way = int(raw["begin"]), int(raw["alone"]), str(raw["way"])
        if min(rows, columns, channels) < 1 or begin < 0 or begin % 4 or alone < 0 or way not in KINDS:
            raise ValueError(f"a table of {rows} x {columns} x {channels} at {begin}, resized by {way}")
        return cls(
            int(raw["layer"]), name, begin, alone, (rows, columns, channels), way,
            terms_of(raw["rows"]), terms_of(raw["columns"]),
        )  # fmt: skip


def stretch(table: npt.NDArray[Any], kind: str, rows: int, columns: int) -> npt.NDArray[np.float64]:
    """Return a table ``(rows, columns, channels)`` with other rows and columns."""
    down, across = matrix(kind, table.shape[0], rows), matrix(kind, table.shape[1], columns)
    found: npt.NDArray[np.float64] = np.einsum("rh,hwc,kw->rkc", down, table.astype(np.float64), across, optimize=True)
    return found
