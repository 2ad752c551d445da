"""Makes the saved model's input from pixels: pixels with a mask if the weights include normalization, else floats."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .spec import PreprocessSpec, normalize


def pixel_zero_point(spec: PreprocessSpec) -> int:
    """Return the pixel value that stands for 0: the mean pixel, with which convolutions pad."""
    return min(max(round(255 * sum(spec.mean) / len(spec.mean)), 0), 255)


def mask_value(spec: PreprocessSpec) -> int:
    """Return the value of the mask channel inside the image.

    The mask's weight holds the part of the channels' means that the zero point does not cover. The further the value is
    from the zero point, the smaller that weight is, and the coarser its rounding. The value returned is the nearest one
    whose weight cannot exceed the largest weight of the pixels.
    """
    zero_point = pixel_zero_point(spec)
    distance = max(1, math.ceil(sum(abs(zero_point - 255 * mean) for mean in spec.mean)))
    if zero_point + distance <= 255:
        return zero_point + distance
    return max(zero_point - distance, 0) if zero_point >= 128 else 255


def mean_color(spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Return the pixel that is nearest to 0 after normalization, uint8 ``(channels,)``."""
    return np.resize(np.array(spec.mean) * 255.0, spec.channels).round().clip(0, 255).astype(np.uint8)


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
    return with_mask(data, mask_value(spec)).transpose(0, 3, 1, 2)


def with_mask(pixels: npt.NDArray[np.uint8], mask: int) -> npt.NDArray[np.uint8]:
    """Return uint8 ``(n, height, width, channels + 1)`` with ``mask`` as the last channel.

    RGB is copied in words of four bytes, read at every third byte. That is seven times as fast as assigning slices,
    which matters for an INT8 model that takes a millisecond.
    """
    masked = np.empty((*pixels.shape[:3], pixels.shape[3] + 1), np.uint8)
    if pixels.shape[3] == 3 and pixels.size > 3 and sys.byteorder == "little":
        flat = np.ascontiguousarray(pixels).reshape(-1)
        words = masked.reshape(-1).view(np.uint32)
        # All but the last pixel: its word would end one byte after the buffer.
        overlapping: npt.NDArray[np.uint32] = np.ndarray((words.size - 1,), np.uint32, flat, strides=(3,))
        np.bitwise_and(overlapping, np.uint32(0x00FFFFFF), out=words[:-1])
        words[:-1] |= np.uint32(mask << 24)
        masked.reshape(-1)[-4:-1] = flat[-3:]
        masked.reshape(-1)[-1] = mask
        return masked
    for channel in range(pixels.shape[3]):
        masked[..., channel] = pixels[..., channel]
    masked[..., -1] = mask
    return masked


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
