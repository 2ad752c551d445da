"""The sizes of images or the lengths of sequences that a package takes, where it takes more than one."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, IntegrityError
from .open_inputs import OpenInput, names_of, size_of_row, typical_size

if TYPE_CHECKING:
    from .manifest import Manifest

SIDES = ("height", "width")
Size = tuple[int, ...]
"""Height and width, or a number for each name. With one name alone it is ``(1, number)``."""
Terms = tuple[int, ...]
"""How a number changes with the size: it is the sum of these terms, each times one of ``OpenSizes.powers``. Of images
they are ``(a, b, c, d)`` of ``a + b * rows + c * columns + d * rows * columns``, where rows and columns are the height
and the width in multiples of what the model takes. With one name the number is ``a + c * columns + d * columns**2``."""
IMAGE_AXES = (1, 2)


@dataclass(frozen=True)
class OpenSizes:
    """``least``, ``most`` and ``multiple`` are height and width in pixels: every multiple between is taken.

    ``outputs`` has the shape of each output of a model that gives several, ``()`` for one, whose shape is the engine's.
    Of an array that is no image, ``names`` are those of its one or two dimensions that may differ, at ``axes`` of a
    sample, and ``shape`` is a sample of the typical size. With one name the first side is always 1, and has no axis.
    Of a model that takes rows of its inputs, ``inputs`` are these in place of ``axes`` and ``shape``.
    """

    least: Size
    most: Size
    multiple: Size
    outputs: tuple[tuple[Terms, ...], ...] = ()
    names: tuple[str, ...] = SIDES
    axes: tuple[int, ...] = IMAGE_AXES
    shape: tuple[int, ...] = ()
    inputs: tuple[OpenInput, ...] = ()

    def __post_init__(self) -> None:
        if self.inputs:
            if self.axes or self.shape or names_of(self.inputs) != self.names:
                raise ValueError(f"the names {self.names} are not those of the inputs")
        elif not 1 <= len(self.names) == len(self.axes) <= 2 or not (self.shape or self.names == SIDES):
            raise ValueError(f"the dimensions {self.names} of {self.shape} are at {self.axes}")
        if self.shape and not all(0 <= axis < len(self.shape) for axis in self.axes):
            raise ValueError(f"a sample of the shape {self.shape} has no dimensions {self.axes}")
        if len(self.names) == 1 and (self.least[0], self.most[0], self.multiple[0]) != (1, 1, 1):
            raise ValueError(f"{self.names[0]} is one dimension, and {self.most} are two")
        if len(self.least) != max(2, len(self.names)):
            raise ValueError(f"{self.least} has no number for each dimension of {self.names}")
        for low, high, step in zip(self.least, self.most, self.multiple, strict=True):
            if not 1 <= step <= low <= high or low % step or high % step:
                raise ValueError(f"sizes from {self.least} to {self.most} are no multiples of {self.multiple}")
        if any(len(one) != len(self.products) for each in self.outputs for one in each):
            raise ValueError(f"a number that changes with the size has {len(self.products)} terms")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> OpenSizes:
        """Read what ``to_dict`` wrote. Raises ValueError, KeyError or TypeError on damage."""
        outputs = tuple(tuple(terms_of(one) for one in each) for each in raw.get("outputs", ()))
        names = tuple(str(each) for each in raw.get("names", SIDES))
        axes = tuple(int(each) for each in raw.get("axes", IMAGE_AXES))
        shape = tuple(int(each) for each in raw.get("shape", ()))
        inputs = tuple(OpenInput.from_dict(each) for each in raw.get("inputs", ()))
        least, most, multiple = (_numbers(raw[each]) for each in ("least", "most", "multiple"))
        return cls(least, most, multiple, outputs, names, () if inputs else axes, shape, inputs)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        found: dict[str, Any] = {
            "least": list(self.least), "most": list(self.most), "multiple": list(self.multiple)
        }  # fmt: skip
        if self.shape:
            found |= {"names": list(self.names), "axes": list(self.axes), "shape": list(self.shape)}
        if self.inputs:
            found |= {"names": list(self.names), "inputs": [each.to_dict() for each in self.inputs]}
        return found | ({"outputs": [[list(one) for one in each] for each in self.outputs]} if self.outputs else {})

    @property
    def is_image(self) -> bool:
        """Whether a sample is an image, ``(channels, height, width)``."""
        return not self.shape and not self.inputs

    @cached_property
    def products(self) -> tuple[tuple[int, ...] | None, ...]:
        """Return the places in a size whose numbers ``powers`` multiplies for each term, None for a term without use.

        Names have products with each other where one input has both, or where each is the only one of an input, as
        queries and keys. Such a name has a square: attention of all positions to all.
        """
        if len(self.names) == 1:
            return (), None, (1,), (1, 1)
        own = [tuple(sorted({self.names.index(name) for name in each.names if name})) for each in self.inputs]
        alone = {each[0] for each in own if len(each) == 1}
        groups = [*own, tuple(sorted(alone))] if self.inputs else [(0, 1)]
        pairs = {pair for group in groups for pair in combinations(group, 2)} | {(each, each) for each in alone}
        return (), *((each,) for each in range(len(self.names))), *sorted(pairs)

    @property
    def ranges(self) -> dict[str, tuple[int, int, int]]:
        """The least and the greatest number of each name, and what it is a multiple of."""
        sides = list(zip(self.least, self.most, self.multiple, strict=True))
        return dict(zip(self.names, sides[-len(self.names) :], strict=True))

    def powers(self, size: Sequence[int]) -> list[int]:
        """Return what the terms of a number are multiplied by for a size."""
        counts = [each // step for each, step in zip(size, self.multiple, strict=True)]
        return [0 if each is None else math.prod(counts[place] for place in each) for each in self.products]

    def size_of(self, shape: Sequence[int]) -> Size:
        """Return both sides of a sample of a shape. The first side of a sample with one dimension is 1."""
        sides = [shape[axis] for axis in self.axes]
        return (sides[0], sides[1]) if len(sides) == 2 else (1, sides[0])

    def size_in(self, batch: npt.NDArray[Any]) -> Size:
        """Return the size of the samples of a batch: images ``(n, channels, height, width)``, arrays, or rows."""
        if self.inputs:
            return size_of_row(batch[0], len(self.names))
        return self.size_of([int(each) for each in batch.shape[1:]])

    def typical(self, shape: Sequence[int]) -> Size:
        """Return the typical size, of which a sample has this shape."""
        return typical_size(self.inputs) if self.inputs else self.size_of(shape)

    def shape_at(self, shape: Sequence[int], size: Size) -> tuple[int, ...]:
        """Return the shape of a sample with other sides."""
        found = list(shape)
        for axis, side in zip(self.axes, size[-len(self.axes) :], strict=True):
            found[axis] = side
        return tuple(found)

    def input_at(self, number: int, size: Size) -> tuple[int, ...]:
        """Return the shape of a sample of one of ``inputs`` at a size."""
        sides = dict(zip(self.names, size[-len(self.names) :], strict=True))
        own = self.inputs[number]
        return tuple(sides.get(name, given) for name, given in zip(own.names, own.shape, strict=True))

    def sides(self, number: int, shape: Sequence[int]) -> tuple[int | range, ...]:
        """Return the shape of a sample of an input, with all the numbers that a side may have where it may differ."""
        found: list[int | range] = list(shape)
        sides = [
            low if low == high else range(low, high + 1, step)
            for low, high, step in zip(self.least, self.most, self.multiple, strict=True)
        ][-len(self.names) :]
        if self.inputs:
            named = dict(zip(self.names, sides, strict=True))
            return tuple(named.get(name, size) for name, size in zip(self.inputs[number].names, shape, strict=True))
        for axis, side in zip(self.axes, sides, strict=True):
            found[axis] = side
        return tuple(found)

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether a sample of a shape is taken as it is. Only for what is no image."""
        if len(shape) != len(self.shape) or self.shape_at(self.shape, self.size_of(shape)) != tuple(shape):
            return False
        return self.takes(*self.size_of(shape))

    def check(self, dtype: str, shape: Sequence[int]) -> None:
        """Raise InputError for a batch that is not taken as it is. Only for what is no image."""
        got, wanted = f"got {dtype} {tuple(shape)}", f"float32 {self.shape_text(self.shape)} with {self.text()}"
        if dtype != "float32" or not self.fits(shape[1:]):
            missing = "; add the batch dimension: batch[None]" if dtype == "float32" and self.fits(shape) else ""
            raise InputError(f"{got}; expected {wanted}{missing}")
        if not shape[0]:
            raise InputError(f"{got}, an empty batch; expected {wanted} and n >= 1")

    def engine_shape(self, channels: int, size: Size) -> tuple[int, int, int]:
        """Return what the engine reads for a sample of a size: channels, height and width, or values in a row.

        ``channels`` are those of an image.
        """
        if self.inputs:
            values = sum(math.prod(self.input_at(number, size)) for number in range(len(self.inputs)))
            return values + len(self.names), 1, 1
        if self.is_image:
            return channels, size[0], size[1]
        shape = self.shape_at(self.shape, size)
        return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (math.prod(shape), 1, 1)

    def shape_text(self, shape: Sequence[int]) -> str:
        """Return the shape of a batch of samples in words: ``(n, 80, time)``."""
        words = ["n", *map(str, shape)]
        for name, axis, low, high in zip(
            self.names, self.axes, self.least[-len(self.axes) :], self.most[-len(self.axes) :], strict=True
        ):
            words[1 + axis] = name if low != high else str(low)
        return f"({', '.join(words)})"

    def shapes(self, size: Size) -> tuple[tuple[int, ...], ...]:
        """Return the shape of each of ``outputs`` for a size."""
        powers = self.powers(size)
        return tuple(tuple(sum(map(operator.mul, one, powers)) for one in each) for each in self.outputs)

    def takes(self, *size: int) -> bool:
        """Return whether the model takes inputs of a size as they are."""
        given = zip(size, self.least, self.most, self.multiple, strict=True)
        return all(low <= size <= high and size % step == 0 for size, low, high, step in given)

    def filled(self, height: int, width: int) -> tuple[int, int]:
        """Return the least size that holds an image. It may be larger than ``most``."""
        given = zip((height, width), self.least, self.multiple, strict=True)
        rows, columns = (max(low, -(-size // step) * step) for size, low, step in given)
        return rows, columns

    def fill(self, pixels: npt.NDArray[np.uint8], colour: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return pixels ``(height, width, channels)`` with a border at the bottom and the right, as the model takes
        them. Raises InputError for an image that is larger than the largest.
        """
        height, width = pixels.shape[:2]
        size = self.filled(height, width)
        if size == (height, width) and self.takes(*size):
            return pixels
        if not self.takes(*size):
            raise InputError(
                f"the image has {height} x {width} pixels (height x width), and the model takes up to "
                f"{self.most[0]} x {self.most[1]}: make it smaller"
            )
        whole = np.empty((*size, pixels.shape[2]), np.uint8)
        whole[:] = colour
        whole[:height, :width] = pixels
        return whole

    def side_text(self, side: int) -> str:
        """Return the sizes of one side in words."""
        low, high, step = self.least[side], self.most[side], self.multiple[side]
        return f"{low}" if low == high else f"{low} to {high}" + (f" in steps of {step}" if step > 1 else "")

    def text(self) -> str:
        """Return the sizes in words."""
        first = len(self.least) - len(self.names)
        return ", ".join(f"{name} {self.side_text(side)}" for side, name in enumerate(self.names, first))

    def size_text(self, size: Size) -> str:
        """Return one size in words: ``512 x 1024`` of an image, ``time 16000`` of what has a name."""
        if self.is_image:
            return f"{size[0]} x {size[1]}"
        sides = zip(self.names, size[-len(self.names) :], strict=True)
        return ", ".join(f"{name} {side}" for name, side in sides)


def open_sizes_of(manifest: Manifest) -> OpenSizes | None:
    """Return the sizes that a package takes, None where it is one. Raises IntegrityError when they are damaged."""
    if manifest.sizes is None:
        return None
    try:
        return OpenSizes.from_dict(manifest.sizes)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"the sizes in the manifest are damaged: {error}") from error


def terms_of(raw: Sequence[Any]) -> Terms:
    """Return the terms of a number from a list of them. Raises ValueError or TypeError on damage."""
    return tuple(int(each) for each in raw)


def _numbers(raw: Any) -> Size:
    if not isinstance(raw, list | tuple) or len(raw) < 2 or not all(type(each) is int for each in raw):
        raise ValueError(f"{raw!r} is no height and width, and no number for each name")
    return tuple(raw)
