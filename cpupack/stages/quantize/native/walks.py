"""Views of float32 buffers, and how a layer in FP32 walks through its operands (``struct cpupack_walk``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.stages.quantize.native.program import Buffer

DIMENSIONS = 6
REGISTERS = 4
WALK = np.dtype(
    [
        ("kind", "<i4"), ("kept", "<i4"), ("instructions", "<i4"), ("sizes", "<i4", DIMENSIONS),
        ("out_first", "<i4"), ("out_steps", "<i4", DIMENSIONS), ("in_first", "<i4"), ("in_steps", "<i4", DIMENSIONS),
        ("in2_first", "<i4"), ("in2_steps", "<i4", DIMENSIONS),
    ]
)  # fmt: skip
INSTRUCTION = np.dtype([("function", "<i4"), ("to", "<i4"), ("a", "<i4"), ("b", "<i4"), ("number", "<f4")])
_WIDTH = 1024
WIDEST = 4 * _WIDTH
"""Values of a pixel."""
_LONGEST_SIDE = 1 << 22
"""As ``values.py`` has it."""
MOST_VALUES = 1 << 22
"""A quarter of ``MOST_CHANNELS`` of kernels/engine/validate.c: float32 values of a pixel."""


class Function(IntEnum):
    """What an instruction computes (``enum cpupack_function``)."""

    COPY = 0
    ADD = 1
    SUBTRACT = 2
    MULTIPLY = 3
    DIVIDE = 4
    MAXIMUM = 5
    MINIMUM = 6
    ADD_NUMBER = 7
    MULTIPLY_NUMBER = 8
    FROM_NUMBER = 9
    DIVIDE_NUMBER = 10
    AT_LEAST = 11
    AT_MOST = 12
    ABSOLUTE = 13
    ROOT = 14
    EXPONENTIAL = 15
    LOGARITHM = 16
    TANH = 17
    ERF = 18
    SIGMOID = 19
    FLOOR = 20
    CEILING = 21
    TRUNCATE = 22
    ROUND = 23
    LESS = 24
    EQUAL = 25
    DIVIDE_BY_NUMBER = 26
    NUMBER = 27
    GELU = 28
    GELU_TANH = 29
    SELECT = 30
    GELU_NEAR = 31
    GELU_TANH_NEAR = 32
    SINE = 33
    COSINE = 34


class Reduction(IntEnum):
    """``enum cpupack_reduction``."""

    SUM = 0
    ABSOLUTES = 1
    SQUARES = 2
    MAXIMUM = 3
    MINIMUM = 4
    PLACE_OF_MAXIMUM = 5
    PLACE_OF_MINIMUM = 6
    ACROSS = 16


class Norm(IntEnum):
    """``enum cpupack_norm``."""

    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LAYER = 2
    ROOT_MEAN_SQUARE = 3
    FACTORS = 4
    RUNNING_SUM = 5
    RUNNING_PRODUCT = 6
    RUNNING_MAXIMUM = 7
    RUNNING_MINIMUM = 8


class Put(IntEnum):
    """``enum cpupack_put``."""

    VALUE = 0
    SUM = 1
    PRODUCT = 2
    MAXIMUM = 3
    MINIMUM = 4


class Sampling(IntEnum):
    """``enum cpupack_sampling``, and torch's numbers."""

    LINEAR = 0
    NEAREST = 1
    CUBIC = 2


class Surroundings(IntEnum):
    """``enum cpupack_surroundings``, and torch's numbers."""

    ZEROS = 0
    BORDER = 1
    MIRROR = 2


class Windows(IntEnum):
    """``enum cpupack_windows``."""

    DENSE = 0
    TRANSPOSED = 1
    DEPTHWISE = 2
    MAXIMUM = 3
    AVERAGE = 4


@dataclass(frozen=True)
class Instruction:
    """One function of the registers ``a`` and ``b``, or of ``a`` and ``number``, into the register ``to``."""

    function: Function
    to: int = 0
    a: int = 0
    b: int = 1
    number: float = 0.0


