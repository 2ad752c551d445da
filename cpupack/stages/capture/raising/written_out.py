"""Handlers of calls that torch has in one piece, written out in others that every engine has.

Logarithms of sums, products over a dimension, triangles, windows that are put back (``F.fold``), and sums at
constant places (``index_add``, ``scatter_add``), as graph networks with fixed edges have them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.raising.masks import may_be_no_number
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser, numbers
from cpupack.stages.capture.raising.shapes import permuted, reshaped, sliced

_ATEN = torch.ops.aten
_EXPANSIONS = (_ATEN.expand.default, _ATEN.expand_as.default)
_TRANSPOSED: Any = nn.ConvTranspose2d
_MOST_PLACES = 1 << 20
_MOST_FACTORS = 64


def _static_dims(r: Raiser, source: Any, dims: Any) -> tuple[int, ...]:
    """Return dimensions counted from 0; raise NotRaised where the batch is one of them."""
    rank = len(r.shape(source))
    given = tuple(each % rank for each in ([dims] if isinstance(dims, int) else dims or range(rank)))
    if not r.is_float(source) or any(r.dynamic(source)[each] for each in given):
        raise NotRaised
    return given


def _log_of_sum(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``logsumexp``: the largest value, and the logarithm of the sum of how far the others are below it."""
    dims, x = _static_dims(r, a["self"], a["dim"]), r.activation(a["self"])
    largest = r.call(torch.amax, x, dims, True)
    total = r.call(torch.sum, r.call(torch.exp, r.call(torch.sub, x, largest)), dims, True)
    found = r.call(torch.add, r.call(torch.log, total), largest)
    if a["keepdim"]:
        return found
    shape, moves = r.shape(a["self"]), r.dynamic(a["self"])
    kept = tuple(1 if each in dims else size for each, size in enumerate(shape))
    return reshaped(r, found, kept, r.shape(), tuple(each for at, each in enumerate(moves) if at not in dims))


