"""Every kernel in FP32 against the same float32 operations in numpy, byte for byte, at odd sizes and extreme values.

Then any batch and number of threads, lesser instruction sets, and programs that are damaged.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_native_kernels import in_a_process

from cpupack.layers.native import codes_after
from cpupack.runtime.engine import library
from cpupack.stages.quantize.native.floats import Floats
from cpupack.stages.quantize.native.heads import Heads, append_heads
from cpupack.stages.quantize.native.program import Buffer, Program
from cpupack.stages.quantize.native.row_codes import Listed, RowNorm, append_codes, append_linear
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, Norm, Reduction, View, Windows
from helpers import float_reference as reference
from helpers import native_reference
from helpers.damage_seeds import damage_seeds

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.skipif(not native_reference.runs_here(), reason="the native kernels do not run on this CPU")

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
        self.all = self.floats.take(samples.shape[1], 0)
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
            reference.run(code, x, np.broadcast_to(other, x.shape)),
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
        for kind in Norm:
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
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        each, values = view.permuted(order), x.transpose(0, *(i + 1 for i in order))
        buffer = Buffer(*each.shape, 0.31, zero, halo=(1, 2), fill=9)
        number = net.program.add_buffer(buffer)
        net.floats.quantize(each, number)
        with np.errstate(over="ignore"):
            rounded = np.clip(np.rint(reference.fma(values, np.float32(1.0 / buffer.scale), np.float32(zero))), 0, 255)
        assert scale == np.float32(1.0 / buffer.scale)
        back = (rounded.astype(np.float32) - np.float32(zero)) * np.float32(0.31)
        net.result(net.floats.dequantize(number), back)
    return net


def linear(rows: int, length: int, columns: int, *, scale: float = 3.0) -> Net:
    """Linear layers of rows with scales of their own: plain, after norms, of columns that are apart, with functions of
    the result and of another tensor, which may lie in a part of a wider one."""
    net = Net(np.concatenate([normal(3, rows * length, scale=scale), normal(3, 2 * rows * columns, seed=6)], 1))
    view, x = net.view((rows, length))
    wide, others = net.view((rows, 2 * columns), rows * length)
    random = np.random.default_rng(9)
    weights = np.clip(random.integers(-140, 141, (columns, length)), -127, 127).astype(np.int8)
    scales, bias = random.uniform(1e-4, 1e-2, columns), random.normal(0, 1, columns)
    second = View(wide.buffer, (rows, columns), wide.steps, wide.first + columns)
    codes = append_codes(net.floats, view)
    plain = reference.linear(x, weights, scales, bias)
    net.result(append_linear(net.floats, codes, weights, scales, bias), plain)
    for function in (Function.AT_LEAST, Function.GELU, Function.GELU_TANH):
        one = [Instruction(function)]
        net.result(append_linear(net.floats, codes, weights, scales, bias, instructions=one), reference.run(one, plain))
    add, added = [Instruction(Function.ADD)], [Instruction(Function.ADD, 0, 1, 0)]
    mixed = [
        Instruction(Function.COPY, 2, 0),
        Instruction(Function.TANH, 2, 2),
        Instruction(Function.SUBTRACT, 0, 2, 1),
    ]
    for code in (add, added, mixed):
        found = append_linear(net.floats, codes, weights, scales, bias, instructions=code, second=second)
        net.result(found, reference.run(code, plain, others[:, :, columns:]))
    apart = net.floats.side_by_side(view.permuted((1, 0))).permuted((1, 0))
    net.result(append_linear(net.floats, append_codes(net.floats, apart), weights, scales, bias), plain)
    gain, shift = normal(length, seed=7), normal(length, seed=8)
    fixed = [Fixed(torch.from_numpy(each)) for each in (gain, shift)]
    for kind, own in ((Norm.LAYER, (gain, shift)), (Norm.ROOT_MEAN_SQUARE, (None, None))):
        norm = RowNorm(kind, 1e-5, *(fixed if own[0] is not None else (None, None)))
        normed = append_codes(net.floats, view, norm)
        expected = reference.linear(reference.normalize(x, kind, 1e-5, *own), weights, scales, bias)
        net.result(append_linear(net.floats, normed, weights, scales, bias), expected)
    return net


def listed(rows: int, length: int, columns: int) -> Net:
    """Linear layers of rows in any order, some of them zeros, some several times; their results in another order."""
    taken = rows + 3
    net = Net(np.concatenate([normal(3, rows * length * 2), normal(3, 2 * taken * columns, seed=6)], 1))
    view, x = net.view((rows, length, 2))
    wide, others = net.view((taken, 2 * columns), rows * length * 2)
    random = np.random.default_rng(rows)
    order, places = random.integers(-1, rows, taken), random.permutation(taken)
    weights = random.integers(-127, 128, (columns, length)).astype(np.int8)
    scales, bias = random.uniform(1e-4, 1e-2, columns), random.normal(0, 1, columns)
    chosen = np.where(order[:, None] < 0, np.float32(0.0), x[..., 1][:, np.maximum(order, 0)])
    assert view.buffer is not None
    first = torch.from_numpy(np.where(order < 0, -1, view.first + 1 + order * 2 * length))
    rows_of = Listed(view.buffer, first, length, 2)
    gain = Fixed(torch.from_numpy(normal(length, seed=7)))
    norm = RowNorm(Norm.LAYER, 1e-5, gain, None)
    with np.errstate(invalid="ignore"):
        normed = np.where(
            order[:, None] < 0,
            np.float32(0.0),
            reference.normalize(chosen, Norm.LAYER, 1e-5, gain.values.numpy(), np.zeros(length, np.float32)),
        )
    second = View(wide.buffer, (taken, columns), wide.steps, wide.first + columns)
    code = [Instruction(Function.SUBTRACT)]
    for values, of_norm in ((chosen, None), (normed, norm)):
        codes = append_codes(net.floats, rows_of, of_norm)
        plain = reference.linear(values, weights, scales, bias)
        net.result(append_linear(net.floats, codes, weights, scales, bias), plain)
        moved = np.empty_like(plain)
        moved[:, places] = plain
        list_of = torch.from_numpy(places)
        net.result(append_linear(net.floats, codes, weights, scales, bias, places=list_of), moved)
        found = append_linear(
            net.floats, codes, weights, scales, bias, instructions=code, second=second, places=list_of
        )
        net.result(found, reference.run(code, moved, others[:, :, columns:]))
    return net


def linear_of_extremes() -> Net:
    """Rows of zeros, of one value, of very small and very large ones, and of what is not finite."""
    rows = np.zeros((1, 9, 21), np.float32)
    rows[0, 1], rows[0, 2], rows[0, 3, 4], rows[0, 4] = 7.5, -3.0, 1e-38, np.linspace(-1e-29, 1e-29, 21)
    rows[0, 5] = np.linspace(-3e37, 1e38, 21)
    rows[0, 6, 3], rows[0, 7, 20], rows[0, 8, 0] = np.nan, np.inf, -np.inf
    net = Net(rows.reshape(1, -1))
    view, x = net.view((9, 21))
    weights = np.random.default_rng(3).integers(-127, 128, (5, 21)).astype(np.int8)
    scales, bias = np.full(5, 1e-3), np.arange(5.0)
    net.result(
        append_linear(net.floats, append_codes(net.floats, view), weights, scales, bias),
        reference.linear(x, weights, scales, bias),
    )
    return net


def attention(rows: int, columns: int, length: int, width: int, *, heads: int = 2) -> Net:
    """Heads that lie in turn for each token, with masks of each kind, and one that sees earlier tokens alone."""
    sizes = (rows * heads * length, columns * heads * length, columns * heads * width)
    net = Net(np.concatenate([normal(2, sum(sizes), scale=1.5), normal(2, rows * columns, seed=5)], 1))
    (one, q), (two, k), (three, v) = (
        net.view((count, heads, each), first)
        for count, each, first in ((rows, length, 0), (columns, length, sizes[0]), (columns, width, sum(sizes[:2])))
    )
    q, k, v = (each.transpose(0, 2, 1, 3) for each in (q, k, v))
    views = [each.permuted((1, 0, 2)) for each in (one, two, three)]
    computed, added = net.view((rows, columns), sum(sizes))
    random = np.random.default_rng(4)
    hidden = np.where(random.random((heads, rows, columns)) < 0.4, np.float32(-np.inf), np.float32(0.0))
    hidden[0, 0] = -np.inf  # a row that sees nothing
    turned = normal(heads, columns, rows, seed=8)
    scale = 1.0 / math.sqrt(length)
    for masks, mask, causal in (
        ((), None, False),
        ((), None, True),
        ((Fixed(torch.from_numpy(hidden)),), hidden, False),
        ((computed,), added[:, None], False),
        ((Fixed(torch.from_numpy(turned).transpose(1, 2)),), turned.swapaxes(1, 2), True),
        ((Fixed(torch.from_numpy(turned[:1, :1, :1])), computed), added[:, None] + turned[0, 0, 0], False),
    ):
        found = append_heads(net.floats, Heads(*views, scale, masks, causal))
        net.result(found, reference.attention(q, k, v, scale, mask, causal=causal))
    return net


def look_ups() -> Net:
    """Rows of tables in float32 and in int8, by numbers in any order of memory, the first and the last row included."""
    random = np.random.default_rng(8)
    net = Net(random.integers(0, 41, (3, 35)).astype(np.float32))
    net.samples[:, :2] = 0, 40
    view, ids = net.view((5, 7))
    for width in (1, 33, 64):
        table = normal(41, width, seed=width)
        codes, scales = random.integers(-128, 128, (41, width)).astype(np.int8), np.abs(normal(41, seed=3))
        for order in ((0, 1), (1, 0)):
            at = ids.transpose(0, 1 + order[0], 1 + order[1]).astype(np.int64)
            net.result(net.floats.look_up(view.permuted(order), table, None), table[at])
            net.result(
                net.floats.look_up(view.permuted(order), codes, scales),
                (codes.astype(np.float32) * scales[:, None])[at],
            )
    return net


def unseen() -> Net:
    """Attention with masks that hide every column from some rows: zeros, or what is no number."""
    net = Net(normal(2, 3 * 7 * 5 + 7 * 7))
    views = [net.view((1, 7, 5), 35 * place) for place in range(3)]
    mask = np.where(np.arange(7)[:, None] % 3 == 0, np.float32(-np.inf), np.float32(0.25)).repeat(7, 1)
    for nan in (False, True):
        heads = Heads(*(view for view, _ in views), 0.5, (Fixed(torch.from_numpy(mask)),), unseen_is_nan=nan)
        q, k, v = (x for _, x in views)
        expected = reference.attention(q, k, v, 0.5, mask, unseen=np.nan if nan else 0.0)
        net.result(append_heads(net.floats, heads), expected)
    return net


NETS: dict[str, Callable[[], Net]] = {
    "look-ups": look_ups,
    "attention to nothing": unseen,
    "functions": functions,
    "orders": orders,
    **{f"reductions of {n}": lambda n=n: reductions(n) for n in (1, 31, 33, 300)},
    **{f"norms of {n}": lambda n=n: norms(n) for n in (1, 7, 32, 50, 97, 256)},
    **{f"norms of {n}, many": lambda n=n: norms(n, rows=45) for n in (1, 2, 5, 20, 32)},
    "norms of 2, more": lambda: norms(2, rows=600),
    "softmaxes of few values": softmaxes_of_few,
    "norms of long rows": lambda: norms(8192 + 8192 + 45, rows=2),
    "softmax extremes": softmax_extremes,
    "groups": groups,
    **{
        f"products of {rows}, {length}, {columns}": lambda s=(rows, length, columns): products(*s)
        for rows, length, columns in ((1, 1, 1), (5, 7, 33), (13, 64, 32), (50, 31, 50), (97, 9, 16), (2, 3000, 40))
    },
    **{
        f"linear {rows}, {length}, {columns}": lambda s=(rows, length, columns): linear(*s)
        for rows, length, columns in ((1, 1, 1), (7, 64, 33), (50, 259, 70), (3, 9000, 40), (131, 64, 32))
    },
    **{
        f"attention of {rows}, {columns}, {length}, {width}": lambda s=(rows, columns, length, width): attention(*s)
        for rows, columns, length, width in ((1, 1, 1, 1), (13, 7, 5, 3), (31, 50, 32, 33), (6, 520, 16, 40))
    },
    "linear of extremes": linear_of_extremes,
    **{
        f"listed rows {rows}, {length}, {columns}": lambda s=(rows, length, columns): listed(*s)
        for rows, length, columns in ((1, 1, 1), (49, 96, 33), (130, 70, 64))
    },
    "dense": lambda: convolution(Windows.DENSE, 5, 37),
    "dense, strided": lambda: convolution(Windows.DENSE, 16, 64, stride=2, kernel=(5, 3), pad=2),
    "dense, dilated groups": lambda: convolution(Windows.DENSE, 12, 8, dilation=2, pad=2, groups=4),
    "dense, one pixel": lambda: convolution(Windows.DENSE, 70, 32, kernel=(1, 1), pad=0),
    "dense, long windows": lambda: convolution(Windows.DENSE, 700, 3, kernel=(5, 5), pad=0),
    "transposed": lambda: convolution(Windows.TRANSPOSED, 6, 4, stride=2, groups=2, size=(14, 12)),
    "transposed, dilated": lambda: convolution(Windows.TRANSPOSED, 5, 3, stride=3, dilation=2, pad=1, size=(21, 18)),
    "depthwise": lambda: convolution(Windows.DEPTHWISE, 19, 19),
    "depthwise, strided": lambda: convolution(Windows.DEPTHWISE, 64, 64, stride=2, kernel=(7, 7), pad=3),
    "maximum": lambda: convolution(Windows.MAXIMUM, 21, 21, stride=2),
    "maximum, dilated": lambda: convolution(Windows.MAXIMUM, 7, 7, dilation=2, pad=1, kernel=(2, 3)),
    "average": lambda: convolution(Windows.AVERAGE, 33, 33, scale=1 / 9),
    "average inside": lambda: convolution(Windows.AVERAGE, 6, 6, stride=2),
    "codes": lambda: codes(7),
    "codes of many channels": lambda: codes(300),
}  # fmt: skip


def made(name: str) -> Net:
    """Return a program; its extremes overflow as they should."""
    with np.errstate(all="ignore"):
        return NETS[name]()


@pytest.fixture(autouse=True)
def _kernels() -> None:
    library.load()
    library.set_threads(1)


def same_bytes(found: Array, expected: Array) -> None:
    """Compare values bit by bit; what is no number may be any of those."""
    differ = (found.view(np.uint32) != expected.view(np.uint32)) & ~(np.isnan(found) & np.isnan(expected))
    assert not differ.any(), (np.argwhere(differ)[:5], found[differ][:5], expected[differ][:5], differ.mean())


@pytest.mark.parametrize("name", NETS)
def test_each_layer_gives_what_plain_arithmetic_gives(name: str) -> None:
    net = made(name)
    x, program = net.tensors()
    found = torch.ops.cpupack.run_1(x, program, net.program.outputs).numpy()
    begin = 0
    for expected in net.expected:
        same_bytes(np.ascontiguousarray(found[:, begin : begin + expected.shape[1]]), expected)
        begin += expected.shape[1]
    assert begin == net.program.outputs


@pytest.mark.parametrize(
    "name",
    [
        "orders",
        "norms of 50",
        "products of 50, 31, 50",
        "dense",
        "depthwise",
        "codes",
        "groups",
        "linear 50, 259, 70",
        "listed rows 49, 96, 33",
    ],
)
def test_any_batch_and_any_number_of_threads_give_the_same_bytes(name: str) -> None:
    net = made(name)
    x, program = net.tensors()
    alone = [torch.ops.cpupack.run_1(each[None], program, net.program.outputs) for each in x]
    for threads in (1, 2, 3):
        library.set_threads(threads)
        for batch in (1, 2, 5):
            found = torch.ops.cpupack.run_1(x.repeat(5, 1)[:batch].contiguous(), program, net.program.outputs)
            for sample in range(batch):
                assert torch.equal(found[sample], alone[sample % len(x)][0]), (threads, batch, sample)


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "bound"),
    [
        (Function.EXPONENTIAL, np.exp, -87.0, 88.0, 2e-7),
        (Function.LOGARITHM, np.log, 1e-30, 1e30, 2e-7),
        (Function.TANH, np.tanh, -9.0, 9.0, 4e-7),
        (Function.SIGMOID, lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0, 4e-7),
        (Function.ERF, lambda x: torch.erf(torch.from_numpy(x)).numpy(), -4.0, 4.0, 4e-7),
    ],
)
def test_the_reference_itself_is_the_function(
    function: Function, exact: Callable[[Array], Array], low: float, high: float, bound: float
) -> None:
    x = np.linspace(low, high, 20001).astype(np.float32)
    expected = exact(x.astype(np.float64))
    found = reference.run([Instruction(function)], x)
    assert np.abs(found / np.where(expected == 0, 1, expected) - (expected != 0)).max() < bound


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_what_float64_makes_of_it(causal: bool) -> None:
    q, k, v = (normal(2, 3, 40, 16, seed=seed) for seed in range(3))
    mask = np.where(np.random.default_rng(1).random((40, 40)) < 0.3, -np.inf, 0.0)
    np.fill_diagonal(mask, 0.0)
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * 0.25 + mask
    scores = np.where(np.tril(np.ones((40, 40), bool)), scores, -np.inf) if causal else scores
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    exact = powers / powers.sum(-1, keepdims=True) @ v.astype(np.float64)
    assert np.abs(reference.attention(q, k, v, 0.25, mask, causal=causal) - exact).max() < 4e-6


@pytest.mark.parametrize(
    ("function", "approximate"), [(Function.GELU, "none"), (Function.GELU_TANH, "tanh")], ids=["erf", "tanh"]
)
def test_gelu_is_the_function(function: Function, approximate: str) -> None:
    x = np.concatenate([np.linspace(-12.0, 12.0, 40001), [-1e4, -1e30, -np.inf, 0.0, 1e4, 1e30]]).astype(np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(x.astype(np.float64)), approximate=approximate).numpy()
    exact = np.nan_to_num(exact, nan=0.0)
    with np.errstate(all="ignore"):
        found = reference.run([Instruction(function)], x)
    assert (np.abs(found - exact) <= 1e-6 + 3e-7 * np.abs(exact)).all()


def digests() -> dict[str, str]:
    """Return a hash of the results of every program, and the instruction set that made them."""
    library.load()
    found = {"isa": library.describe()["isa"]}
    for name in NETS:
        net = made(name)
        x, program = net.tensors()
        results = torch.ops.cpupack.run_1(x, program, net.program.outputs)
        found[name] = hashlib.sha256(torch.nan_to_num(results, nan=12345.0).numpy().tobytes()).hexdigest()
    return found


DIGESTS = """
import json, sys
sys.path[:0] = sys.argv[1:]
import test_float_kernels as tests
print(json.dumps(tests.digests()))
"""


@pytest.mark.parametrize("isa", ["vnni", "avx2"])
def test_lesser_instruction_sets_give_the_same_bytes(isa: str) -> None:
    here = digests()
    if isa in {here["isa"], {"avx2": "vnni"}.get(here["isa"])}:
        pytest.skip(f"this CPU has no more than {here['isa']}")
    done = in_a_process(DIGESTS, CPUPACK_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**here, "isa": isa}


def test_a_layers_values_can_be_seen() -> None:
    net = Net(normal(3, 35))
    view, x = net.view((5, 7))
    net.result(net.floats.map(net.floats.like(view), view, None, [Instruction(Function.TANH)]), reference.tanh(x))
    inputs, program = net.tensors()
    seen = codes_after(program, inputs, 1, (1, 35, 4)).reshape(3, -1).view(np.float32)
    same_bytes(seen, net.expected[0])


@pytest.mark.parametrize("number", [-1.0, 3.0, 1e9, -np.inf, np.nan])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_number_beyond_a_table_is_an_error_and_the_next_call_works(number: float, threads: int) -> None:
    net = Net(np.zeros((4, 5)))
    view, _ = net.view((5,))
    table = normal(3, 8)
    net.result(net.floats.look_up(view, table, None), table[np.zeros((4, 5), np.int64)])
    inputs, program = net.tensors()
    library.set_threads(threads)
    wrong = inputs.clone()
    wrong[3, 4] = number
    with pytest.raises(RuntimeError, match="has no row"):
        torch.ops.cpupack.run_1(wrong, program, net.program.outputs)
    same_bytes(torch.ops.cpupack.run_1(inputs, program, net.program.outputs).numpy(), net.expected[0])


# --- damaged programs

DAMAGED = (
    "orders", "reductions of 31", "norms of 50", "groups", "products of 5, 7, 33", "dense, strided", "transposed",
    "depthwise, strided", "maximum, dilated", "average", "codes", "softmaxes of few values",
    "linear 7, 64, 33", "attention of 13, 7, 5, 3", "look-ups",
)  # fmt: skip
DAMAGE = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_float_kernels as tests
print(*tests.damage(int(sys.argv[3])))
"""
_HEADER, _BUFFER, _LAYER = 64, 40, 144
_OF_FLOATS = 15


