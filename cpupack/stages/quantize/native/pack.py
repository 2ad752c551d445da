"""Weights in the order in which the kernels load them (``conv.inc`` and ``depthwise.inc`` of kernels/operators)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

BLOCK = 32
"""Output channels of one block of sums."""
CHANNELS = 64
"""Channels of a depthwise convolution that are computed together."""
_CHUNK = 64

Int8Array = npt.NDArray[np.int8]
FloatArray = npt.NDArray[np.float32]
_Number = TypeVar("_Number", bound=np.generic)


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
    """Pack int8 weights ``(out, in / groups, depth * height, width)``.

    Sums are made in blocks of 32 output channels. With groups a block reads the input channels of all groups that it
    touches, and weights between groups are zero: AMX multiplies far faster than narrower products could be fed.
    """
    outputs, group_in = weights.shape[:2]
    span_out, span_in = (outputs // groups, group_in) if groups > 1 else (0, 0)
    rows = arrange_conv(weights, groups, dilated=dilated)
    runs, chunks, chunk_bytes = rows.shape[1:]
    blocks = -(-outputs // BLOCK)
    padded = np.zeros((blocks * BLOCK, *rows.shape[1:]), np.int8)
    padded[:outputs] = rows
    tiles = padded.reshape(blocks, 2, 16, runs, chunks, chunk_bytes // 4, 4)
    packed = np.ascontiguousarray(tiles.transpose(0, 3, 4, 1, 5, 2, 6))
    return PackedConv(packed, runs, chunks, chunk_bytes, span_out, span_in)


def arrange_conv(weights: npt.NDArray[_Number], groups: int, *, dilated: bool) -> npt.NDArray[_Number]:
    """Return each output's weights in the order in which they are multiplied: ``(out, runs, chunks, chunk)``.

    What pads a chunk, and what lies between groups, is zero.
    """
    if groups > 1:
        weights = _spread_groups(weights, groups)
    outputs, _, height, width = weights.shape
    joined = groups == 1 and not dilated
    taps = weights.transpose(0, 2, 3, 1)  # as NHWC memory: height, width, channel
    runs = taps.reshape(outputs, height, -1) if joined else taps.reshape(outputs, height * width, -1)
    length = runs.shape[2]
    chunks, chunk_bytes = chunks_of(length)
    padded = np.zeros((outputs, runs.shape[1], chunks * chunk_bytes), weights.dtype)
    padded[:, :, :length] = runs
    return padded.reshape(outputs, runs.shape[1], chunks, chunk_bytes)


def chunks_of(length: int) -> tuple[int, int]:
    """Return in how many chunks, of how many bytes each, a run of bytes is multiplied."""
    chunks = -(-length // _CHUNK)
    return chunks, 4 * -(-length // (4 * chunks))


def _spread_groups(weights: npt.NDArray[_Number], groups: int) -> npt.NDArray[_Number]:
    """Return weights over the inputs of all groups that a block touches, from its first output's group on."""
    outputs, group_in, height, width = weights.shape
    group = np.arange(outputs) // (outputs // groups)
    first = group[np.arange(outputs) // BLOCK * BLOCK]
    spread = np.zeros((outputs, (group - first).max() + 1, group_in, height, width), weights.dtype)
    spread[np.arange(outputs), group - first] = weights
    return spread.reshape(outputs, -1, height, width)


def pack_depthwise(weights: Int8Array, stride: int, *, dilated: bool, depth: int = 1) -> tuple[Int8Array, int]:
    """Pack int8 weights ``(channels, depth * height, width)``; return them and the layer's ``runs`` (1: several).

    Windows of 3 and 5 with stride 1 and 2 compute several neighbouring outputs from groups of four pixels: the taps
    are laid out for each output's place in the groups.
    """
    places, several = arrange_depthwise(weights, stride, dilated=dilated, depth=depth)
    channels, height, outputs, groups, _ = places.shape
    blocks = -(-channels // CHANNELS)
    padded = np.zeros((blocks * CHANNELS, *places.shape[1:]), np.int8)
    padded[:channels] = places
    # channel = 64 block + 16 lane + 4 vector + word
    split = padded.reshape(blocks, 4, 4, 4, height, outputs, groups, 4)
    packed = split.transpose(0, 4, 5, 6, 2, 1, 3, 7)
    return np.ascontiguousarray(packed), int(several)


def arrange_depthwise(
    weights: npt.NDArray[_Number], stride: int, *, dilated: bool, depth: int = 1
) -> tuple[npt.NDArray[_Number], bool]:
    """Return the taps in each place they are multiplied in, ``(channels, depth * height, outputs, groups, 4)``.

    Also whether several outputs are computed at once; a tap then has several places.
    """
    channels, height, width = weights.shape
    several = height == depth * width and width in (3, 5) and stride in (1, 2) and not dilated
    outputs, groups = (
        {(3, 1): (2, 1), (3, 2): (1, 1), (5, 1): (4, 2), (5, 2): (2, 2)}[width, stride] if several else (1, width)
    )
    places = np.zeros((channels, height, outputs, groups, 4), weights.dtype)
    for output in range(outputs):
        for tap in range(width):
            at = output * stride + tap if several else 4 * tap
            places[:, :, output, at // 4, at % 4] = weights[:, :, tap]
    return places, several


def pad_channels(values: npt.NDArray[Any], multiple: int) -> FloatArray:
    """Return float32 values of the output channels, with zeros up to a multiple."""
    padded = np.zeros(-(-len(values) // multiple) * multiple, np.float32)
    padded[: len(values)] = values
    return padded


def interleave_channels(values: npt.NDArray[Any]) -> FloatArray:
    """Return float32 values of a depthwise convolution's channels in the order of its sums."""
    padded = pad_channels(values, CHANNELS)
    return np.ascontiguousarray(padded.reshape(-1, 4, 4, 4).transpose(0, 2, 1, 3)).reshape(-1)
