"""What every kind of task has: a result that can be shown, and the presenter that makes it."""

from __future__ import annotations

import math
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
    """Return the name of a class or value, its number without labels or beyond them, as a map of classes may have."""
    return labels[index] if labels and index < len(labels) else str(index)


def only(outputs: Mapping[str, Any]) -> Any:
    """Return the one output of a kind that has one."""
    (value,) = outputs.values()
    return value


def in_one_row(outputs: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return the values ``(n,)`` of all outputs of one sample, in their order: each head of a model has some."""
    return np.concatenate([np.asarray(each).reshape(-1) for each in outputs.values()])


def in_rows(outputs: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return what ``in_one_row`` does for outputs ``(n, ...)`` of several samples, ``(n, values)``."""
    return np.concatenate([np.asarray(each).reshape(len(each), -1) for each in outputs.values()], axis=1)


def are_heads(outputs: Shapes) -> bool:
    """Return whether each of several outputs is one number or a row of them."""
    return len(outputs) > 1 and all(len(shape) <= 1 for shape in outputs.values())


def head_names(outputs: Shapes) -> tuple[str, ...]:
    """Return a name for each value of several heads: that of its output, with its number where that has several.

    Of a map of numbers ``(..., height, width)`` a value is a whole map.
    """
    sizes = {name: math.prod(shape if len(shape) < 2 else shape[:-2]) for name, shape in outputs.items()}
    return tuple(name if size == 1 else f"{name} {number}" for name, size in sizes.items() for number in range(size))


def in_words(outputs: Shapes) -> str:
    """Return the outputs with their shapes, for messages."""
    if len(outputs) == 1:
        return f"one output of shape {only(outputs)}"
    return ", ".join(f"{name} {shape}" for name, shape in outputs.items())
