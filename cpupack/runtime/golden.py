"""Large outputs are stored thinned: a map of many classes would make a wheel of a hundred megabytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_VALUES = 2**19
"""Values of one sample's output that are stored whole."""


def every(output_shape: tuple[int, ...]) -> int:
    """Return which rows and columns of a sample's output are stored: each first of so many, 1 for all."""
    values = math.prod(output_shape)
    if values <= MOST_VALUES:
        return 1
    share = values / MOST_VALUES
    return math.ceil(math.sqrt(share)) if len(output_shape) >= 2 else math.ceil(share)


def thinned(outputs: npt.NDArray[Any], output_shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return what is stored of outputs ``(n, *output_shape)``: some of the last two dimensions, or of the only one."""
    step = every(output_shape)
    kept = outputs[..., ::step, ::step] if len(output_shape) >= 2 else outputs[..., ::step]
    return np.ascontiguousarray(kept)
