"""A program that was lowered for one size, and its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.runtime.engine.program_format import BUFFER, HEADER, LAYER, Op
from cpupack.runtime.engine.sizes import head_bytes

Bytes = npt.NDArray[np.uint8]
_USED = {
    Op.CONV: ("weights", "scales", "biases", "table"),
    Op.DEPTHWISE: ("weights", "scales", "biases", "table"),
    Op.INPUT_PIXELS: (),
    Op.INPUT_FLOAT: (),
    Op.MAX_POOL: (),
    Op.AVERAGE_POOL: (),
    Op.GLOBAL_AVERAGE: (),
    Op.OUTPUT: (),
    Op.MOVE: ("weights",),
    Op.RESAMPLE: ("weights", "scales"),
    Op.DEQUANTIZE: (),
    Op.FLOAT_INPUT: (),
}
ALL_CONSTANTS = ("weights", "scales", "biases", "table")


@dataclass(frozen=True)
class Lowered:
    """A program for ``counts`` multiples of each side, and the shape of a sample's result in memory."""

    counts: tuple[int, ...]
    program: bytes
    result: tuple[int, ...]

    @property
    def parts(self) -> tuple[Any, Any, Any, Bytes]:
        """Header, buffers, layers and constants."""
        whole = np.frombuffer(self.program, np.uint8)
        header = whole[: HEADER.itemsize].view(HEADER)
        first = HEADER.itemsize + int(header["buffers"][0]) * BUFFER.itemsize
        layers = whole[first : head_bytes(whole)].view(LAYER)
        return header, whole[HEADER.itemsize : first].view(BUFFER), layers, whole[int(header["constants"][0]) :]


def constant_names(op: Op) -> tuple[str, ...]:
    """Return the constants that an operation has."""
    return _USED.get(op, ALL_CONSTANTS)


def extent(layers: Any, constants: Bytes, begin: int) -> int:
    """Return the bytes from a constant to the next one."""
    later = [int(each) for name in ALL_CONSTANTS for each in layers[name] if each > begin]
    return min(later, default=len(constants)) - begin


def content_of(lowered: Lowered, number: int, name: str) -> Bytes:
    """Return a constant of a layer, and what fills it up."""
    _, _, layers, constants = lowered.parts
    begin = int(layers[number][name])
    return constants[begin : begin + extent(layers, constants, begin)]
