"""Programs of FP32 layers beside plain float32 arithmetic in numpy: functions, sums, norms, windows, codes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cpupack.stages.quantize.native.floats import Floats
from cpupack.stages.quantize.native.program import Buffer, Program
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, Norm, Reduction, View, Windows
from helpers import float_reference as reference
from helpers import float_values as of_values

Array = np.ndarray[Any, Any]

EXTREMES = np.array(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-38, 1e-20, -1e-20, 0.5, -0.5, 0.625, 3.0, -3.0, 20.0, -20.0, 88.5, -88.5,
     90.0, -90.0, -103.5, 1e20, -1e20, 3e38, -3e38, np.inf, -np.inf, np.nan],
    np.float32,
)  # fmt: skip


class Net:
    """A program of float32 samples ``(n, values)``, and what each of its results must be."""

    def __init__(self, samples: Array) -> None:
        self.samples = samples.astype(np.float32)
        self.program = Program(1, 1, samples.shape[1])
        self.floats = Floats(self.program)
        self.all = self.floats.take((samples.shape[1],), 0)
        self.expected: list[Array] = []
        self.compared: list[bool] = []

    def view(self, shape: Sequence[int], first: int = 0) -> tuple[View, Array]:
        """Return some of the sample's values, in order."""
        size = int(np.prod(shape))
        steps = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        return View(self.all.buffer, tuple(shape), steps, first), self.samples[:, first : first + size].reshape(
            -1, *shape
        )

    def result(self, view: View, expected: Array) -> None:
        """Have values leave, which must be these."""
        assert view.shape == expected.shape[1:]
        self.floats.leave(view, self.program.outputs)
        self.program.outputs += view.size
        self.expected.append(expected.reshape(len(expected), -1).astype(np.float32))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.from_numpy(self.samples.copy()),
            torch.frombuffer(bytearray(self.program.to_bytes()), dtype=torch.uint8),
        )


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Array:
    return np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32)


def functions() -> Net:
    """Each function of one value and of two, at extremes and at everything between, in odd numbers."""
    random = np.random.default_rng(1)
    values = np.concatenate(
        [EXTREMES, random.normal(0, 30, 1500), random.normal(0, 1, 1111), np.exp(random.normal(0, 20, 800))]
    )
    net = Net(np.stack([values, random.permutation(values)]))
    view, x = net.view((values.size,))
    other = random.permutation(values).astype(np.float32)
    for function in Function:
        code = [Instruction(function, number=0.37)]
        net.result(
            net.floats.map(net.floats.like(view), view, Fixed(torch.from_numpy(other)), code),
            of_values.run(code, x, np.broadcast_to(other, x.shape)),
        )
    return net


def orders() -> Net:
    """Maps of views: permuted, backwards in memory, with gaps, repeated, into parts, of two buffers, of constants."""
    net = Net(normal(3, 4 * 5 * 7 + 9))
    view, x = net.view((4, 5, 7), 3)
    add = [Instruction(Function.ADD)]
    for order in itertools.permutations(range(3)):
        out = net.floats.map(net.floats.new([view.shape[i] for i in order]), view.permuted(order))
        net.result(out, x.transpose(0, *(i + 1 for i in order)))
        net.result(
            net.floats.map(net.floats.like(view.permuted(order)), view.permuted(order), Fixed(torch.ones(1))),
            x.transpose(0, *(i + 1 for i in order)),
        )
    backwards = View(view.buffer, (7, 5), (-1, 7), 3 + 6)
    net.result(net.floats.map(net.floats.new((7, 5)), backwards), x[:, 0, :, ::-1].transpose(0, 2, 1))
    gaps = View(view.buffer, (2, 3, 4), (70, 14, 2), 3)
    net.result(net.floats.map(net.floats.new((2, 3, 4)), gaps, gaps, add), 2 * x[:, ::2, ::2, ::2])
    row, short = net.view((7,), 0)
    net.result(net.floats.map(net.floats.like(view), view, row, add), x + short[:, None, None])
    constant = normal(5, 1, seed=4)
    fixed = Fixed(torch.from_numpy(constant))
    net.result(net.floats.map(net.floats.like(view), fixed, view, [Instruction(Function.SUBTRACT)]), constant - x)
    whole = net.floats.new((4, 5, 10))
    net.floats.map(View(whole.buffer, (4, 5, 7), whole.steps, 3), view)
    net.floats.map(View(whole.buffer, (4, 5, 3), whole.steps, 0), Fixed(torch.full((1,), 2.5)))
    net.result(whole, np.concatenate([np.full((3, 4, 5, 3), 2.5, np.float32), x], 3))
    places = torch.from_numpy(np.random.default_rng(3).integers(-1, 140, (6, 7)))
    picked = np.where(places.numpy() < 0, np.float32(9.5), x.reshape(3, -1)[:, places.numpy()])
    net.result(net.floats.gather(view, places, fill=9.5), picked)
    return net