def _differences(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``diff``: each value but the first, less the one before it."""
    x, shape = r.activation(a["self"]), r.shape(a["self"])
    dim = a["dim"] % len(shape)
    if a["n"] != 1 or a["prepend"] is not None or a["append"] is not None or r.dynamic(a["self"])[dim]:
        raise NotRaised
    later, sooner = (sliced(r, x, len(shape), dim, start, shape[dim] - 1 + start) for start in (1, 0))
    return r.call(torch.sub, later, sooner)


def _product(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``prod`` along a dimension: products of halves."""
    if a.get("dtype") is not None:
        raise NotRaised
    (dim,) = _static_dims(r, a["self"], a["dim"])
    shape, moves = r.shape(a["self"]), r.dynamic(a["self"])
    x, size, rest = r.activation(a["self"]), shape[dim], []
    if not 1 <= size <= _MOST_FACTORS:
        raise NotRaised
    while size > 1:
        half = size // 2
        if size % 2:
            rest.append(sliced(r, x, len(shape), dim, size - 1, size))
        first, second = (sliced(r, x, len(shape), dim, at, at + half) for at in (0, half))
        x, size = r.call(torch.mul, first, second), half
    for each in rest:
        x = r.call(torch.mul, x, each)
    if a["keepdim"]:
        return x
    before = (*shape[:dim], 1, *shape[dim + 1 :])
    return reshaped(r, x, before, r.shape(), (*moves[:dim], *moves[dim + 1 :]))


def _triangle(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``tril`` and ``triu``: a product with ones and zeros."""
    cut = torch.tril if "tril" in r.node.target._schema.name else torch.triu  # type: ignore[union-attr]  # an OpOverload
    _static_dims(r, a["self"], (-2, -1))
    keep = cut(torch.ones(r.shape()[-2:]), a["diagonal"])
    return r.call(torch.mul, r.activation(a["self"]), r.attribute(keep, "triangle"))


def _classes(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``one_hot``: a comparison with the numbers of the classes."""
    x, shape = r.activation(a["self"]), r.shape()
    if any(r.dynamic()[1:]) or not r.dynamic()[0]:
        raise NotRaised
    places = r.call(torch.reshape, x, (-1, *shape[1:-1], 1), word="classes")
    here = r.call(_ATEN.eq.Tensor, places, r.attribute(torch.arange(shape[-1]), "classes"), word="is_class")
    return r.call(_ATEN._to_copy.default, here, dtype=torch.int64, word="one_hot")


def _put_back(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``F.fold``: windows that do not meet are a reshape, others the transposed convolution with ones."""
    shape = r.shape(a["self"])
    if len(shape) != 3 or any(r.dynamic(a["self"])[1:]) or not r.is_float():
        raise NotRaised
    kernel, dilation, padding, stride = (
        numbers(a[name], 2) for name in ("kernel_size", "dilation", "padding", "stride")
    )
    height, width = r.shape()[2:]
    rows, columns = (
        (size + 2 * pad - step * (length - 1) - 1) // by + 1
        for size, pad, step, length, by in zip((height, width), padding, dilation, kernel, stride, strict=True)
    )
    return put_back(
        r, r.activation(a["self"]), (height, width), (rows, columns), shape[1] // math.prod(kernel), kernel=kernel,
        stride=stride, dilation=dilation, padding=padding,
    )  # fmt: skip


def put_back(
    r: Raiser,
    x: fx.Node,
    plane: tuple[int, ...],
    counts: tuple[int, ...],
    channels: int,
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
) -> fx.Node:
    """Add what puts ``counts`` windows ``(batch, channels * kernel, windows)`` into images of size ``plane``."""
    places, whole = math.prod(kernel), tuple(a * b for a, b in zip(counts, kernel, strict=True))
    if kernel == stride and whole == plane and padding == (0, 0) and dilation == (1, 1):
        x = r.call(torch.reshape, x, (-1, channels, *kernel, *counts))
        x = r.call(torch.permute, x, (0, 1, 4, 2, 5, 3))
        return r.call(torch.reshape, x, (-1, channels, *plane))
    rest = [
        size + 2 * pad - step * (length - 1) - 1 - (count - 1) * by
        for size, pad, step, length, by, count in zip(plane, padding, dilation, kernel, stride, counts, strict=True)
    ]
    fold = _TRANSPOSED(
        channels * places, channels, kernel, stride, padding, (rest[0], rest[1]), groups=channels, bias=False,
        dilation=dilation,
    )  # fmt: skip
    one = torch.eye(places).reshape(places, 1, *kernel).repeat(channels, 1, 1, 1)
    fold.weight = nn.Parameter(one, requires_grad=False)
    return r.module(fold, r.call(torch.reshape, x, (-1, channels * places, *counts)), word="fold")


def same_for_all(r: Raiser, value: Any) -> torch.Tensor:
    """Return a constant that is laid out for the batch, in the shape that it has there."""
    shape = r.shape(value)
    while isinstance(value, fx.Node) and not r.is_known(value) and value.target in _EXPANSIONS:
        value = value.args[0]
    found = r.tensor(value)
    if found is None:
        raise NotRaised
    return found.expand(shape)


def _add_at(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``index_add`` at constant places: a product with a matrix of ones and zeros."""
    places = r.tensor(a["index"])
    (dim,) = _static_dims(r, a["self"], a["dim"])
    if places is None or places.ndim != 1:
        raise NotRaised
    return _summed_at(r, a["self"], a["source"], dim, places, float(a["alpha"]))


def _scatter_add(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``scatter_add`` at places that are the same along all other dimensions."""
    (dim,) = _static_dims(r, a["self"], a["dim"])
    places = same_for_all(r, a["index"])
    rank, sizes = places.ndim, r.shape(a["src"])
    others = [each for each in range(rank) if each != dim]
    if rank != len(sizes) or tuple(places.shape) != sizes or any(sizes[each] != r.shape()[each] for each in others):
        raise NotRaised
    first = places[tuple(slice(None) if each == dim else slice(0, 1) for each in range(rank))]
    if not torch.equal(first.expand(sizes), places):
        raise NotRaised
    return _summed_at(r, a["self"], a["src"], dim, first.reshape(-1), 1.0)


def _summed_at(r: Raiser, base: Any, source: Any, dim: int, places: torch.Tensor, times: float) -> fx.Node:
    size, rank = r.shape()[dim], len(r.shape())
    if not r.is_float() or not r.is_float(source) or size * len(places) > _MOST_PLACES or rank < 3:
        raise NotRaised
    matrix = torch.zeros(len(places), size)
    matrix[torch.arange(len(places)), places % size] = times
    x = r.activation(source)
    if dim == rank - 2:
        x = r.call(torch.matmul, r.attribute(matrix.T.contiguous(), "places"), x)
    else:
        order = [*(each for each in range(rank) if each != dim), dim]
        x = r.call(torch.matmul, permuted(r, x, order), r.attribute(matrix, "places"))
        x = permuted(r, x, [order.index(each) for each in range(rank)])
    before = r.operand(base)
    return x if _is_zero(r, before) else r.call(torch.add, x, before)


def _is_zero(r: Raiser, node: Any) -> bool:
    """Whether a tensor is a constant of zeros, laid out for the batch or not."""
    if isinstance(node, fx.Node) and node.op == "call_method" and node.target == "expand":
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    return not bool(r.root.get_buffer(str(node.target)).any())


def _fill_chosen(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``x[mask] = number``: where a mask is true, the number."""
    (mask, *others), source, value = a["indices"], a["self"], r.tensor(a["values"])
    if others or a["accumulate"] or not isinstance(mask, fx.Node) or value is None or value.numel() != 1:
        raise NotRaised
    shape, masked = r.shape(source), r.shape(mask)
    if mask.meta["val"].dtype != torch.bool or masked != shape[: len(masked)] or not r.dynamic(source)[0]:
        raise NotRaised
    if r.is_known(mask) or r.dynamic(mask) != r.dynamic(source)[: len(masked)]:
        raise NotRaised
    more = len(shape) - len(masked)
    where = reshaped(r, r.activation(mask), masked, (*masked, *[1] * more), (*r.dynamic(mask), *[False] * more))
    return r.call(_ATEN.masked_fill.Scalar, r.activation(source), where, value.item(), word="fill")


def _is_infinite(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return r.call(_ATEN.eq.Scalar, _size_of(r, a), math.inf, word="is_infinite")


def _is_finite(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return r.call(_ATEN.lt.Scalar, _size_of(r, a), math.inf, word="is_finite")


def _is_no_number(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``isnan``: what is no number does not equal itself."""
    if not r.is_float(a["self"]):
        raise NotRaised
    x = r.activation(a["self"])
    return r.call(_ATEN.ne.Tensor, x, x, word="is_no_number")


def _with_numbers(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``nan_to_num``: nothing where no call before gives infinities or NaN, since a runner refuses them as inputs."""
    source = a["self"]
    if not r.is_float(source) or r.is_known(source):
        raise NotRaised
    x = r.activation(source)
    if not may_be_no_number(r, source):
        return x
    x = r.call(_ATEN.where.ScalarOther, r.call(_ATEN.eq.Tensor, x, x, word="is_number"), x, float(a["nan"] or 0.0))
    for infinity, end in ((math.inf, a["posinf"]), (-math.inf, a["neginf"])):
        if end is not None:
            ended = r.call(_ATEN.eq.Scalar, x, infinity, word="is_infinite")
            x = r.call(_ATEN.masked_fill.Scalar, x, ended, float(end), word="fill")
    most = torch.finfo(torch.float32).max
    return r.call(torch.clamp, x, -most, most)


def _size_of(r: Raiser, a: dict[str, Any]) -> fx.Node:
    if not r.is_float(a["self"]):
        raise NotRaised
    return r.call(torch.abs, r.activation(a["self"]))


HANDLERS: dict[str, Any] = {
    "logsumexp": _log_of_sum, "prod": _product, "tril": _triangle, "triu": _triangle, "one_hot": _classes,
    "diff": _differences, "col2im": _put_back, "index_add": _add_at, "scatter_add": _scatter_add,
    "index_put": _fill_chosen, "isinf": _is_infinite, "isfinite": _is_finite,
    "isnan": _is_no_number, "nan_to_num": _with_numbers,
}  # fmt: skip
