"""Outputs as they are, for models whose outputs no other kind fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from .base import Outputs
from .frame import Frame

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 16


@dataclass(frozen=True, eq=False)
class Raw(Mapping[str, npt.NDArray[Any]]):
    """The outputs of one input by name, without the batch dimension."""

    outputs: Mapping[str, npt.NDArray[Any]]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return an output. Raises KeyError that lists the names."""
        if name not in self.outputs:
            raise KeyError(f"no output {name!r}; there is {', '.join(self.outputs)}")
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def to_dict(self) -> dict[str, Any]:
        return {"outputs": {name: value.tolist() for name, value in self.outputs.items()}}

    def text(self) -> str:
        return "\n".join(f"  {name}  {_summary(value)}" for name, value in self.outputs.items())

    def draw(self, image: Image.Image) -> None:
        return None


@dataclass(frozen=True)
class RawPresenter:
    """Gives the outputs back."""

    needs_frame: bool = False

    def present(self, outputs: Outputs, frame: Frame | None) -> Raw:
        return Raw(dict(outputs))


def _summary(values: npt.NDArray[Any]) -> str:
    """Return an output as text: few values as they are, of many the shape and the extremes."""
    if values.size <= _SHOWN and values.ndim <= 1:
        return " ".join(f"{each:.6g}" for each in values.reshape(-1).tolist())
    shape = " x ".join(map(str, values.shape))
    return f"{values.dtype} {shape}, from {values.min():.6g} to {values.max():.6g}, mean {values.mean():.6g}"
