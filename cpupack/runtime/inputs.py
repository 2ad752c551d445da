"""From pixels to what the saved model takes: pixels with a mask where normalization is in the weights, else floats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .preprocess import PreprocessSpec, normalize


def pixel_zero_point(spec: PreprocessSpec) -> int:
    """Return the pixel value that counts as 0, the mean pixel: convolutions pad with it."""
    return min(max(round(255 * sum(spec.mean) / len(spec.mean)), 0), 255)


def mask_value(spec: PreprocessSpec) -> int:
    """Return the value of the mask channel inside the image.

    Its weight carries what the zero point leaves of the channels' means. The further the value is from the zero point,
    the smaller that weight and the worse its rounding; this is the least distance at which no such weight can exceed
    the largest of the others.
    """
    zero_point = pixel_zero_point(spec)
    distance = max(1, math.ceil(sum(abs(zero_point - 255 * mean) for mean in spec.mean)))
    if zero_point + distance <= 255:
        return zero_point + distance
    return max(zero_point - distance, 0) if zero_point >= 128 else 255


def model_input(data: npt.NDArray[Any], spec: PreprocessSpec | None, *, pixel_input: bool) -> npt.NDArray[Any]:
    """Return the array to hand to the model for ``data``.

    uint8 pixels ``(n, height, width, channels)`` become uint8 ``(n, channels + 1, height, width)`` for a model with
    ``pixel_input``, else normalized float32 ``(n, channels, height, width)``; both have channels_last strides. Any
    other array is returned as it is.
    """
    if spec is None or data.dtype != np.uint8:
        return data
    if not pixel_input:
        return normalize(data, spec)
    masked = np.empty((*data.shape[:3], data.shape[3] + 1), np.uint8)
    masked[..., :-1] = data
    masked[..., -1] = mask_value(spec)
    return masked.transpose(0, 3, 1, 2)


def random_input(
    generator: np.random.Generator,
    batch_size: int,
    input_shape: tuple[int, ...],
    spec: PreprocessSpec | None,
    *,
    pixel_input: bool,
) -> npt.NDArray[Any]:
    """Return a batch as ``model_input`` makes it: random pixels where there is preprocessing, else normal values."""
    if spec is None:
        return generator.standard_normal((batch_size, *input_shape), dtype=np.float32)
    channels, height, width = input_shape
    pixels = generator.integers(0, 256, (batch_size, height, width, channels), dtype=np.uint8)
    return model_input(pixels, spec, pixel_input=pixel_input)
