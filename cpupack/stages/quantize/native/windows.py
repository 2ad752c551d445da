"""Weighted sums over windows: every kind of interpolation, and averages whose windows differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx

from cpupack.runtime.engine.resampling import NEGLIGIBLE
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, shape_of
from cpupack.stages.quantize.native.program import Flag, Layer, Op, Size
from cpupack.stages.quantize.native.tell import tell
from cpupack.stages.quantize.native.values import Value

_PERIOD, _RESIZED_AT_ONCE = 16, 1 << 22
"""Places from one to the next that a line of many places is asked about at once, more than twice a window; values."""


@dataclass(frozen=True)
class Windows:
    """Weighted sums over ``length`` places: of each result, the first place and the weights of those that follow."""

    length: int
    begins: tuple[int, ...]
    weights: tuple[npt.NDArray[np.float64], ...]

    @classmethod
    def of(cls, matrix: npt.NDArray[np.float64]) -> Windows:
        """Return the windows of a matrix ``(results, length)``."""
        begins, weights = list[int](), list[npt.NDArray[np.float64]]()
        for row in matrix:
            used = np.flatnonzero(np.abs(row) > NEGLIGIBLE)
            begin, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
            begins.append(begin)
            weights.append(row[begin:end])
        return cls(matrix.shape[1], tuple(begins), tuple(weights))

    @property
    def changes(self) -> bool:
        """Whether a result is no copy of the place that has its number."""
        own = self.begins == tuple(range(self.length))
        return not own or any(len(each) != 1 or each[0] != 1.0 for each in self.weights)

    def counted(self, divisor: float = 1.0) -> Windows:
        """Return windows of sums of what these have, through ``divisor``."""
        return replace(self, weights=tuple(np.full(len(each), 1.0 / divisor) for each in self.weights))

    def matrix(self, begin: int, end: int) -> tuple[int, torch.Tensor]:
        """Return the weights of results ``begin`` to ``end``, float32 ``(results, places)``, and the first place."""
        first = min(self.begins[begin:end])
        last = max(at + len(own) for at, own in zip(self.begins[begin:end], self.weights[begin:end], strict=True))
        found = np.zeros((end - begin, last - first), np.float32)
        for row, number in zip(found, range(begin, end), strict=True):
            row[self.begins[number] - first :][: len(self.weights[number])] = self.weights[number]
        return first, torch.from_numpy(found)


ONE_PLACE = Windows(1, (0,), (np.ones(1),))


def interpolate(b: Builder, node: fx.Node) -> None:
    """Lower ``F.interpolate``. The weights of each row and column are measured by running torch's own function."""
    shape, source = shape_of(node), shape_of(node.all_input_nodes[0])
    mode, corners = argument(node, 3, "mode", "nearest"), argument(node, 4, "align_corners", None)
    if argument(node, 6, "antialias", False):
        raise b.calls.refusal(node, "with antialias")
    lengths = zip(source[2:], shape[2:], strict=True)
    frames, rows, columns = [
        *[ONE_PLACE] * (5 - len(shape)),
        *(interpolation_windows(*each, len(shape) - 2, mode, corners) for each in lengths),
    ]
    resample(b, node, frames, rows, columns, "resample")


