"""What flows through a lowered graph: buffers, and in which order a call sees their values.

Views, transpositions, splits and the like move no bytes. They are run on the numbers of the elements instead, and who
reads the result finds them there: a convolution in the order of its weights, all others after a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cpupack.stages.quantize.native.program import Buffer


@dataclass(frozen=True)
class Value:
    """A buffer and the order in which a tensor has its elements.

    ``order`` is int64 of the tensor's shape with a batch of two: which element of the buffer each is, numbered by
    sample, channel, row and column. None: all of them as they are, ``(n, channels, height, width)`` or, of one
    position, ``(n, channels)``.
    """

    buffer: int
    order: torch.Tensor | None = None


def order_of(value: Value, buffer: Buffer, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a value's order written out; ``shape`` is its tensor's, of a batch of two."""
    return value.order if value.order is not None else torch.arange(2 * buffer.size).reshape(shape)


def value_of(number: int, buffer: Buffer, order: torch.Tensor) -> Value | None:
    """Return the value of a buffer in an order, None where that takes values from one sample to another."""
    if len(order) != 2 or not torch.equal(order[1], order[0] + buffer.size) or bool((order[0] >= buffer.size).any()):
        return None
    shape = tuple(order.shape[1:])
    natural = shape == (buffer.channels, buffer.height, buffer.width) or shape == (buffer.size,) == (buffer.channels,)
    same = natural and torch.equal(order[0].flatten(), torch.arange(buffer.size))
    return Value(number, None if same else order)


def channels_of(value: Value, buffer: Buffer) -> list[int] | None:
    """Return which channels of the buffer an image's are, None where the value is no whole channels in a row."""
    if value.order is None:
        return list(range(buffer.channels))
    order = value.order[0]
    image = order[:, None, None] if order.ndim == 1 and buffer.size == buffer.channels else order
    if image.ndim != 3 or tuple(image.shape[1:]) != (buffer.height, buffer.width):
        return None
    return _channels(image.flatten(1).t(), buffer)


def last_channels_of(value: Value, buffer: Buffer) -> list[int] | None:
    """Return which channels a tensor's last dimension has, None where the others are not the buffer's positions."""
    if value.order is None:
        return list(range(buffer.channels)) if buffer.size == buffer.channels else None
    return _channels(value.order[0].reshape(-1, value.order.shape[-1]), buffer)


def channels_last(buffer: Buffer, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the order of a tensor ``(2, ..., channels)`` whose other dimensions are the buffer's positions."""
    positions = buffer.height * buffer.width
    return torch.arange(2 * buffer.size).reshape(2, buffer.channels, positions).transpose(1, 2).reshape(shape)


def _channels(by_position: torch.Tensor, buffer: Buffer) -> list[int] | None:
    """Return the channels of element numbers ``(positions, channels)``, None where a column is no channel in order."""
    positions = buffer.height * buffer.width
    if len(by_position) != positions:
        return None
    channels = by_position[0] // positions
    expected = channels * positions + torch.arange(positions)[:, None]
    return [int(each) for each in channels] if torch.equal(by_position, expected) else None