def damage(seed: int) -> tuple[int, int]:
    """Run damaged programs; return how many ran and how many were refused. Must come back at all."""
    library.load()
    random = np.random.default_rng(seed)
    ran = refused = 0
    for name in DAMAGED:
        net = made(name)
        x, program = net.tensors()
        library.set_threads(int(random.integers(1, 3)))
        for data in damaged(program.numpy(), random):
            data[40:48] = random.integers(0, 256, 8)  # another identity, so the kernels know nothing of the program
            try:
                torch.ops.cpupack.run_1(x, torch.from_numpy(data), int(data[32:36].view("<i4")[0]))
                ran += 1
            except RuntimeError:
                refused += 1
    return ran, refused


def damaged(program: Array, random: np.random.Generator) -> list[Array]:
    """Return programs with numbers of buffers, of layers or of walks changed."""
    header = program[:_HEADER].view("<i4")
    layers_at = _HEADER + _BUFFER * int(header[2])
    end = layers_at + _LAYER * int(header[3])
    constants = int(program[56:64].view("<i8")[0])
    walks = []
    for layer in range(int(header[3])):
        at = layers_at + _LAYER * layer
        if int(program[at : at + 4].view("<i4")[0]) > _OF_FLOATS + 1:
            begin = constants + int(program[at + 112 : at + 120].view("<i8")[0])
            walks += range(begin, begin + 160, 4)
    extremes = [-(2**31), -1, 0, 1, 2, 3, 31, 33, 64, 255, 4096, 2**15, 2**16, 2**24, 2**30, 2**31 - 1]
    places = [*random.choice(range(36, end, 4), 150), *random.choice(walks, 250)]
    found = []
    for place in places:
        data = program.copy()
        if place + 4 > len(data):
            continue
        if random.random() < 0.5:
            data[place : place + 4].view("<i4")[0] = random.choice(extremes)
        else:
            data[place : place + 4].view("<i4")[0] += random.integers(-4, 5)
        found.append(data)
    found.extend(program[: int(size)].copy() for size in random.integers(64, len(program), 20))
    return found


@pytest.mark.parametrize("seed", damage_seeds())
def test_damaged_programs_are_refused_or_run_but_never_crash(seed: int) -> None:
    done = in_a_process(DAMAGE, seed)
    assert done.returncode == 0, done.stderr[-2000:]
    ran, refused = map(int, done.stdout.split())
    assert ran > 100  # numbers that are only data, or that name other values of the same buffer
    assert refused > 1000
