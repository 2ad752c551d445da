"""Programs of layers of rows beside plain arithmetic in numpy: linear layers in INT8, attention, look-ups in tables."""

from __future__ import annotations

import math

import numpy as np
import torch

from cpupack.stages.quantize.native.heads import Heads, append_heads
from cpupack.stages.quantize.native.program import Flag
from cpupack.stages.quantize.native.row_codes import Listed, RowNorm, append_codes, append_linear
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, Norm, View
from helpers import float_reference as reference
from helpers import float_values as of_values
from helpers.float_nets import Net, normal


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
    for function in (
        Function.AT_LEAST, Function.GELU, Function.GELU_TANH, Function.GELU_NEAR, Function.GELU_TANH_NEAR,
    ):  # fmt: skip
        one = [Instruction(function)]
        net.result(append_linear(net.floats, codes, weights, scales, bias, instructions=one), of_values.run(one, plain))
    add, added = [Instruction(Function.ADD)], [Instruction(Function.ADD, 0, 1, 0)]
    mixed = [
        Instruction(Function.COPY, 2, 0),
        Instruction(Function.TANH, 2, 2),
        Instruction(Function.SUBTRACT, 0, 2, 1),
    ]
    for code in (add, added, mixed):
        found = append_linear(net.floats, codes, weights, scales, bias, instructions=code, second=second)
        net.result(found, of_values.run(code, plain, others[:, :, columns:]))
    apart = net.floats.side_by_side(view.permuted((1, 0))).permuted((1, 0))
    net.result(append_linear(net.floats, append_codes(net.floats, apart), weights, scales, bias), plain)
    gain, shift = normal(length, seed=7), normal(length, seed=8)
    fixed = [Fixed(torch.from_numpy(each)) for each in (gain, shift)]
    for kind, own in ((Norm.LAYER, (gain, shift)), (Norm.ROOT_MEAN_SQUARE, (None, None))):
        norm = RowNorm(kind, 1e-5, *(fixed if own[0] is not None else (None, None)))
        normed = append_codes(net.floats, view, norm)
        expected = reference.linear(reference.normalize(x, kind, 1e-5, *own), weights, scales, bias)
        net.result(append_linear(net.floats, normed, weights, scales, bias), expected)
    factors = np.exp(normal(length, seed=10))
    normed_by = reference.normalize(x, Norm.LAYER, 1e-5, gain * factors, shift * factors)
    for before, values in ((None, x * factors), (RowNorm(Norm.LAYER, 1e-5, *fixed), normed_by)):
        divided = append_codes(net.floats, view, before, torch.from_numpy(factors))
        expected = reference.linear(values, weights, scales, bias)
        net.result(append_linear(net.floats, divided, weights, scales, bias), expected)
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
        net.result(found, of_values.run(code, moved, others[:, :, columns:]))
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


def attention(rows: int, columns: int, length: int, width: int, *, heads: int = 2, words: bool = False) -> Net:
    """Heads that lie in turn for each token, with masks of each kind, and one that sees earlier tokens alone."""
    sizes = (rows * heads * length, columns * heads * length, columns * heads * width)
    net = Net(np.concatenate([normal(2, sum(sizes), scale=1.5), normal(2, rows * columns, seed=5)], 1))
    (one, q), (two, k), (three, v) = (
        net.view((count, heads, each), first)
        for count, each, first in ((rows, length, 0), (columns, length, sizes[0]), (columns, width, sum(sizes[:2])))
    )
    q, k, v = (each.transpose(0, 2, 1, 3) for each in (q, k, v))
    queries, keys, values = (each.permuted((1, 0, 2)) for each in (one, two, three))
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
        found = append_heads(net.floats, Heads(queries, keys, values, scale, masks, causal, words=words))
        attend = reference.coded_attention if words else reference.attention
        net.result(found, attend(q, k, v, scale, mask, causal=causal))
    return net


def attention_in_windows(*, words: bool) -> Net:
    """Five windows of two heads, of which some have the same mask: for both heads, for each head, and in both ways."""
    windows, heads, rows, columns, length = 5, 2, 19, 18, 8
    sizes = [windows * heads * count * length for count in (rows, columns, columns)]
    net = Net(normal(2, sum(sizes), scale=1.5))
    places = ((rows, 0), (columns, sizes[0]), (columns, sum(sizes[:2])))
    (queries, q), (keys, k), (values, v) = (net.view((windows, heads, count, length), at) for count, at in places)
    kinds = np.array([0, 0, 2, 0, 1])
    regions = np.where(np.random.default_rng(2).random((3, 1, rows, columns)) < 0.3, np.float32(-100), np.float32(0))
    biases = normal(1, heads, rows, columns, seed=9)
    rows_alone = normal(3, 1, rows, 1, seed=6)
    attend = reference.coded_attention if words else reference.attention
    for mask in (regions[kinds], regions[kinds] + biases, rows_alone[kinds]):
        found = append_heads(
            net.floats, Heads(queries, keys, values, 0.25, (Fixed(torch.from_numpy(mask)),), words=words)
        )
        assert net.floats.program.layers[-1].flags & Flag.PLACES
        net.result(found, attend(q, k, v, 0.25, mask))
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
    (queries, q), (keys, k), (values, v) = (net.view((1, 7, 5), 35 * place) for place in range(3))
    mask = np.where(np.arange(7)[:, None] % 3 == 0, np.float32(-np.inf), np.float32(0.25)).repeat(7, 1)
    for nan in (False, True):
        for words in (False, True):
            heads = Heads(queries, keys, values, 0.5, (Fixed(torch.from_numpy(mask)),), unseen_is_nan=nan, words=words)
            attend = reference.coded_attention if words else reference.attention
            net.result(append_heads(net.floats, heads), attend(q, k, v, 0.5, mask, unseen=np.nan if nan else 0.0))
    return net


def attention_of_extremes() -> Net:
    """Attention by codes to rows of zeros, of tiny and of huge values, of one value, and of what is not finite."""
    rows, columns, length, width = 6, 33, 4, 5
    net = Net(np.concatenate([normal(1, rows * length), normal(1, columns * (length + width), seed=3)], 1))
    q = net.samples[:, : rows * length].reshape(1, rows, length)
    k = net.samples[:, rows * length : rows * length + columns * length].reshape(1, columns, length)
    v = net.samples[:, rows * length + columns * length :].reshape(1, columns, width)
    q[0, 0], q[0, 1], q[0, 2, 3], q[0, 3] = 0.0, 1e-38, np.nan, 7.0
    k[0, 3], k[0, 4], k[0, 5] = 0.0, 40.0, np.linspace(-1e-29, 1e-29, length)
    v[0, 0], v[0, 1], v[0, 2], v[0, 3] = 0.0, 1e25, 1e-31, -3.0
    (queries, q), (keys, k), (values, v) = (
        net.view(shape, first)
        for shape, first in (
            ((rows, length), 0), ((columns, length), rows * length), ((columns, width), (rows + columns) * length),
        )
    )  # fmt: skip
    mask = np.where(np.arange(columns) == 1, np.float32(-np.inf), np.float32(0.0))[None].repeat(rows, 0)
    for masks, added in (((), None), ((Fixed(torch.from_numpy(mask)),), mask)):
        found = append_heads(net.floats, Heads(queries, keys, values, 0.5, masks, words=True))
        net.result(found, reference.coded_attention(q, k, v, 0.5, added))
    return net
