"""Inputs with named dimensions of a model that takes rows, and the size that stands at the end of each row.

Rows of two sizes may have the same number of values: an image of 16 x 32 pixels and one of 32 x 16. So a row of inputs
with names ends with one value more for each name, which is its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class OpenInput:
    """A sample of the typical size has ``shape``. ``names`` has the name of each dimension, "" for a number."""

    shape: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.names) or not all(each >= 1 for each in self.shape):
            raise ValueError(f"an input of the shape {self.shape} has the names {self.names}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"shape": list(self.shape), "names": list(self.names)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> OpenInput:
        """Read what ``to_dict`` wrote. Raises ValueError, KeyError or TypeError on damage."""
        return cls(tuple(int(each) for each in raw["shape"]), tuple(str(each) for each in raw["names"]))


def names_of(inputs: Sequence[Any]) -> tuple[str, ...]:
    """Return the different names of inputs in order. Each input has ``names``."""
    return tuple(dict.fromkeys(name for each in inputs for name in each.names if name))


def inputs_with_names(specs: Sequence[Any]) -> tuple[OpenInput, ...]:
    """Return what specs of tensors say of shapes and names."""
    return tuple(OpenInput(each.shape, each.names or ("",) * len(each.shape)) for each in specs)


def typical_size(inputs: Sequence[Any]) -> tuple[int, ...]:
    """Return the size that inputs have: each has a ``shape`` and ``names``."""
    sides: dict[str, int] = {}
    for each in inputs:
        sides |= {name: side for name, side in zip(each.names, each.shape, strict=bool(each.names)) if name}
    found = tuple(sides[name] for name in names_of(inputs))
    return found if len(found) > 1 else (1, *found)


def size_of_row(row: npt.NDArray[Any], names: int) -> tuple[int, ...]:
    """Return the size that a row ends with. What is no whole number is 0, which no model takes."""
    found = tuple(int(each) if 1 <= each == np.rint(each) else 0 for each in row[-names:].tolist())
    return found if names > 1 else (1, *found)
