"""Numbers with names and units: of the whole input, or of each pixel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Labels, Outputs, Shapes, are_heads, in_one_row, in_words, only
from .frame import Frame
from .maps import RegressionMaps, are_maps, map_names, maps_of, result_of
from .spec import TaskSpec

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Value:
    """One number. ``name`` is its label, or ``value`` with its number; ``unit`` may be empty."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Regression:
    """The values of one input, in the order of the outputs."""

    values: tuple[Value, ...]

    def __getitem__(self, name: str) -> float:
        """Return the value of a name. Raises KeyError that lists the names."""
        for one in self.values:
            if one.name == name:
                return one.value
        raise KeyError(f"no value {name!r}; there is {', '.join(one.name for one in self.values)}")

    def to_dict(self) -> dict[str, Any]:
        return {"values": [dataclasses.asdict(one) for one in self.values]}

    def text(self) -> str:
        width = max(len(one.name) for one in self.values)
        return "\n".join(f"  {one.name:<{width}}  {one.value:.6g} {one.unit}".rstrip() for one in self.values)

    def draw(self, image: Image.Image) -> None:
        return None


@dataclass(frozen=True)
class RegressionPresenter:
    """Makes a ``Regression`` of one row, or of those of several heads: each value is output * scale + offset.

    Of maps of numbers it makes ``RegressionMaps``. ``input_size`` is width and height of the model's input.
    """

    spec: TaskSpec
    labels: Labels
    input_size: tuple[int, int] = (1, 1)

    @property
    def needs_frame(self) -> bool:
        return self.spec.maps

    def present(self, outputs: Outputs, frame: Frame | None) -> Regression | RegressionMaps:
        if self.spec.maps:
            maps = maps_of(outputs, frame, self.spec.scale, self.spec.offset)
            return result_of(maps, map_names(self.labels, len(maps)), self.spec.units)
        return self.row(outputs)

    def row(self, outputs: Outputs) -> Regression:
        """Return the values of one row, or of those of several heads."""
        row = np.asarray(in_one_row(outputs), np.float64)
        scale = self.spec.scale or (1.0,) * len(row)
        offset = self.spec.offset or (0.0,) * len(row)
        units = self.spec.units or ("",) * len(row)
        names = self.labels or (("value",) if len(row) == 1 else tuple(f"value {i}" for i in range(len(row))))
        return Regression(
            tuple(
                Value(name, float(number * factor + shift), unit)
                for name, number, factor, shift, unit in zip(names, row, scale, offset, units, strict=True)
            )
        )


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    if are_heads(outputs) or (len(outputs) == 1 and len(only(outputs)) <= 1) or are_maps(outputs):
        return None
    return (
        "needs one output of shape (values,), or several; or maps of numbers of one size, (height, width) or (values, "
        f"height, width); the model has {in_words(outputs)}"
    )