def reductions(length: int) -> Net:
    net = Net(np.concatenate([normal(2, 3 * length * 9), normal(2, 3, seed=5)], 1))
    view, x = net.view((3, length, 9))
    for kind in (each for each in Reduction if each is not Reduction.ACROSS):
        net.result(net.floats.reduce(view, (1,), kind, scale=0.25), _reduced(x, kind, 0.25))
        turned = net.floats.side_by_side(view.permuted((0, 2, 1)))
        net.result(net.floats.reduce(turned, (2,), kind), reference.reduce(x.transpose(0, 1, 3, 2), kind, 1.0))
        net.result(net.floats.reduce(view, (0, 1, 2), kind), reference.reduce(x.reshape(2, -1), kind, 1.0))
    return net


def windows_that_overlap(window: int) -> Net:
    """Reductions of windows a position apart, as of ``unfold``: more values are read than there are."""
    length, width = 20, 16
    net = Net(normal(2, length * width))
    view, x = net.view((length, width))
    count = length - window + 1
    rows = np.lib.stride_tricks.sliding_window_view(x, window, axis=1)  # (n, count, width, window)
    apart = View(view.buffer, (count, width, window), (width, 1, width), view.first)
    for over, axis in ((apart, 2), (apart.permuted((0, 2, 1)), 1)):
        for kind in (Reduction.SUM, Reduction.MAXIMUM):
            net.result(net.floats.reduce(over, (axis,), kind), reference.reduce_across(rows, kind, 1.0))
    return net


def _reduced(x: Array, kind: Reduction, scale: float) -> Array:
    rows = x.transpose(0, 1, 3, 2)
    if kind in (Reduction.PLACE_OF_MAXIMUM, Reduction.PLACE_OF_MINIMUM):
        return reference.reduce(rows, kind, scale)
    return reference.reduce_across(rows, kind, scale)


def norms(length: int, rows: int = 3) -> Net:
    """Rows that lie side by side, and rows whose values are apart, of every length that is cut in parts."""
    net = Net(normal(2, rows * length, scale=5.0))
    view, x = net.view((rows, length))
    weight, bias = normal(length, seed=7), normal(length, seed=8)
    apart = net.floats.side_by_side(view.permuted((1, 0))).permuted((1, 0))
    for each in (view, apart):
        for kind in (each for each in Norm if each is not Norm.FACTORS):
            net.result(net.floats.normalize(each, (1,), kind, epsilon=1e-5), reference.normalize(x, kind, 1e-5))
            if kind in (Norm.LAYER, Norm.ROOT_MEAN_SQUARE):
                found = net.floats.normalize(
                    each,
                    (1,),
                    kind,
                    epsilon=1e-3,
                    weight=Fixed(torch.from_numpy(weight)),
                    bias=Fixed(torch.from_numpy(bias)),
                )
                net.result(found, reference.normalize(x, kind, 1e-3, weight, bias))
    return net


def softmax_extremes() -> Net:
    """Rows of one value, equal ones, very large ones, and hidden ones."""
    rows = np.zeros((1, 4, 37), np.float32)
    rows[0, 1] = 3e38
    rows[0, 2, 5:] = -np.inf
    rows[0, 3] = np.linspace(-200, 100, 37)
    net = Net(rows.reshape(1, -1))
    view, x = net.view((4, 37))
    for kind in (Norm.SOFTMAX, Norm.LOG_SOFTMAX):
        net.result(net.floats.normalize(view, (1,), kind), reference.normalize(x, kind))
    return net


