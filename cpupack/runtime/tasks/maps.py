"""Numbers for every pixel (depth, optical flow, heights): maps in the size of the image, with names and units."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import RunnerError
from .base import Labels, Outputs, Shapes
from .frame import Frame
from .placing import Part

if TYPE_CHECKING:
    from PIL import Image

Range = tuple[float, float]
Floats = npt.NDArray[np.float32]
_OUTER = (1.0, 99.0)
"""Percentiles between which the colours of a drawing lie, so that one pixel does not take all of them."""


@dataclass(frozen=True)
class MapFact:
    """What is in one map: its name and unit, and the least, the greatest and the mean of its finite numbers."""

    name: str
    unit: str
    min: float
    max: float
    mean: float


@dataclass(frozen=True, eq=False)
class RegressionMaps:
    """``values`` is float32 ``(maps, height, width)`` of the original image: a number for each pixel, NaN where the
    crop of the preprocessing left none. ``maps`` says what each of them is."""

    values: Floats
    maps: tuple[MapFact, ...]

    def __getitem__(self, name: str) -> Floats:
        """Return the map ``(height, width)`` of a name. Raises KeyError that lists the names."""
        for number, one in enumerate(self.maps):
            if one.name == name:
                found: Floats = self.values[number]
                return found
        raise KeyError(f"no map {name!r}; there is {', '.join(one.name for one in self.maps)}")

    def npy(self) -> bytes:
        """Return ``values`` as a file of numpy."""
        out = io.BytesIO()
        np.save(out, self.values)
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        _, height, width = self.values.shape
        return {
            "width": width,
            "height": height,
            "maps": [
                {"name": one.name, "unit": one.unit, "min": one.min, "max": one.max, "mean": one.mean}
                for one in self.maps
            ],
            "values_npy": base64.b64encode(self.npy()).decode("ascii"),
        }

    def text(self) -> str:
        _, height, width = self.values.shape
        longest = max(len(one.name) for one in self.maps)
        rows = [
            f"  {one.name:<{longest}}  from {one.min:.6g} to {one.max:.6g} {one.unit}".rstrip()
            + f", mean {one.mean:.6g}"
            for one in self.maps
        ]
        return "\n".join([f"  {width} x {height} pixels", *rows])

    def ranges(self) -> tuple[Range, ...]:
        """Return the numbers at the ends of the colours of each map: those of nearly all of its pixels.

        Where there are numbers below and above 0, it is in the middle.
        """
        return tuple(_range(each) for each in self.values)

    def draw(self, image: Image.Image) -> Image.Image:
        return self.drawn(self.ranges())

    def drawn(self, ranges: Sequence[Range]) -> Image.Image:
        """Return each map in colours from the least to the greatest of its range, with a scale below it."""
        from . import false_colours

        names = [f"{one.name} ({one.unit})" if one.unit else one.name for one in self.maps]
        return false_colours.panels(list(zip(names, self.values, ranges, strict=True)))


def maps_of(outputs: Outputs, frame: Frame | None, scale: Sequence[float], offset: Sequence[float]) -> Floats:
    """Return the maps ``(maps, height, width)`` of all outputs, in their order: output * scale + offset.

    With a frame they have the size of the original image, interpolated between the middles of the output's pixels.
    """
    stacked = np.concatenate([np.asarray(each, np.float64).reshape(-1, *each.shape[-2:]) for each in outputs.values()])
    by_map = (-1, 1, 1)
    values = stacked * np.reshape(scale or (1.0,), by_map) + np.reshape(offset or (0.0,), by_map)
    found: Floats = values.astype(np.float32)
    if frame is None:
        return found
    part = Part.of(frame, found.shape[-2:])
    return np.stack([part.in_whole(part.smooth(each), np.nan) for each in found])


def result_of(values: Floats, names: Sequence[str], units: Sequence[str]) -> RegressionMaps:
    """Return the result for maps ``(maps, height, width)``; ``units`` may be empty.

    Raises RunnerError for a map without any finite number.
    """
    facts = []
    for name, unit, each in zip(names, units or ("",) * len(values), values, strict=True):
        seen = each[np.isfinite(each)].astype(np.float64)
        if not seen.size:
            raise RunnerError(f"no number of the map {name!r} is finite, so nothing can be read from it")
        facts.append(MapFact(name, unit, float(seen.min()), float(seen.max()), float(seen.mean())))
    return RegressionMaps(values, tuple(facts))


def are_maps(outputs: Shapes) -> bool:
    """Return whether each output is a map of numbers ``(height, width)``, or several, all of one size."""
    shapes = list(outputs.values())
    return bool(shapes) and all(len(each) in (2, 3) and each[-2:] == shapes[0][-2:] for each in shapes)


def map_count(outputs: Shapes) -> int:
    """Return how many maps the outputs have together."""
    return sum(shape[0] if len(shape) == 3 else 1 for shape in outputs.values())


def map_names(labels: Labels, count: int) -> tuple[str, ...]:
    """Return the names of maps: the labels, or ``value`` with its number."""
    return labels or (("value",) if count == 1 else tuple(f"value {number}" for number in range(count)))


def _range(values: Floats) -> Range:
    seen = values[np.isfinite(values)]
    if not seen.size:
        return 0.0, 1.0
    low, high = (float(each) for each in np.percentile(seen, _OUTER))
    if low < 0.0 < high:
        low, high = -max(-low, high), max(-low, high)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
