"""Which of several ways a layer is lowered in, where that depends on the sizes of tensors.

The typical size of a model for inputs of any size makes the choices. The programs of its other sizes have the same, so
that they differ in numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import numpy as np
import numpy.typing as npt

from cpupack.stages.quantize.native.program import Program


class Way(Enum):
    """What is chosen."""

    ROW = "the dimension that the rows of a function are of"
    MOVES = "which moves of a list are joined"
    HEADS = "whether attention is one layer"


Made = Mapping[tuple[Way, int], int]
"""What was chosen, by the place of the layer that was next."""
Tables = Mapping[int, npt.NDArray[np.float32]]


class Choices:
    """The choices of a program. Those that are ``given`` come before its own.

    ``tables`` are constants of the largest size, by the place of their layer: others store these in place of their own
    first values.
    """

    def __init__(self, program: Program, given: Made | None = None, tables: Tables | None = None) -> None:
        self.made: dict[tuple[Way, int], int] = {}
        self._program, self._given, self._tables = program, given or {}, tables or {}

    def given(self, way: Way) -> int | None:
        """Return what is given for the next layer."""
        return self._given.get((way, len(self._program.layers)))

    def whole(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what the next layer stores for a constant."""
        table = self._tables.get(len(self._program.layers))
        longer = table is not None and len(table) >= array.size and np.array_equal(table[: array.size], array.ravel())
        return table if table is not None and longer else array

    def keep(self, way: Way, chosen: int) -> int:
        """Keep what was chosen for the next layer, and return it."""
        self.made[way, len(self._program.layers)] = chosen
        return chosen