@dataclass(frozen=True)
class View:
    """Float32 values of a buffer in the shape of a sample: value i is ``first`` + the sum of i * ``steps``.

    ``buffer`` is None for values that go to the caller.
    """

    buffer: int | None
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    first: int = 0

    @property
    def size(self) -> int:
        """Values of one sample."""
        return math.prod(self.shape)

    def memory_places(self) -> torch.Tensor:
        """Return where each value lies in the buffer, int64 of the view's shape."""
        places = torch.tensor(self.first)
        for size, step in zip(self.shape, self.steps, strict=True):
            places = places[..., None] + torch.arange(size) * step
        return places

    def permuted(self, order: Sequence[int]) -> View:
        """Return the view with its dimensions in another order."""
        return View(self.buffer, tuple(self.shape[i] for i in order), tuple(self.steps[i] for i in order), self.first)

    def expanded(self, shape: tuple[int, ...]) -> View:
        """Return the view with values repeated along dimensions of size one, and new ones in front."""
        lead = len(shape) - len(self.shape)
        steps = tuple(
            0 if place < lead or (self.shape[place - lead] == 1 and size != 1) else self.steps[place - lead]
            for place, size in enumerate(shape)
        )
        return View(self.buffer, shape, steps, self.first)

    def of_last(self, *sizes: int) -> View:
        """Return the view with its last dimension cut into several."""
        step, steps = self.steps[-1], list[int]()
        for size in reversed(sizes):
            steps.insert(0, step)
            step *= size
        return View(self.buffer, (*self.shape[:-1], *sizes), (*self.steps[:-1], *steps), self.first)

    def of_elements(self, elements: torch.Tensor) -> View | None:
        """Return elements of ``(height, width, channels)``, counted by channel, row and column, as a view.

        None where they have no steps.
        """
        positions, channels = self.shape[0] * self.shape[1], self.shape[2]
        places = elements % positions * channels + elements // positions
        found = regular_steps(places)
        return View(self.buffer, tuple(places.shape), found[1], found[0]) if found is not None else None


def regular_steps(places: torch.Tensor) -> tuple[int, tuple[int, ...]] | None:
    """Return the first of the places of a tensor's values, and their steps; None where they have none."""
    first = int(places.flatten()[0])
    steps = tuple(
        int(places.select(axis, 1).flatten()[0]) - first if size > 1 else 0 for axis, size in enumerate(places.shape)
    )
    expected = torch.tensor(first)
    for axis, step in enumerate(steps):
        line = torch.arange(places.shape[axis]) * step
        expected = expected + line.reshape(-1, *[1] * (places.ndim - 1 - axis))
    return (first, steps) if torch.equal(expected.expand(places.shape), places) else None


_LEAST_RUN = 8


