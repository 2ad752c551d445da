"""Norms of groups of channels that lie side by side: a factor and a term for each channel of a sample.

Sums of each channel come first, then those of its group. The values themselves are read three times: for the sums, for
the squares of their differences to the mean, and to be multiplied. Where the result becomes codes, the last of these
rounds them, and a ReLU costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.stages.quantize.native.bridges import as_floats, image_view, is_image
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.joins import with_relu
from cpupack.stages.quantize.native.tell import tell, tell_float
from cpupack.stages.quantize.native.values import image_layout, value_of
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, Reduction, View

NORMS: tuple[Any, ...] = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_SIDE_BY_SIDE = 16
"""From so many channels on that lie side by side, norms of one channel each, or of all, go by sums of each channel."""


@dataclass(frozen=True)
class Scaled:
    """Values ``(channels, ...)``, to be multiplied with ``pair[0]`` and added to ``pair[1]``, both for each channel."""

    view: View
    pair: View

    def values(self, b: Builder) -> View:
        """Append the product and the sum, and return them."""
        ones = [1] * (len(self.view.shape) - 1)
        factor, term = (self._of_channels(place, ones) for place in (0, 1))
        out = b.floats.map(b.floats.like(self.view), self.view, factor, [Instruction(Function.MULTIPLY)])
        return b.floats.map(out, out, term, [Instruction(Function.ADD)])

    def _of_channels(self, place: int, ones: list[int]) -> View:
        pair = self.pair
        return View(pair.buffer, (pair.shape[1], *ones), (1, *(0 for _ in ones)), pair.first + place * pair.steps[0])


def groups_of(module: Any, channels: int) -> int:
    """Return in how many groups a norm has its channels."""
    return int(module.num_groups) if isinstance(module, nn.GroupNorm) else channels


def scaled_by_channels(b: Builder, node: fx.Node) -> Scaled | None:
    """Append what a norm multiplies and adds, for each channel. None where its channels do not lie side by side."""
    module: Any = b.calls.module(node)
    view = b.floats.view(as_floats(b, node.all_input_nodes[0], node))
    channels, rest = view.shape[0], len(view.shape) - 1
    groups = groups_of(module, channels)
    if not isinstance(module, nn.GroupNorm) and module.track_running_stats:
        raise b.calls.refusal(node, "with running statistics")
    # A group of some of the channels is in no line: the general norm would read a few values at a time.
    if view.steps[0] != 1 or not rest or not (channels >= _SIDE_BY_SIDE or 1 < groups < channels):
        return None
    return Scaled(view, _factors(b, view, groups, module))


def norm_to_codes(b: Builder, node: fx.Node) -> bool:
    """Lower a norm whose result, or the ReLU of it, only kernels in INT8 read, to its codes. Returns whether it did."""
    if type(core(b.calls.module(node) or nn.Identity())) not in NORMS or not node.users:
        return False
    if any(each.op == "output" or b.takes_floats(each) for each in node.users) or not is_image(b, node):
        return False
    scaled = scaled_by_channels(b, node)
    if scaled is None:
        return False
    end = with_relu(b, node)
    shape = tuple(shape_of(node)[1:])
    layout = image_layout(shape)
    number = b.add_buffer(layout, b.limits(end))
    buffer = b.buffer(number)
    b.floats.quantize(image_view(b, scaled.view), number, scaled.pair)
    value = value_of(number, buffer, torch.arange(2 * buffer.size).reshape(2, *shape))
    assert value is not None
    b.values[end] = value
    tell_float(b, node, "cpupack::group_norm")
    if end is not node:
        tell(b, end, end, "cpupack::group_norm")
    return True


def _factors(b: Builder, view: View, groups: int, module: Any) -> View:
    """Append a factor and a term for each channel of a sample, ``(2, channels)``.

    How many values a group has is a sum too, so the layers are the same for images of any size.
    """
    floats, channels, per_group = b.floats, view.shape[0], view.shape[0] // groups
    places, ones = tuple(range(1, len(view.shape))), (1,) * len(view.shape)
    each = floats.map(floats.new((1, *view.shape[1:])), Fixed(torch.full(ones, float(per_group))))
    values = floats.reduce(each, places, Reduction.SUM)
    count = View(values.buffer, ones, (0,) * len(ones), values.first)

    def mean_of_group(sums: View) -> View:
        """Return for each channel the mean of its group."""
        if per_group > 1:
            total = floats.reduce(sums.of_last(groups, per_group), (1,), Reduction.SUM)
            columns = View(total.buffer, (groups, 1), (*total.steps, 0), total.first)
            sums = floats.map(floats.new((groups, per_group)), columns)
        of_channels = View(sums.buffer, (channels, *ones[1:]), (1, *(0 for _ in places)), sums.first)
        return floats.map(floats.new(of_channels.shape), of_channels, count, [Instruction(Function.DIVIDE)])

    mean = mean_of_group(floats.reduce(view, places, Reduction.SUM))
    variance = mean_of_group(floats.reduce(view, places, Reduction.SQUARES, less=mean))
    code = [
        Instruction(Function.ADD_NUMBER, number=module.eps), Instruction(Function.ROOT),
        Instruction(Function.DIVIDE_NUMBER, number=1.0),
    ]  # fmt: skip
    weight, bias = (None if each is None else Fixed(each.detach().reshape(-1)) for each in (module.weight, module.bias))
    pair = floats.new((2, channels))
    row = (channels,)
    factor, term = (View(pair.buffer, row, (1,), pair.first + place * channels) for place in (0, 1))
    means, variances = (View(each.buffer, row, (1,), each.first) for each in (mean, variance))
    floats.map(factor, variances, weight, code if weight is None else [*code, Instruction(Function.MULTIPLY)])
    less = [Instruction(Function.MULTIPLY), Instruction(Function.MULTIPLY_NUMBER, number=-1.0)]
    floats.map(term, means, factor, less)
    if bias is not None:
        floats.map(term, term, bias, [Instruction(Function.ADD)])
    return pair