def softmaxes_of_few() -> Net:
    """Rows of seven values that are apart, in images with a line of 37 rows each, some of them extreme."""
    rows = normal(3, 2, 7, 5, 37, scale=9.0)
    rows[0, 0, :, 2] = 3e38
    rows[0, 1, 3:, :, 5:9] = -np.inf
    rows[1, 0, :, 1, ::4] = np.linspace(-200, 100, 10)
    rows[2, 1, 0] = 0.0
    net = Net(rows.reshape(3, -1))
    view, x = net.view(rows.shape[1:])
    expected = x.transpose(0, 1, 3, 4, 2)
    for kind in (Norm.SOFTMAX, Norm.LOG_SOFTMAX):
        found = net.floats.normalize(view, (1,), kind)
        net.result(found, reference.normalize(expected, kind).transpose(0, 1, 4, 2, 3))
    return net


def groups() -> Net:
    """GroupNorm of an image with its channels side by side: rows of several dimensions, constants for each channel."""
    net = Net(normal(2, 5 * 6 * 12))
    view, x = net.view((5, 6, 12))
    split = view.of_last(3, 4).permuted((2, 3, 0, 1))
    weight, bias = normal(3, 4, 1, 1, seed=2), normal(3, 4, 1, 1, seed=3)
    found = net.floats.normalize(
        split,
        (1, 2, 3),
        Norm.LAYER,
        epsilon=1e-5,
        weight=Fixed(torch.from_numpy(weight)),
        bias=Fixed(torch.from_numpy(bias)),
    )
    rows = x.reshape(2, 5, 6, 3, 4).transpose(0, 3, 1, 2, 4)  # each in the order of memory
    spread = [np.broadcast_to(each.transpose(0, 2, 3, 1), (3, 5, 6, 4)).reshape(3, -1) for each in (weight, bias)]
    expected = reference.normalize(rows.reshape(2, 3, -1), Norm.LAYER, 1e-5, *spread)
    net.result(found, expected.reshape(2, 3, 5, 6, 4).transpose(0, 1, 4, 2, 3))
    return net


def products(rows: int, length: int, columns: int) -> Net:
    sizes = (2 * rows * length, 2 * length * columns)
    net = Net(normal(2, sum(sizes)))
    (one, a), (two, b) = net.view((2, rows, length)), net.view((2, length, columns), sizes[0])
    net.result(net.floats.multiply(one, two, scale=0.3), reference.matmul(a, b, 0.3))
    turned, turned_b = net.view((2, columns, length), sizes[0])
    net.result(
        net.floats.multiply(one, turned.permuted((0, 2, 1))), reference.matmul(a, turned_b.transpose(0, 1, 3, 2))
    )
    weight, bias = normal(length, columns, seed=3), normal(columns, seed=4)
    found = net.floats.multiply(one, Fixed(torch.from_numpy(weight)), bias=bias)
    net.result(found, reference.matmul(a, weight[None, None], bias=bias))
    return net


