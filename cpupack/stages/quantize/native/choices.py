"""Which of several ways a layer is lowered in, where that depends on the sizes of tensors.

The typical size of a model for inputs of any size makes the choices, and the largest one those of the ranges of
constants that grow with it. The programs of all sizes have the same, so that they differ in numbers alone.
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
    PERIOD = "every how many of them"
    RUNS = "of how many in a row"
    HEADS = "whether attention is one layer"
    LOW = "the least value of a constant that is laid out"
    HIGH = "the greatest one"


Made = Mapping[tuple[Way, int], float]
"""What was chosen, by the place of the layer that was next."""
Tables = Mapping[int, npt.NDArray[np.float32]]


class Choices:
    """The choices of a program. Those that are ``given`` come before its own.

    ``tables`` are constants of the largest size, by the place of their layer: others store these in place of their own
    first values.
    """

    def __init__(self, program: Program, given: Made | None = None, tables: Tables | None = None) -> None:
        self.made: dict[tuple[Way, int], float] = {}
        self._program, self._given, self._tables = program, given or {}, tables or {}

    def given(self, way: Way) -> int | None:
        """Return what is given for the next layer."""
        found = self._given.get((way, len(self._program.layers)))
        return None if found is None else int(found)

    def span(self, low: float, high: float) -> tuple[float, float]:
        """Return the range that the next layer has for a constant of values from ``low`` to ``high``."""
        place = len(self._program.layers)
        low, high = self._given.get((Way.LOW, place), low), self._given.get((Way.HIGH, place), high)
        self.made |= {(Way.LOW, place): low, (Way.HIGH, place): high}
        return low, high

    def whole(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what the next layer stores for a constant."""
        table = self._tables.get(len(self._program.layers))
        longer = table is not None and len(table) >= array.size and np.array_equal(table[: array.size], array.ravel())
        return table if table is not None and longer else array

    def keep(self, way: Way, chosen: int) -> int:
        """Keep what was chosen for the next layer, and return it."""
        self.made[way, len(self._program.layers)] = chosen
        return chosen


def without_spans(made: Made) -> Made:
    """Return choices without the ranges of constants."""
    return {key: value for key, value in made.items() if key[0] not in (Way.LOW, Way.HIGH)}


def spans_of(made: Made) -> Made:
    """Return the ranges of constants among choices."""
    return {key: value for key, value in made.items() if key[0] in (Way.LOW, Way.HIGH)}


def without_periods(made: Made) -> Made:
    """Return choices without every how many moves are joined."""
    return {key: value for key, value in made.items() if key[0] not in (Way.PERIOD, Way.RUNS)}
