"""Which of several ways a layer is lowered in, where that depends on the sizes of tensors.

The typical size of a model for inputs of any size makes the choices. The programs of its other sizes have the same, so
that they differ in numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from cpupack.stages.quantize.native.program import Program


class Way(Enum):
    """What is chosen."""

    ROW = "the dimension that the rows of a function are of"
    MOVES = "which moves of a list are joined"
    HEADS = "whether attention is one layer"


Made = Mapping[tuple[Way, int], int]
"""What was chosen, by the place of the layer that was next."""


class Choices:
    """The choices of a program. Those that are ``given`` come before its own."""

    def __init__(self, program: Program, given: Made | None = None) -> None:
        self.made: dict[tuple[Way, int], int] = {}
        self._program, self._given = program, given or {}

    def given(self, way: Way) -> int | None:
        """Return what is given for the next layer."""
        return self._given.get((way, len(self._program.layers)))

    def keep(self, way: Way, chosen: int) -> int:
        """Keep what was chosen for the next layer, and return it."""
        self.made[way, len(self._program.layers)] = chosen
        return chosen
