"""Tables of the largest size, which a program for all sizes has at its end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.cuts import Cut
from cpupack.runtime.engine.program_format import HEADER
from cpupack.runtime.engine.stretched import Stretched
from cpupack.runtime.open_sizes import OpenSizes, Terms
from cpupack.stages.quantize.native.cuts import Shaped, Words, agree, shortened
from cpupack.stages.quantize.native.lowered import Lowered, content_of
from cpupack.stages.quantize.native.stretches import Grid, Laid, table_behind

_MOST_BYTES = 1 << 28
_ALIGNED = 64


class Tables:
    """Tables that programs of all sizes make constants of, from the program of the ``largest`` size.

    ``grids`` are rows and columns that tables of the model may have. Without the largest size, ``missing`` tells
    afterwards why it is needed.
    """

    def __init__(
        self, largest: Lowered | None = None, sizes: OpenSizes | None = None, grids: Sequence[Grid] = ()
    ) -> None:
        self.missing: QuantizationError | None = None
        self._largest, self.grids = largest, grids
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
        sides = self._sides(found.terms)
        whole = largest[: np.prod(sides, dtype=np.int64)].reshape(sides)
        if not all(agree(one, whole) for one in found.arrays):
            raise refusal
        table, rows = shortened(whole)
        return [Cut(layer, name, self._stored(table, end), table.shape, found.terms, rows)]

    def stretch(
        self, layer: int, name: str, found: Iterable[Laid], end: int, refusal: QuantizationError
    ) -> list[Stretched]:
        """Return how a constant is a table of the model that is resized to a map, as ``cut`` does.

        Raises ``refusal`` where it is none.
        """
        for one in found if self.grids else ():
            if self._largest is None:
                self.missing = self.missing or refusal
                return []
            rows, columns = self._sides((one.rows, one.columns))
            first = one.alone * one.channels
            largest = content_of(self._largest, layer, name).view("<f4")[: first + rows * columns * one.channels]
            if not np.array_equal(largest[:first], one.first):
                continue
            behind = table_behind(one, largest[first:].reshape(rows, columns, one.channels), self.grids)
            if behind is not None:
                kind, table = behind
                shape = (table.shape[0], table.shape[1], table.shape[2])
                begin = self._stored(np.concatenate([one.first, table.ravel()]).view("<u4"), end)
                return [Stretched(layer, name, begin, one.alone, shape, kind, one.rows, one.columns)]
        raise refusal

    def _sides(self, terms: Sequence[Terms]) -> list[int]:
        return [int(np.dot(each, self._powers)) for each in terms]

    def _stored(self, table: Words, end: int) -> int:
        """Add a table after constants that ``end`` there; return where it begins."""
        if table.nbytes > _MOST_BYTES:
            raise QuantizationError(
                f"[sizes] max: a table of the largest size takes {table.nbytes >> 20} MB, more than "
                f"{_MOST_BYTES >> 20}",
                hint="lower max",
            )
        end = max(end, *(begin + one.nbytes for begin, one in self._found), 0)
        begin = end + -end % _ALIGNED
        self._found.append((begin, table))
        return begin

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
