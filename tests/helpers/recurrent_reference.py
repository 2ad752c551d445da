"""What the engine's recurrent layers compute, in numpy: exact sums of codes, then the kernels' float32 operations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from cpupack.graph.weight_grid import LARGEST_CODE, weight_scales
from cpupack.stages.quantize.native.recurrence import GATES, Direction, Kind, Words, rounded
from helpers.float_values import Array, chain, f4, fma

_P = (1.3354692463e-8, 2.0609108105e-5, 3.4955898300e-3, 1.3381026685e-1, 1.0)
_Q = (7.7765719195e-7, 3.2856376492e-4, 2.5876989588e-2, 4.6714341640e-1, 1.0)
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
Fraction = tuple[Array, Array]
Products = Callable[[Array, torch.Tensor, Array], Array]


def tanh_as_fraction(x: Array) -> Fraction:
    y = np.maximum(np.minimum(x, np.float32(9.0)), np.float32(-9.0))  # numpy's keep what is no number
    z = y * y
    return chain(z, *_P) * y, chain(z, *_Q)


def sigmoid_as_fraction(x: Array) -> Fraction:
    above, below = tanh_as_fraction(x * _HALF)
    return below + above, below + below


def quotient(a: Fraction) -> Array:
    return a[0] / a[1]


def product_of(a: Fraction, b: Fraction) -> Array:
    return (a[0] * b[0]) / (a[1] * b[1])


def codes(x: Array) -> tuple[Array, Array]:
    """Return the codes of rows, int64, and their scales."""
    largest = np.nanmax(np.abs(x), axis=-1, initial=0.0).astype(np.float32)
    other = np.where(np.isfinite(x).all(-1), np.float32(0.0), np.float32(np.nan))
    tiny = largest < np.float32(1e-30)
    factor = np.where(tiny, np.float32(0.0), np.float32(127.0) / np.where(tiny, _ONE, largest))
    scales = np.where(tiny, np.float32(0.0), largest / np.float32(127.0)) + other
    shifted = fma(x, np.broadcast_to(factor[..., None], x.shape), np.full_like(x, 128.0))
    rounded = np.rint(np.where(np.isfinite(shifted), shifted, 0.0)).clip(0, 255)
    return rounded.astype(np.int64) - 128, scales.astype(np.float32)


def words(x: Array) -> tuple[Array, Array]:
    """The same for codes of 16 bits."""
    largest = np.nanmax(np.abs(x), axis=-1, initial=0.0).astype(np.float32)
    other = np.where(np.isfinite(x).all(-1), np.float32(0.0), np.float32(np.nan))
    tiny, most = largest < np.float32(1e-30), np.float32(32767.0)
    factor = np.where(tiny, np.float32(0.0), most / np.where(tiny, _ONE, largest))
    scales = np.where(tiny, np.float32(0.0), largest / most) + other
    scaled = x * factor[..., None].astype(np.float32)
    return np.rint(np.where(np.isfinite(scaled), scaled, 0.0)).astype(np.int64), scales.astype(np.float32)


def products_of_words(x: Array, weight: torch.Tensor, terms: Array) -> Array:
    """The same as ``products`` with codes of 16 bits."""
    whole, grid = rounded(weight, words=True)
    assert int(whole.abs().sum(1).max()) * 32767 < 2**31  # no input overflows the engine's sums
    rows, scales = words(x)
    sums = (rows @ whole.numpy().T).astype(np.float32)
    return fma(sums, scales[..., None] * grid.numpy().reshape(-1), np.broadcast_to(terms, sums.shape))


def products(x: Array, weight: torch.Tensor, terms: Array) -> Array:
    """Return rows times a matrix, plus terms."""
    grid = weight_scales(weight, 0)
    whole = torch.clamp(torch.round(weight / grid), -LARGEST_CODE, LARGEST_CODE).to(torch.int64).numpy()
    rows, scales = codes(x)
    sums = (rows @ whole.T).astype(np.float32)
    return fma(sums, scales[..., None] * grid.numpy().reshape(-1), np.broadcast_to(terms, sums.shape))


def run(
    kind: Kind, directions: list[Direction], x: Array, states: Array | None = None, wide: Words = Words.NONE
) -> tuple[Array, Array, Array]:
    """Return all hidden values, the last ones and the last cell values of sequences ``(n, steps, inputs)``."""
    outputs, hidden, cells = [], [], []
    for number, each in enumerate(directions):
        first = None if states is None else _of_direction(states, number, len(directions), each, kind)
        y, h, c = _run_one(kind, each, x[:, ::-1] if number else x, first, wide)
        outputs.append(y[:, ::-1] if number else y)
        hidden.append(h)
        cells.append(c)
    return np.concatenate(outputs, 2), np.stack(hidden, 1), np.stack(cells, 1)


def run_lengths(
    kind: Kind, directions: list[Direction], x: Array, states: Array, wide: Words = Words.NONE
) -> tuple[Array, Array, Array]:
    """Return what ``run`` does for sequences of their own lengths, the last of ``states``; zeros after each."""
    count, units, outputs = len(directions), len(directions[0].inputs) // GATES[kind], directions[0].outputs
    y = np.zeros((len(x), x.shape[1], count * outputs), np.float32)
    hidden, cells = np.zeros((len(x), count, outputs), np.float32), np.zeros((len(x), count, units), np.float32)
    for number, each in enumerate(x):
        length = states[number, -1]
        steps = int(min(length, x.shape[1])) if length > 0 else 0
        own = states[number : number + 1, :-1]
        if steps:
            found = run(kind, directions, each[None, :steps], own, wide)
            y[number, :steps], hidden[number], cells[number] = (part[0] for part in found)
        else:
            hidden[number] = own[0, : count * outputs].reshape(count, outputs)
            cells[number] = own[0, count * outputs :].reshape(count, units) if kind is Kind.LSTM else 0.0
    return y, hidden, cells


def _of_direction(states: Array, number: int, count: int, each: Direction, kind: Kind) -> tuple[Array, Array]:
    units = len(each.inputs) // GATES[kind]
    own, before = each.outputs, count * each.outputs + number * units
    return f4(states[:, number * own : (number + 1) * own]), f4(states[:, before : before + units])


def _run_one(
    kind: Kind, each: Direction, x: Array, states: tuple[Array, Array] | None, wide: Words
) -> tuple[Array, Array, Array]:
    gates = GATES[kind]
    units = len(each.inputs) // gates
    of_inputs: Products = products_of_words if Words.INPUTS in wide else products
    multiply: Products = products_of_words if Words.HIDDEN in wide else products
    h = np.zeros((len(x), each.outputs), np.float32) if states is None else states[0]
    c = np.zeros((len(x), units), np.float32) if states is None or kind is not Kind.LSTM else states[1]
    hidden_bias = each.hidden_bias.double().clone()
    fresh_bias = f4(hidden_bias[2 * units :].float())
    if kind is Kind.GRU:
        hidden_bias[2 * units :] = 0.0
    bias = (each.input_bias.double() + hidden_bias).float().numpy()
    found = []
    for step in range(x.shape[1]):
        own = of_inputs(x[:, step], each.inputs, bias)
        terms = own.copy()
        if kind is Kind.GRU:
            terms[:, 2 * units :] = fresh_bias
        gate = multiply(h, each.hidden, terms)
        parts = [gate[:, i * units : (i + 1) * units] for i in range(gates)]
        if kind is Kind.LSTM:
            kept = quotient(sigmoid_as_fraction(parts[1])) * c
            c = kept + product_of(sigmoid_as_fraction(parts[0]), tanh_as_fraction(parts[2]))
            h = product_of(sigmoid_as_fraction(parts[3]), tanh_as_fraction(c))
            if each.projection is not None:
                h = multiply(h, each.projection, np.zeros(each.outputs, np.float32))
        elif kind is Kind.GRU:
            new = fma(quotient(sigmoid_as_fraction(parts[0])), parts[2], own[:, 2 * units :])
            new = quotient(tanh_as_fraction(new))
            h = fma(quotient(sigmoid_as_fraction(parts[1])), h - new, new)
        else:
            h = quotient(tanh_as_fraction(parts[0])) if kind is Kind.TANH else np.maximum(parts[0], np.float32(0.0))
        found.append(h)
    return np.stack(found, 1), h, c
