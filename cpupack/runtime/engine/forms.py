"""A form: the program of the greatest length of a sample, and what changes in it from one length to the next.

Header, buffers, layers and the constants that say how a layer walks are whole numbers. Each of them changes by the same
step for each position that a sample has more. So one program, and these steps, are the programs of all lengths. Where a
layer has values for pairs of positions, numbers are products of two lengths: then steps change too, by a bend. Weights
and tables are the same for all, and are in memory once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .program_format import BUFFER, HEADER, LAYER

ALIGNMENT = 64
OFFSETS = ("weights", "scales", "biases", "table")
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """Where a block of bytes has a form: the first ``size`` bytes of the program, and as many with ``steps``.

    The program of the greatest length begins the block. The ``size`` bytes end with the constants that change. With
    ``bends`` as many bytes follow the steps. A number n of the greatest length is
    n + step * away + bend * away * (away + 1) / 2 for a sample with ``away`` positions more: a negative number.
    """

    size: int
    steps: int
    bends: bool = False

    def __post_init__(self) -> None:
        if self.size < HEADER.itemsize or self.size % ALIGNMENT or self.steps % 4 or self.steps < self.size:
            raise ValueError(f"a form has {self.size} bytes, and steps at {self.steps}")

    def room(self, count: int) -> int:
        """Return the bytes that the programs of ``count`` lengths take before the block; the last one is in it."""
        return self.size * (count - 1)

    def spread(self, memory: Bytes, values: tuple[int, ...]) -> None:
        """Write the programs of these lengths, the greatest one's excepted, to the room before the block.

        ``memory`` is that room and the block. Raises ValueError where the block has no such form.
        """
        room = self.room(len(values))
        block = memory[room:]
        if self.steps + self.size * (1 + self.bends) > block.size:
            raise ValueError("a form goes beyond its end")
        words = block[: self.size].view("<i4")
        steps = block[self.steps : self.steps + self.size].view("<i4")
        bends = block[self.steps + self.size : self.steps + 2 * self.size].view("<i4") if self.bends else None
        for number, value in enumerate(values[:-1]):
            own, away = memory[self.size * number : self.size * (number + 1)], value - values[-1]
            own.view("<i4")[:] = words + steps * np.int32(away)
            if bends is not None:
                own.view("<i4")[:] += bends * np.int32(away * (away + 1) // 2)
            self._find_shared(own, room - self.size * number)

    def _find_shared(self, own: Bytes, distance: int) -> None:
        """Have the layers of a program find the constants that all share, which begin ``distance`` bytes later."""
        layers, constants = layers_of(own)
        changing = self.size - constants
        for name in OFFSETS:
            found = layers[name]
            layers[name] = np.where(found < changing, found, found + distance)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``from_dict`` reads them back."""
        return {"size": self.size, "steps": self.steps} | ({"bends": True} if self.bends else {})

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Form:
        """Read what ``to_dict`` wrote. Raises ValueError, KeyError or TypeError on damage."""
        return cls(int(raw["size"]), int(raw["steps"]), bends=bool(raw.get("bends", False)))


def layers_of(program: Bytes) -> tuple[npt.NDArray[Any], int]:
    """Return the layers of a program as a view, and where its constants begin. Raises ValueError on damage."""
    header = program[: HEADER.itemsize].view(HEADER)[0]
    buffers, layers, constants = int(header["buffers"]), int(header["layers"]), int(header["constants"])
    first = HEADER.itemsize + buffers * BUFFER.itemsize
    end = first + layers * LAYER.itemsize
    if buffers < 0 or layers < 0 or end > program.size:
        raise ValueError("the layers of a program go beyond its end")
    return program[first:end].view(LAYER), constants
