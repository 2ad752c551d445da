"""Describes layers with weights as convolutions of a video: their filters, strides, padding and windows.

An image is a video of one frame, and a sequence an image of one row. So settings are triples: frames, rows, columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.vocabulary import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import Calls, Triple, shape_of, triple
from cpupack.stages.quantize.native.program import Buffer, Size
from cpupack.stages.quantize.native.values import channels_of, last_channels_of

ONE = (1, 1, 1)
_NONE = (0, 0, 0)


@dataclass(frozen=True)
class Dense:
    """A layer as a convolution: FP32 weights ``(out, in / groups, depth, height, width)`` and bias ``(out,)``.

    ``padding`` is in front, above and on the left, ``after`` behind, below and on the right.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    stride: Triple = ONE
    padding: Triple = _NONE
    after: Triple = _NONE
    dilation: Triple = ONE
    groups: int = 1

    def window(self, source: Buffer) -> Triple:
        """Return frames, height and width of the result."""
        frames, height, width = (
            (length + before + after - gap * (size - 1) - 1) // step + 1
            for length, before, after, gap, size, step in zip(
                lengths_of(source), self.padding, self.after, self.dilation, self.weight.shape[2:], self.stride,
                strict=True,
            )
        )  # fmt: skip
        return frames, height, width

    def halo(self, source: Buffer, size: Triple) -> Triple:
        """Return how far a result of frames, height and width ``size`` reaches beyond a video, on the wider side."""
        frames, rows, columns = (
            max(before, (count - 1) * step - before + gap * (taps - 1) + 1 - length)
            for length, before, gap, taps, step, count in zip(
                lengths_of(source), self.padding, self.dilation, self.weight.shape[2:], self.stride, size, strict=True
            )
        )
        return frames, rows, columns

    def rows(self) -> torch.Tensor:
        """Return the weights as those of an image ``(out, in / groups, depth * height, width)``."""
        return self.weight.flatten(2, 3)


def lengths_of(buffer: Buffer) -> Triple:
    """Return frames, height and width of a buffer."""
    return buffer.frames, buffer.height, buffer.width


def size_of(lengths: Triple, channels: int) -> Size:
    """Return the size of a buffer of so many frames, rows and columns."""
    return Size(lengths[1], lengths[2], channels, lengths[0])


def has_weights(calls: Calls, node: fx.Node) -> bool:
    """Whether a call is of a layer with weights that the engine can run."""
    module = calls.module(node)
    return module is not None and type(core(module)) in (
        *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, *BATCH_NORMS, nn.Linear,
    )  # fmt: skip


def matched(b: Builder, node: fx.Node) -> tuple[Dense, int, bool]:
    """Return a layer in terms of its source buffer, that buffer, and whether it is a Linear over each position."""
    operand = node.args[0]
    value = b.value(operand, node)
    buffer = b.buffer(value.buffer)
    dense = _dense(b.calls, node)
    if isinstance(core(b.calls.module(node) or nn.Identity()), TRANSPOSED_CONVOLUTIONS):
        return dense, b.image(operand, node), False
    if isinstance(operand, fx.Node) and operand in b.borders:
        border = b.borders[operand]
        dense = dataclasses.replace(
            dense,
            padding=_triple(dense.padding[axis] + border[axis][0] for axis in range(3)),
            after=_triple(dense.after[axis] + border[axis][1] for axis in range(3)),
        )
    if isinstance(core(b.calls.module(node) or nn.Identity()), nn.Linear):
        return _over_positions(b, node, dense)
    if value.order is None:
        return dense, value.buffer, False
    channels = channels_of(value, buffer)
    first = channels is not None and channels == list(range(len(channels)))
    if first and dense.groups > 1:
        return dense, value.buffer, False  # groups count their channels from the first one
    if channels is None or dense.groups > 1:
        return dense, b.image(operand, node), False
    return dataclasses.replace(dense, weight=_spread(dense.weight, channels, buffer.channels)), value.buffer, False


