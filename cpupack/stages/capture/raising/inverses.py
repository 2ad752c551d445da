"""Handlers of small matrices of each sample: inverses, determinants, and systems of a few equations.

Kalman filters and calibrated cameras have them. Each value of an adjugate is a sum of products of the matrix's values,
one for each order of the other columns: so all of them are a few gathers and products, and one sum. A matrix is divided
by its largest value first, so that no product leaves the range of float32. The inverse of a singular matrix is not
finite, where torch raises an error.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import reshaped

_ATEN = torch.ops.aten
_LARGEST = 4
"""Rows: the adjugate of five has 600 products, and with each row more of them cancel."""


def _inverse(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return _inverted(r, a["A"] if "A" in a else a["self"])


def _determinant(r: Raiser, a: dict[str, Any]) -> fx.Node:
    source = a["A"] if "A" in a else a["self"]
    flat, largest, size = _scaled(r, source)
    found = _determined(r, flat, _adjugate(r, source, flat, size), size, _last(r, source))
    for _ in range(size):
        found = r.call(torch.mul, found, largest)
    shape, moves = r.shape(source)[:-2], r.dynamic(source)[:-2]
    return reshaped(r, found, (*shape, 1), shape, moves)


def _log_determinant(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return r.call(torch.log, _determinant(r, a))


def _solved(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``linalg.solve``: the inverse times the right sides, which are vectors where they have a dimension less."""
    matrix, right = a["A"], a["B"]
    if not a["left"] or r.is_known(right) or not r.is_float(right):
        raise NotRaised
    inverse, shape, sizes = _inverted(r, matrix), r.shape(matrix), r.shape(right)
    x, moves = r.activation(right), r.dynamic(right)
    if sizes == shape[:-1]:
        column = reshaped(r, x, sizes, (*sizes, 1), (*moves, False))
        return reshaped(r, r.call(torch.matmul, inverse, column), (*sizes, 1), sizes, moves)
    if len(sizes) != len(shape) or sizes[:-2] != shape[:-2]:
        raise NotRaised
    return r.call(torch.matmul, inverse, x)


def _inverted(r: Raiser, source: Any) -> fx.Node:
    flat, largest, size = _scaled(r, source)
    adjugate = _adjugate(r, source, flat, size)
    divisor = r.call(torch.mul, _determined(r, flat, adjugate, size, _last(r, source)), largest)
    shape = r.shape(source)
    return reshaped(r, r.call(torch.div, adjugate, divisor), (*shape[:-2], size * size), shape, r.dynamic(source))


def _last(r: Raiser, source: fx.Node) -> int:
    """Return the dimension that has a matrix's values one after the other."""
    return len(r.shape(source)) - 2


def _scaled(r: Raiser, source: Any) -> tuple[fx.Node, fx.Node, int]:
    """Return the values of each matrix in a row, divided by the largest one; that one; and how many rows it has."""
    if r.is_known(source) or not r.is_float(source):
        raise NotRaised
    shape, moves = r.shape(source), r.dynamic(source)
    if len(shape) < 3 or not 2 <= shape[-1] == shape[-2] <= _LARGEST or any(moves[-2:]):
        raise NotRaised
    flat = reshaped(r, r.activation(source), shape, (*shape[:-2], shape[-1] ** 2), moves[:-1])
    largest = r.call(torch.amax, r.call(torch.abs, flat), (_last(r, source),), True)
    return r.call(torch.div, flat, largest), largest, shape[-1]


def _adjugate(r: Raiser, source: fx.Node, flat: fx.Node, size: int) -> fx.Node:
    """Return the adjugates of matrices ``(..., size * size)``: value (i, j) is of the rows but j, the columns but i."""
    last = _last(r, source)
    orders = list(permutations(range(size - 1)))
    places = torch.zeros(size - 1, len(orders), size * size, dtype=torch.int64)
    signs = torch.zeros(len(orders), size * size)
    for value in range(size * size):
        i, j = divmod(value, size)
        rows, columns = ([each for each in range(size) if each != left_out] for left_out in (j, i))
        for number, order in enumerate(orders):
            turns = sum(one > two for one, two in combinations(order, 2))
            signs[number, value] = (-1.0) ** (i + j + turns)
            for factor, (row, at) in enumerate(zip(rows, order, strict=True)):
                places[factor, number, value] = size * row + columns[at]
    product = _picked(r, flat, places[0], last)
    for each in places[1:]:
        product = r.call(torch.mul, product, _picked(r, flat, each, last))
    product = r.call(torch.mul, product, r.attribute(signs.reshape(-1), "signs"))
    if len(orders) == 1:
        return product
    lead, moves = r.shape(source)[:-2], r.dynamic(source)[:-2]
    apart = (*lead, len(orders), size * size)
    product = reshaped(r, product, (*lead, signs.numel()), apart, (*moves, False, False))
    return r.call(torch.sum, product, (last,), False)


def _determined(r: Raiser, flat: fx.Node, adjugate: fx.Node, size: int, last: int) -> fx.Node:
    """Return the determinants ``(..., 1)``: the first row times the adjugate's first column."""
    row, column = _picked(r, flat, torch.arange(size), last), _picked(r, adjugate, torch.arange(size) * size, last)
    return r.call(torch.sum, r.call(torch.mul, row, column), (last,), True)


def _picked(r: Raiser, flat: fx.Node, places: torch.Tensor, last: int) -> fx.Node:
    return r.call(_ATEN.index_select.default, flat, last, r.attribute(places.reshape(-1), "places"), word="picked")


HANDLERS: dict[str, Callable[[Raiser, dict[str, Any]], Any]] = {
    "inverse": _inverse, "linalg_inv": _inverse, "det": _determinant, "linalg_det": _determinant,
    "logdet": _log_determinant, "linalg_solve": _solved,
}  # fmt: skip
