"""The sizes of images that a package takes, where it takes more than one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, IntegrityError

if TYPE_CHECKING:
    from .manifest import Manifest

SIDES = ("height", "width")
Terms = tuple[int, int, int, int]
"""``(a, b, c, d)`` of a number that is ``a + b * rows + c * columns + d * rows * columns``, where rows and columns are
the height and the width in multiples of what the model takes."""


@dataclass(frozen=True)
class OpenSizes:
    """``least``, ``most`` and ``multiple`` are height and width in pixels: every multiple between is taken.

    ``outputs`` has the shape of each output of a model that gives several, ``()`` for one, whose shape is the engine's.
    """

    least: tuple[int, int]
    most: tuple[int, int]
    multiple: tuple[int, int]
    outputs: tuple[tuple[Terms, ...], ...] = ()

    def __post_init__(self) -> None:
        for low, high, step in zip(self.least, self.most, self.multiple, strict=True):
            if not 1 <= step <= low <= high or low % step or high % step:
                raise ValueError(f"sizes from {self.least} to {self.most} are no multiples of {self.multiple}")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> OpenSizes:
        """Read what ``to_dict`` wrote. Raises ValueError, KeyError or TypeError on damage."""
        outputs = tuple(tuple(terms_of(one) for one in each) for each in raw.get("outputs", ()))
        return cls(_pair(raw["least"]), _pair(raw["most"]), _pair(raw["multiple"]), outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        found: dict[str, Any] = {
            "least": list(self.least), "most": list(self.most), "multiple": list(self.multiple)
        }  # fmt: skip
        return found | ({"outputs": [[list(one) for one in each] for each in self.outputs]} if self.outputs else {})

    def shapes(self, height: int, width: int) -> tuple[tuple[int, ...], ...]:
        """Return the shape of each of ``outputs`` for an image of a size."""
        rows, columns = height // self.multiple[0], width // self.multiple[1]
        return tuple(
            tuple(a + b * rows + c * columns + d * rows * columns for a, b, c, d in each) for each in self.outputs
        )

    def takes(self, height: int, width: int) -> bool:
        """Return whether the model takes images of a size as they are."""
        given = zip((height, width), self.least, self.most, self.multiple, strict=True)
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
        return ", ".join(f"{name} {self.side_text(side)}" for side, name in enumerate(SIDES))


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
    a, b, c, d = (int(each) for each in raw)
    return a, b, c, d


def _pair(raw: Any) -> tuple[int, int]:
    first, second = raw
    if not all(type(each) is int for each in (first, second)):
        raise ValueError(f"{raw!r} is no height and width")
    return first, second