def _over_positions(b: Builder, node: fx.Node, dense: Dense) -> tuple[Dense, int, bool]:
    """Return a Linear as a convolution of one pixel, or of the whole image if the image is flattened."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    value = b.value(operand, node)
    buffer = b.buffer(value.buffer)
    if len(shape_of(operand)) == 2 and last_channels_of(value, buffer) is None:
        # One vector for each sample: a convolution with a window of the whole image.
        assert value.order is not None
        whole = _spread(dense.weight, value.order[0].tolist(), buffer.size)
        shaped = whole.reshape(-1, buffer.channels, *lengths_of(buffer))
        return dataclasses.replace(dense, weight=shaped), value.buffer, False
    value = b.rows(operand, node)
    buffer = b.buffer(value.buffer)
    channels = last_channels_of(value, buffer)
    assert channels is not None
    weight = _spread(dense.weight, channels, buffer.channels)
    return dataclasses.replace(dense, weight=weight), value.buffer, True


def _dense(calls: Calls, node: fx.Node) -> Dense:
    module = calls.module(node)
    assert module is not None
    layer = core(module)
    if isinstance(layer, nn.Linear):
        return Dense(layer.weight.detach()[:, :, None, None, None], bias_of(layer))
    if isinstance(layer, BATCH_NORMS):
        if layer.running_mean is None or layer.running_var is None:
            raise calls.refusal(node, "without running statistics")
        scale = torch.rsqrt(layer.running_var + layer.eps)
        scale = scale * layer.weight.detach() if layer.weight is not None else scale
        shift = layer.bias.detach() if layer.bias is not None else 0.0
        return Dense(scale[:, None, None, None, None], shift - layer.running_mean * scale, groups=len(scale))
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        # The filters stay unchanged here; transposed.py makes a convolution of them.
        return Dense(as_video(layer.weight.detach()), bias_of(layer), groups=layer.groups)
    assert isinstance(layer, CONVOLUTIONS)
    both = triple(layer.padding, layer.weight.ndim - 2, 0)
    return without_zeros(
        Dense(
            as_video(layer.weight.detach()), bias_of(layer), triple(layer.stride, layer.weight.ndim - 2, 1), both, both,
            triple(layer.dilation, layer.weight.ndim - 2, 1), layer.groups,
        )
    )  # fmt: skip


def as_video(weight: torch.Tensor) -> torch.Tensor:
    """Return filters of sequences, or of images, as those of videos."""
    return weight.reshape(*weight.shape[:2], *[1] * (5 - weight.ndim), *weight.shape[2:])


def _triple(values: Iterable[int]) -> Triple:
    one, two, three = values
    return one, two, three


def bias_of(layer: Any) -> torch.Tensor:
    """Return a layer's bias, or zeros if it has none."""
    if layer.bias is not None:
        bias: torch.Tensor = layer.bias.detach()
        return bias
    return torch.zeros(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def floats_of(values: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return values side by side, as the constants of a program hold them."""
    found: npt.NDArray[np.float32] = np.ascontiguousarray(values.detach().float().numpy())
    return found


def _spread(weight: torch.Tensor, channels: list[int], total: int) -> torch.Tensor:
    """Return weights for all channels of a buffer: zero for unread channels, sums for channels read several times."""
    if channels == list(range(total)):
        return weight
    spread = torch.zeros(len(weight), total, *weight.shape[2:])
    return spread.index_add(1, torch.tensor(channels), weight)


# ---- smaller filters ----


def without_zeros(dense: Dense) -> Dense:
    """Return a layer without the outer rows and columns of its filters that are zero, if there is padding.

    Some models write padding on one side in this way: as a row or column of zeros before an even filter.
    """
    weight, before, after = dense.weight, list(dense.padding), list(dense.after)
    for axis in range(3):
        gap, taps = dense.dilation[axis], weight.shape[2 + axis]
        used = weight.transpose(0, 2 + axis).flatten(1).any(1).nonzero().flatten().tolist() or [0]
        first = min(used[0], before[axis] // gap)
        last = max(used[-1], taps - 1 - after[axis] // gap)
        weight = weight.narrow(2 + axis, first, last - first + 1)
        before[axis] -= gap * first
        after[axis] -= gap * (taps - 1 - last)
    return dataclasses.replace(dense, weight=weight, padding=_triple(before), after=_triple(after))


def without_padding(dense: Dense, image: Triple, result: Triple) -> Dense:
    """Return a layer without the outer rows and columns of its kernel that only ever meet padding in a small image.

    For example, on an image of one pixel a 3 x 3 convolution becomes 1 x 1, with a ninth of the products.
    """
    weight, padding = dense.weight, list(dense.padding)
    for axis in range(3):
        stride, gap, pad = dense.stride[axis], dense.dilation[axis], dense.padding[axis]
        seen = [
            tap
            for tap in range(weight.shape[2 + axis])
            if any(0 <= stride * place - pad + gap * tap < image[axis] for place in range(result[axis]))
        ]
        first, last = (seen[0], seen[-1]) if seen else (0, 0)
        if gap * first > pad:  # some outputs see only padding: unchanged
            continue
        weight = weight.narrow(2 + axis, first, last - first + 1)
        padding[axis] = pad - gap * first
    return dataclasses.replace(dense, weight=weight, padding=_triple(padding))


def by_blocks(dense: Dense) -> Dense:
    """Return a convolution with stride 2 as one with stride 1, on an image with blocks of 2 x 2 pixels as channels.

    The products are the same, but there are four times as many channels. Tiles load slowly if there are many rows with
    few contiguous bytes each (for 7 x 7 with 4 channels: 7 runs of 28 bytes become 4 runs of 64).
    """
    outputs, channels, _, height, width = dense.weight.shape
    before = [-(-pad // 2) for pad in dense.padding[1:]]
    lead = [2 * blocks - pad for blocks, pad in zip(before, dense.padding[1:], strict=True)]
    blocks = [-(-(first + size) // 2) for first, size in zip(lead, (height, width), strict=True)]
    whole = torch.zeros(outputs, channels, 2 * blocks[0], 2 * blocks[1])
    whole[:, :, lead[0] : lead[0] + height, lead[1] : lead[1] + width] = dense.weight[:, :, 0]
    split = whole.reshape(outputs, channels, blocks[0], 2, blocks[1], 2).permute(0, 3, 5, 1, 2, 4)
    weight = split.reshape(outputs, 4 * channels, 1, blocks[0], blocks[1])
    return Dense(weight, dense.bias, padding=(0, before[0], before[1]))