def nested_steps(places: npt.NDArray[np.int64]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return sizes and steps of the dimensions in which values at ``places``, one after the other, are regular.

    None where they have no such steps, where a step is negative, or where fewer than eight values lie in a row.
    """
    sizes: list[int] = []
    steps: list[int] = []
    while len(places) > 1:
        step = int(places[1] - places[0])
        breaks = np.flatnonzero(np.diff(places) != step)
        run = int(breaks[0]) + 1 if breaks.size else len(places)
        if step < 0 or len(places) % run or len(sizes) == DIMENSIONS or (not sizes and run < _LEAST_RUN):
            return None
        rows = places.reshape(-1, run)
        if not np.array_equal(rows, rows[:, :1] + np.arange(run) * step):
            return None
        sizes.insert(0, run)
        steps.insert(0, step)
        places = rows[:, 0]
    return (tuple(sizes), tuple(steps)) if sizes else None


@dataclass(frozen=True)
class Fixed:
    """Float32 values that belong to the model, in the shape of a sample."""

    values: torch.Tensor

    def stored(self, shape: tuple[int, ...], grid: Grid | None = None) -> tuple[npt.NDArray[np.float32], View]:
        """Return the array to store, and how its values are expanded to ``shape``."""
        values = self.values
        for axis, step in enumerate(values.stride()):
            if step == 0 and values.shape[axis] > 1:
                values = values.narrow(axis, 0, 1)
        array = np.ascontiguousarray(values.detach().float().numpy())
        whole = array if grid is None else grid.spread(array)
        return whole, View(None, tuple(array.shape), dense_steps(whole.shape)).expanded(shape)


UNUSED = np.uint32(0x7FC0CAFE)
"""Where a stored constant has no value: a NaN that no model has."""


@dataclass(frozen=True)
class Grid:
    """How a constant with values for pairs of positions is stored, so that a shorter one begins each row of a longer.

    Rows of ``length`` values are stored as rows of ``pitch`` values, more than the greatest length has.
    """

    length: int
    pitch: int

    def spread(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values of 32 bits with each dimension but the outermost one filled up, where it has a length."""
        outermost = next((axis for axis, size in enumerate(array.shape) if size > 1), 0)
        sizes = [
            self.pitch if size == self.length and axis > outermost else size for axis, size in enumerate(array.shape)
        ]
        whole = np.full(sizes, UNUSED, np.uint32)
        whole[tuple(slice(size) for size in array.shape)] = array.view(np.uint32)
        return whole.view(array.dtype)


def dense_steps(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the steps of values side by side, the last dimension innermost."""
    steps, step = list[int](), 1
    for size in reversed(shape):
        steps.insert(0, step)
        step *= size
    return tuple(steps)


def steps_like(shape: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, ...]:
    """Return the steps of values side by side whose dimensions lie in memory as those of ``steps`` do.

    A dimension along which values are repeated is right around the next one. Innermost, it would have the values of all
    others lie apart.
    """
    repeated = [axis for axis, step in enumerate(steps) if step == 0 and shape[axis] > 1]
    order = sorted(set(range(len(shape))) - set(repeated), key=lambda axis: (-abs(steps[axis]), axis))
    for axis in reversed(repeated):
        order.insert(order.index(axis + 1) if axis + 1 < len(shape) else len(order), axis)
    dense = dense_steps([shape[axis] for axis in order])
    found = [0] * len(shape)
    for place, axis in enumerate(order):
        found[axis] = dense[place]
    return tuple(found)


def float_buffer(shape: Sequence[int]) -> Buffer | None:
    """Return a buffer of float32 values of a shape, None where no buffer has so many.

    Where it can be, a pixel has the values of the last dimension: then the buffer of a text that is longer has more
    pixels, as many for each position (``forms.py``). Else there is one pixel, or one for each index of the first
    dimensions: then all sides are products of the model's sizes (``sizes.py``).
    """
    count, last = math.prod(shape), shape[-1] if shape else 1
    if 1 <= last <= MOST_VALUES and count // last <= _LONGEST_SIDE:
        return Buffer(count // last, 1, 4 * last, 1.0, 0, floats=True)
    for axis in range(len(shape)):
        pixels, values = math.prod(shape[:axis]), math.prod(shape[axis:])
        if pixels <= _LONGEST_SIDE and values <= MOST_VALUES:
            return Buffer(pixels, 1, 4 * values, 1.0, 0, floats=True)
    width = min(count, _WIDTH)
    while -(-count // width) > _LONGEST_SIDE:
        width *= 2
    return Buffer(-(-count // width), width, 4, 1.0, 0, floats=True) if width <= _LONGEST_SIDE else None


class TooManyDimensionsError(Exception):
    """A walk that has more dimensions than the engine counts."""


def merged(shape: Sequence[int], views: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Return sizes and the steps of each operand with neighbouring dimensions joined where all operands allow it."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in views]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        own = [each[axis] for each in views]
        if sizes and all(before[-1] == step * size for before, step in zip(steps, own, strict=True)):
            sizes[-1] *= size
            for before, step in zip(steps, own, strict=True):
                before[-1] = step
        else:
            sizes.append(size)
            for before, step in zip(steps, own, strict=True):
                before.append(step)
    return sizes, steps


def walk_of(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    firsts: Sequence[int],
    *,
    kind: int = 0,
    instructions: Sequence[Instruction] = (),
    row: int = -1,
) -> npt.NDArray[Any]:
    """Return the bytes of a walk: ``groups`` of sizes, each with the steps of result, first and second operand.

    ``row`` is the group that a reduction is over. Raises TooManyDimensionsError.
    """
    count = sum(len(sizes) for sizes, _ in groups)
    if count > DIMENSIONS:
        raise TooManyDimensionsError
    walk = np.zeros(1, WALK)
    walk["kind"], walk["instructions"] = kind, len(instructions)
    walk["sizes"] = 1
    place = DIMENSIONS - count
    for number, (sizes, steps) in enumerate(groups):
        if number == row % len(groups):
            walk["kept"] = place
        for axis, size in enumerate(sizes):
            walk["sizes"][0, place] = size
            for name, own in zip(("out_steps", "in_steps", "in2_steps"), steps, strict=False):
                walk[name][0, place] = own[axis]
            place += 1
    for name, first in zip(("out_first", "in_first", "in2_first"), firsts, strict=False):
        walk[name] = first
    return np.frombuffer(walk.tobytes() + instruction_rows(instructions).tobytes(), np.uint8)


def instruction_rows(instructions: Sequence[Instruction]) -> npt.NDArray[Any]:
    """Return instructions as the engine reads them."""
    return np.array([(each.function, each.to, each.a, each.b, each.number) for each in instructions], INSTRUCTION)
