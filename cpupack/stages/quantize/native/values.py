"""The values in a lowered graph: buffers, and the order in which a call reads their elements.

Views, transpositions, splits and similar calls move no bytes. They are run on the numbers of the elements instead. A
convolution that reads the result orders its weights accordingly; all other readers copy the values first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cpupack.stages.quantize.native.program import Buffer, Size

LONGEST_SIDE = 1 << 22
"""``LONGEST_SIDE`` of kernels/engine/validate.c: rows, or columns, of a buffer."""
MOST_FRAMES = 1 << 15
"""``LONGEST_WINDOW`` there: images of a video."""


@dataclass(frozen=True)
class Value:
    """A buffer and the order in which a tensor has its elements.

    ``order`` is int64 of the tensor's shape with a batch of two: which element of the buffer each is, numbered by
    sample, channel, frame, row and column. None: all of them as they are, ``(n, channels, height, width)`` or, of one
    row, ``(n, channels, width)`` or, of one position, ``(n, channels)``, or, of several frames, ``(n, channels, frames,
    height, width)``.
    """

    buffer: int
    order: torch.Tensor | None = None


def order_of(value: Value, buffer: Buffer, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a value's order written out; ``shape`` is its tensor's, of a batch of two."""
    return value.order if value.order is not None else torch.arange(2 * buffer.size).reshape(shape)


def value_of(number: int, buffer: Buffer, order: torch.Tensor) -> Value | None:
    """Return the value of a buffer in an order, None where that takes values from one sample to another."""
    if order.ndim == 0 or len(order) != 2 or not torch.equal(order[1], order[0] + buffer.size):
        return None
    if bool((order[0] >= buffer.size).any()):
        return None
    same = is_natural(tuple(order.shape[1:]), buffer) and torch.equal(order[0].flatten(), torch.arange(buffer.size))
    return Value(number, None if same else order)


def is_natural(shape: tuple[int, ...], buffer: Buffer) -> bool:
    """Whether a sample's shape is the buffer's own: of a video, an image, of its only row, of its only position."""
    if buffer.frames > 1:
        return shape == (buffer.channels, buffer.frames, buffer.height, buffer.width)
    own = (buffer.channels, buffer.height, buffer.width)
    return shape == own or shape == own[:: 2 if buffer.height == 1 else 1] or shape == (buffer.size,) == own[:1]


def is_whole(order: torch.Tensor, buffer: Buffer) -> bool:
    """Whether an order has each element of a buffer once."""
    return order[0].numel() == buffer.size and len(torch.unique(order[0])) == buffer.size


def image_layout(shape: tuple[int, ...]) -> Size:
    """Return the size of a buffer that has a sample of this shape as it is: of a video, an image, a row, a position."""
    height, width = shape[-2:] if len(shape) > 2 else (1, shape[1] if len(shape) == 2 else 1)
    if len(shape) == 4 and shape[1] <= MOST_FRAMES:
        return Size(height, width, shape[0], shape[1])
    return Size(height, width, math.prod(shape[:-2]) if len(shape) > 2 else shape[0])


def rows_layout(shape: tuple[int, ...]) -> Size:
    """Return the size of a buffer whose channels are the last dimension of a sample's shape: an image."""
    positions = math.prod(shape[:-1])
    height = shape[0] if len(shape) > 2 else 1
    if height > LONGEST_SIDE or positions // height > LONGEST_SIDE:
        height = next(
            (each for each in range(1, LONGEST_SIDE) if positions % each == 0 and positions // each <= LONGEST_SIDE),
            height,
        )
    return Size(height, positions // height, shape[-1])


def channels_of(value: Value, buffer: Buffer) -> list[int] | None:
    """Return which channels of the buffer an image's or a video's are, None where it has no whole channels in a row."""
    if value.order is None:
        return list(range(buffer.channels))
    order = value.order[0]
    if order.ndim == 1 and buffer.size == buffer.channels:
        order = order[:, None, None]
    elif order.ndim == 2 and buffer.height == 1:
        order = order[:, None]
    if order.ndim == 3:
        order = order[:, None]
    if order.ndim != 4 or tuple(order.shape[1:]) != (buffer.frames, buffer.height, buffer.width):
        return None
    return _channels(order.flatten(1).t(), buffer)


def last_channels_of(value: Value, buffer: Buffer) -> list[int] | None:
    """Return which channels a tensor's last dimension has, None where the others are not the buffer's positions."""
    if value.order is None:
        return list(range(buffer.channels)) if buffer.size == buffer.channels else None
    return _channels(value.order[0].reshape(-1, value.order.shape[-1]), buffer)


def channels_last(buffer: Buffer, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the order of a tensor ``(2, ..., channels)`` whose other dimensions are the buffer's positions."""
    by_channel = torch.arange(2 * buffer.size).reshape(2, buffer.channels, buffer.positions)
    return by_channel.transpose(1, 2).reshape(shape)


def _channels(by_position: torch.Tensor, buffer: Buffer) -> list[int] | None:
    """Return the channels of element numbers ``(positions, channels)``, None where a column is no channel in order."""
    positions = buffer.positions
    if len(by_position) != positions:
        return None
    channels = by_position[0] // positions
    expected = channels * positions + torch.arange(positions)[:, None]
    return [int(each) for each in channels] if torch.equal(by_position, expected) else None
