"""Weights in the order in which the kernels load them (``kernels/conv.c``, ``kernels/depthwise.c``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 32
"""Output channels of one block of sums."""
CHANNELS = 64
"""Channels of a depthwise convolution that are computed together."""
_CHUNK = 64

Int8Array = npt.NDArray[np.int8]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PackedConv:
    """Weights of a dense or grouped convolution and the numbers the kernel needs to walk through them.

    ``runs`` contiguous runs of input bytes make up one output's window, each read in ``chunks`` of ``chunk_bytes``.
    With groups, those of ``span_out`` outputs and ``span_in`` inputs, a block reads from the inputs of its first
    output's group on; both are 0 when all outputs read all inputs.
    """

    weights: Int8Array
    runs: int
    chunks: int
    chunk_bytes: int
    span_out: int = 0
    span_in: int = 0

    def fields(self) -> dict[str, float]:
        """Return the layer's fields."""
        names = ("runs", "chunks", "chunk_bytes", "span_out", "span_in")
        return {name: getattr(self, name) for name in names}


def pack_conv(weights: Int8Array, groups: int, *, dilated: bool) -> PackedConv:
    """Pack int8 weights ``(out, in / groups, height, width)``.

    Sums are made in blocks of 32 output channels. With groups a block reads the input channels of all groups that it
    touches, and weights between groups are zero: AMX multiplies far faster than narrower products could be fed.
    """
    outputs, inputs, height, width = weights.shape
    span_out = span_in = 0
    if groups > 1:
        span_out, span_in = outputs // groups, inputs
        weights = _spread_groups(weights, groups)
    joined = groups == 1 and not dilated
    taps = weights.transpose(0, 2, 3, 1)  # as NHWC memory: height, width, channel
    runs = taps.reshape(outputs, height, -1) if joined else taps.reshape(outputs, height * width, -1)
    length = runs.shape[2]
    chunks = -(-length // _CHUNK)
    chunk_bytes = 4 * -(-length // (4 * chunks))
    blocks = -(-outputs // BLOCK)
    padded = np.zeros((blocks * BLOCK, runs.shape[1], chunks * chunk_bytes), np.int8)
    padded[:outputs, :, :length] = runs
    tiles = padded.reshape(blocks, 2, 16, runs.shape[1], chunks, chunk_bytes // 4, 4)
    packed = np.ascontiguousarray(tiles.transpose(0, 3, 4, 1, 5, 2, 6))
    return PackedConv(packed, runs.shape[1], chunks, chunk_bytes, span_out, span_in)


def _spread_groups(weights: Int8Array, groups: int) -> Int8Array:
    """Return weights over the inputs of all groups that a block touches, from its first output's group on."""
    outputs, group_in, height, width = weights.shape
    group = np.arange(outputs) // (outputs // groups)
    first = group[np.arange(outputs) // BLOCK * BLOCK]
    spread = np.zeros((outputs, (group - first).max() + 1, group_in, height, width), np.int8)
    spread[np.arange(outputs), group - first] = weights
    return spread.reshape(outputs, -1, height, width)


def pack_depthwise(weights: Int8Array, stride: int, *, dilated: bool) -> tuple[Int8Array, int]:
    """Pack int8 weights ``(channels, height, width)``; returns them and the layer's ``runs`` (1: several at once).

    Windows of 3 and 5 with stride 1 and 2 compute several neighbouring outputs from groups of four pixels: the taps
    are laid out for each output's place in the groups.
    """
    channels, height, width = weights.shape
    several = height == width and width in (3, 5) and stride in (1, 2) and not dilated
    outputs, groups = (
        {(3, 1): (2, 1), (3, 2): (1, 1), (5, 1): (4, 2), (5, 2): (2, 2)}[width, stride] if several else (1, width)
    )
    places = np.zeros((channels, height, outputs, groups, 4), np.int8)
    for output in range(outputs):
        for tap in range(width):
            at = output * stride + tap if several else 4 * tap
            places[:, :, output, at // 4, at % 4] = weights[:, :, tap]
    blocks = -(-channels // CHANNELS)
    padded = np.zeros((blocks * CHANNELS, *places.shape[1:]), np.int8)
    padded[:channels] = places
    # channel = 64 block + 16 lane + 4 vector + word
    split = padded.reshape(blocks, 4, 4, 4, height, outputs, groups, 4)
    packed = split.transpose(0, 4, 5, 6, 2, 1, 3, 7)
    return np.ascontiguousarray(packed), int(several)


def pad_channels(values: npt.NDArray[Any], multiple: int) -> FloatArray:
    """Return float32 values of the output channels, with zeros up to a multiple."""
    padded = np.zeros(-(-len(values) // multiple) * multiple, np.float32)
    padded[: len(values)] = values
    return padded


def interleave_channels(values: npt.NDArray[Any]) -> FloatArray:
    """Return float32 values of a depthwise convolution's channels in the order of its sums."""
    padded = pad_channels(values, CHANNELS)
    return np.ascontiguousarray(padded.reshape(-1, 4, 4, 4).transpose(0, 2, 1, 3)).reshape(-1)
