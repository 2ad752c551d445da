"""Constants that are cut from a table of the largest size: masks of attention, places of a map, distances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..open_sizes import Terms, terms_of

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Cut:
    """The constant ``name`` of layer ``layer``: the first places of a table along each of its dimensions.

    ``terms`` say how many along each. The table has ``shape``, numbers of 32 bits, and lies ``begin`` bytes after the
    program's first constant; where its shape has a 1, all places along that dimension are alike. In a table of
    ``distances`` the last dimension has the last two of the constant: a number follows from column minus row, the
    first one for ``1 - rows`` with as many rows as the largest size has.
    """

    layer: int
    name: str
    begin: int
    shape: tuple[int, ...]
    terms: tuple[Terms, ...]
    rows: int = 0

    @property
    def nbytes(self) -> int:
        """Memory of the table."""
        return 4 * int(np.prod(self.shape, dtype=np.int64))

    def all_terms(self) -> Iterator[Terms]:
        """Yield the terms of its numbers."""
        yield from self.terms

    def values(self, powers: npt.NDArray[np.int64], constants: npt.NDArray[np.uint8]) -> Words:
        """Return the constant for a size, whose ``powers`` the terms are multiplied by."""
        lengths = [int(np.dot(each, powers)) for each in self.terms]
        table = constants[self.begin : self.begin + self.nbytes].view("<u4").reshape(self.shape)
        if self.rows:
            down, across = lengths[-2:]
            lines = np.lib.stride_tricks.sliding_window_view(table, across, axis=-1)
            found = lines[..., self.rows - down : self.rows, :][..., ::-1, :]
            lead = lengths[:-2]
        else:
            found, lead = table, lengths
        for axis, length in enumerate(lead):
            found = found[(slice(None),) * axis + (slice(length),)]
        whole: Words = np.ascontiguousarray(np.broadcast_to(found, lengths))
        return whole

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], name: str) -> Cut:
        """Read what ``dataclasses.asdict`` made. Raises ValueError, KeyError or TypeError on damage."""
        shape, terms = terms_of(raw["shape"]), tuple(terms_of(each) for each in raw["terms"])
        found = cls(int(raw["layer"]), name, int(raw["begin"]), shape, terms, int(raw["rows"]))
        if found.begin < 0 or found.begin % 4 or min(shape, default=0) < 1 or found.rows < 0:
            raise ValueError(f"a table of shape {shape} at {found.begin}")
        if len(shape) + bool(found.rows) != len(terms):
            raise ValueError("a table and its constant have other dimensions")
        return found
