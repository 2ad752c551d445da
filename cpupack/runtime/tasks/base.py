"""What every kind of task has: a result that can be shown, and the presenter that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

Outputs = Mapping[str, npt.NDArray[np.float32]]
"""The outputs of one sample by name, without the batch dimension."""
Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of the outputs by name, without the batch dimension."""
Labels = tuple[str, ...] | None


class Result(Protocol):
    """The answer to one input."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""

    def text(self) -> str:
        """Return lines for people, each with two leading spaces."""

    def draw(self, image: Image.Image) -> Image.Image | None:
        """Return the result drawn over the upright RGB image, None for a kind that draws nothing."""


class Presenter(Protocol):
    """Makes results of one model's outputs."""

    @property
    def needs_frame(self) -> bool:
        """Whether results lie in the image, so that its size must be known."""

    def present(self, outputs: Outputs, frame: Any) -> Any:
        """Return the result for one sample.

        ``frame`` is the ``Frame`` of an image, the ``Tokens`` of a text for kinds whose results lie in it, None for
        other inputs.
        """


def label_of(labels: Labels, index: int) -> str:
    """Return the name of a class or value, its number without labels."""
    return labels[index] if labels else str(index)


def only(outputs: Mapping[str, Any]) -> Any:
    """Return the one output of a kind that has one."""
    (value,) = outputs.values()
    return value


def in_words(outputs: Shapes) -> str:
    """Return the outputs with their shapes, for messages."""
    if len(outputs) == 1:
        return f"one output of shape {only(outputs)}"
    return ", ".join(f"{name} {shape}" for name, shape in outputs.items())