def convolution(
    kind: Windows, channels: int, outputs: int, *, kernel: tuple[int, int] = (3, 3), stride: int = 1, pad: int = 1,
    dilation: int = 1, groups: int = 1, size: tuple[int, int] | None = None, scale: float = 0.0,
) -> Net:  # fmt: skip
    height, width = 7, 6
    net = Net(normal(2, height * width * channels))
    image, x = net.view((height, width, channels))
    fields: dict[str, float] = {
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride, "stride_w": stride, "pad_h": pad,
        "pad_w": pad, "dilation_h": dilation, "dilation_w": dilation, "runs": groups, "scale": scale,
    }  # fmt: skip
    if size is None:
        size = tuple(
            (length + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            for length, taps in zip((height, width), kernel, strict=True)
        )  # type: ignore[assignment]  # two of them
        assert size is not None
    taps = kernel[0] * kernel[1]
    weights = {
        Windows.DEPTHWISE: normal(taps, channels, seed=2),
        Windows.MAXIMUM: np.zeros(0, np.float32), Windows.AVERAGE: np.zeros(0, np.float32),
    }.get(kind, normal(groups, taps, channels // groups, outputs // groups, seed=2))  # fmt: skip
    biases = normal(outputs, seed=3)
    constants = {"scales": weights, "biases": biases} if weights.size else {}
    found = net.floats.windows(image.permuted((2, 0, 1)), (outputs, *size), kind, fields, constants)
    expected = reference.windows(x, (outputs, *size), kind, fields, weights, biases)
    net.result(found, expected.transpose(0, 3, 1, 2))
    return net


def codes(channels: int) -> Net:
    """Values to codes, whole and into other orders, and back to values."""
    net = Net(np.concatenate([normal(2, 3 * 5 * channels, scale=40.0), np.resize(EXTREMES[:-1], (2, 27))], 1))
    view, x = net.view((3, 5, channels))
    scale, zero = np.float32(1.0 / 0.31), 17
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)):
        each, values = view.permuted(order), x.transpose(0, *(i + 1 for i in order))
        height, width, depth = each.shape
        buffer = Buffer(height, width, depth, 0.31, zero, halo=(1, 2), fill=9)
        number = net.program.add_buffer(buffer)
        net.floats.quantize(each, number)
        with np.errstate(over="ignore"):
            rounded = np.clip(np.rint(of_values.fma(values, np.float32(1.0 / buffer.scale), np.float32(zero))), 0, 255)
        assert scale == np.float32(1.0 / buffer.scale)
        back = (rounded.astype(np.float32) - np.float32(zero)) * np.float32(0.31)
        net.result(net.floats.dequantize(number), back)
    return net


def scaled_codes(channels: int, width: int = 5) -> Net:
    """Values times a factor of their channel plus a term, to codes: whole, and into another order of rows."""
    net = Net(np.concatenate([normal(2, 3 * width * channels, scale=40.0), normal(2, 3 * channels, seed=2)], 1))
    size = 3 * width * channels
    (taken, x), (given, pair) = net.view((3, width, channels)), net.view((3, channels), size)
    scaled = View(given.buffer, (2, channels), (channels, 1), given.first + channels)
    factor, term = (np.broadcast_to(pair[:, place, None, None], x.shape) for place in (1, 2))
    expected = of_values.fma(x, factor, term)
    for order in ((0, 1, 2), (1, 0, 2)):
        each, values = taken.permuted(order), expected.transpose(0, *(i + 1 for i in order))
        height, width, depth = each.shape
        number = net.program.add_buffer(Buffer(height, width, depth, 0.31, 17, halo=(1, 2), fill=9))
        net.floats.quantize(each, number, scaled)
        rounded = np.clip(np.rint(of_values.fma(values, np.float32(1.0 / 0.31), np.float32(17))), 0, 255)
        net.result(net.floats.dequantize(number), (rounded.astype(np.float32) - np.float32(17)) * np.float32(0.31))
    return net


def sums_less_a_mean(length: int, channels: int) -> Net:
    """Reductions of differences to a value for each channel: of channels side by side, and of others."""
    net = Net(np.concatenate([normal(2, 3 * length * channels), normal(2, 3 * channels, seed=5)], 1))
    (view, x), (given, less) = net.view((3, length, channels)), net.view((3, 1, channels), 3 * length * channels)
    rows = (x - less).transpose(0, 1, 3, 2)
    for kind in (Reduction.SUM, Reduction.SQUARES, Reduction.MAXIMUM):
        found = net.floats.reduce(view, (1,), kind, scale=0.5, less=given)
        net.result(found, (reference.reduce_across if channels >= 8 else reference.reduce)(rows, kind, 0.5))
    return net


def same_bytes(found: Array, expected: Array) -> None:
    """Compare values bit by bit; what is no number may be any of those."""
    differ = (found.view(np.uint32) != expected.view(np.uint32)) & ~(np.isnan(found) & np.isnan(expected))
    assert not differ.any(), (np.argwhere(differ)[:5], found[differ][:5], expected[differ][:5], differ.mean())