def interpolation_windows(
    length: int, result: int, axes: int, mode: str, corners: bool | None, *, antialias: bool = False
) -> Windows:
    """Return the windows of ``result`` places of a line that torch resizes: a channel says what each place counts."""

    def resized(lines: torch.Tensor) -> npt.NDArray[np.float64]:
        others = [1] * (axes - 1)
        found = F.interpolate(
            lines.reshape(1, *lines.shape, *others), (result, *others), mode=mode, align_corners=corners
        )
        return found.reshape(len(lines), result).numpy()

    if antialias:  # with so many channels of one column torch 2.13 gives other values
        image = torch.eye(length, dtype=torch.float64).reshape(1, 1, length, length)
        found = F.interpolate(image, (result, length), mode=mode, align_corners=corners, antialias=True)[0, 0]
        return Windows.of(found.numpy())
    if mode == "area":
        return adaptive_windows(length, result)
    if length * result <= _RESIZED_AT_ONCE:
        return Windows.of(resized(torch.eye(length, dtype=torch.float64)).T)
    # Places that are far apart share a channel, and one more channel says which of them it is.
    places = torch.arange(length)
    comb = (places % _PERIOD == torch.arange(_PERIOD)[:, None]).double()
    *weights, groups = resized(torch.cat([comb, (places // _PERIOD).double()[None]]))
    return _uncombed(np.array(weights).T, groups, length)


def _uncombed(weights: npt.NDArray[np.float64], groups: npt.NDArray[np.float64], length: int) -> Windows:
    """Return windows whose weights are known by their places modulo ``_PERIOD``, ``(results, _PERIOD)``.

    ``groups`` are the weighted sums of each place's whole number of periods.
    """
    begins, found = list[int](), list[npt.NDArray[np.float64]]()
    for row, group in zip(weights, groups, strict=True):
        used = np.flatnonzero(np.abs(row) > NEGLIGIBLE)
        gaps = np.diff([*used, used[0] + _PERIOD])
        start = int(used[(int(gaps.argmax()) + 1) % len(used)])  # after the longest gap, around the end
        line = np.roll(row, -start)
        own = line[: int(np.flatnonzero(np.abs(line) > NEGLIGIBLE)[-1]) + 1]
        wrapped = own[max(0, _PERIOD - start) :].sum()
        begins.append(round((group - wrapped) / own.sum()) * _PERIOD + start)
        found.append(own)
    return Windows(length, tuple(begins), tuple(found))


def average_windows(length: int, result: int, kernel: int, stride: int, padding: int, *, include: bool) -> Windows:
    """Return the windows of an average along one dimension, as torch counts them."""
    begins, weights = list[int](), list[npt.NDArray[np.float64]]()
    for place in range(result):
        begin = place * stride - padding
        end = min(begin + kernel, length + padding)
        count = end - begin
        begin, end = max(begin, 0), min(end, length)
        begins.append(begin)
        weights.append(np.full(end - begin, 1.0 / (count if include else end - begin)))
    return Windows(length, tuple(begins), tuple(weights))


def adaptive_windows(length: int, result: int) -> Windows:
    """Return the windows of an adaptive average along one dimension."""
    begins = tuple(place * length // result for place in range(result))
    ends = [-(-(place + 1) * length // result) for place in range(result)]
    sizes = [end - begin for begin, end in zip(begins, ends, strict=True)]
    return Windows(length, begins, tuple(np.full(size, 1.0 / size) for size in sizes))


def resample(
    b: Builder, node: fx.Node, frames: Windows, rows: Windows, columns: Windows, kernel: str
) -> None:  # fmt: skip
    """Append a layer whose results are weighted sums of the frames, rows and columns of each channel.

    The weights of the rows are times the ratio of the scales, which the layer has too: the runner makes the weights of
    other sizes. The sums are rounded to codes, unless only the caller or calls in FP32 read them.
    """
    number = b.image(node.all_input_nodes[0], node)
    source = b.buffer(number)
    layer = Layer(Op.RESAMPLE, input=number)
    _put_result(b, node, layer, Size(len(rows.begins), len(columns.begins), source.channels, len(frames.begins)))
    windows, weights = [], list[float]()
    ratio = float(np.float32(source.scale / (1.0 if layer.flags & Flag.FLOAT_OUT else b.buffer(layer.output).scale)))
    for along, factor in ((rows, ratio), (columns, 1.0), (frames, 1.0)):
        for begin, own in zip(along.begins, along.weights, strict=True):
            windows.append((begin, len(own), len(weights)))
            weights += (own * factor).tolist()
    layer.fields |= {"runs": len(weights), "scale": ratio, "input_zero_point": source.zero_point}
    layer.constants = {"weights": np.array(windows, np.int32), "scales": np.array(weights, np.float32)}
    b.append(layer)
    tell(b, node, node, f"cpupack::{kernel}")


def _put_result(b: Builder, node: fx.Node, layer: Layer, size: Size) -> None:
    """Have a layer's result go to the caller, to calls in FP32, or into a buffer of codes."""
    height, width, _, frames = size
    if b.goes_out(node) and len(shape_of(node)) == 4:
        layer.flags |= Flag.FLOAT_OUT
        layer.fields = {
            "kernel_d": frames, "kernel_h": height, "kernel_w": width, "channels_out": math.prod(size),
            "channel_offset": b.leave(node, math.prod(size), by_positions=True),
        }  # fmt: skip
        b.values[node] = Value(-1)
    elif b.read_as_floats(node):
        layer.flags |= Flag.FLOAT_OUT
        layer.output = b.leave_floats(node, size, None)
    else:
        layer.output = b.add_buffer(size, b.limits(node))
        layer.fields = {"output_zero_point": b.buffer(layer.output).zero_point}
        b.values[node] = Value(layer.output)
