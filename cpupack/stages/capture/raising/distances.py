"""Handlers of distances and norms: of all pairs of vectors, of each value (losses without a reduction), other names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import reshaped
from cpupack.stages.capture.raising.written_out import same_for_all

_ATEN = torch.ops.aten
_NO_REDUCTION = 0
_MOST_DIFFERENCES = 1 << 18
"""Differences of one sample that are kept, of a distance that is no root of squares."""
_FEW, _BY_PRODUCTS, _BY_DIFFERENCES = 25, 1, 2
"""Up to so many vectors on both sides torch takes differences; modes choose one way (torch/functional.py, cdist)."""


def _error(function: Callable[..., Any], *arguments: Any) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    """Return a handler of ``F.mse_loss`` and the like with ``reduction="none"``: a function of the difference."""

    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        one, other = a["self"], a["target"]
        if a["reduction"] != _NO_REDUCTION or not (r.is_float() and r.is_float(one) and r.is_float(other)):
            raise NotRaised
        if r.is_known(one):
            one, other = other, one
        return r.call(function, r.call(torch.sub, r.activation(one), r.operand(other)), *arguments)

    return handler


def _broadcast(r: Raiser, a: dict[str, Any]) -> Any:
    """``broadcast_tensors``: where all have one shape already, as the losses ask for it."""
    shape = r.shape(a["tensors"][0])
    if any(r.shape(each) != shape or r.is_known(each) for each in a["tensors"]):
        raise NotRaised
    return [r.operand(each) for each in a["tensors"]]


def _norm(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``torch.linalg.norm`` over dimensions that are named: of vectors, or of matrices as if they were."""
    order, dims = a.get("ord"), a.get("dim")
    if a.get("dtype") is not None or not dims or not r.is_float(a["self"]) or not r.is_float():
        raise NotRaised
    if order is None or (len(dims) == 2 and order == "fro"):
        order = 2.0
    if isinstance(order, str) or (len(dims) != 1 and a.get("ord") not in {None, "fro"}):
        raise NotRaised  # a norm of matrices
    keepdim = bool(a.get("keepdim", False))
    return r.call(_ATEN.linalg_vector_norm.default, r.activation(a["self"]), float(order), list(dims), keepdim,
                  word="norm")  # fmt: skip


def _distances(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``cdist``: the distances between all vectors of two sets ``(..., rows, values)``, the second often a constant."""
    one, two = a["x1"], a["x2"]
    (*_, rows, values), (*_, columns, _) = first, second = r.shape(one), r.shape(two)
    if not r.is_float() or r.is_known(one) or any(r.dynamic()[1:]) or not r.dynamic(one)[0] or len(first) > 3:
        raise NotRaised
    held = None if len(first) == 3 and not r.is_known(two) and not _is_laid_out(r, two) else _table(r, two, len(first))
    if held is None and (len(second) != 3 or not r.dynamic(two)[0]):
        raise NotRaised
    mode = a.get("compute_mode") or 0
    if a["p"] == 2 and (mode == _BY_PRODUCTS or (mode != _BY_DIFFERENCES and max(rows, columns) > _FEW)):
        return _by_products(r, one, two, held)
    if math.prod(r.shape()[1:]) * values > _MOST_DIFFERENCES:
        raise NotRaised
    moves = (*r.dynamic(one)[:-1], False, False)
    apart = reshaped(r, r.activation(one), first, (*first[:-1], 1, values), moves)
    if held is None:
        found = r.call(torch.sub, apart, r.call(torch.reshape, r.activation(two), (-1, 1, *second[1:])))
    else:
        table = held[None] if len(first) == 2 else held[None, None]
        found = r.call(torch.add, apart, r.attribute(-table, r._name_of(two)))
    return r.call(_ATEN.linalg_vector_norm.default, found, float(a["p"]), [len(first)], False, word="norm")


def _by_products(r: Raiser, one: fx.Node, two: fx.Node, held: torch.Tensor | None) -> fx.Node:
    """Return roots of the sums of both squares less twice the product, as torch computes them of many vectors."""
    x = r.activation(one)
    if held is None:
        y = r.activation(two)
        products = r.call(torch.mul, r.call(torch.matmul, x, r.call(torch.permute, y, (0, 2, 1))), -2.0)
        squares = r.call(torch.sum, r.call(torch.pow, y, 2), (2,), True)
        products = r.call(torch.add, products, r.call(torch.permute, squares, (0, 2, 1)))
    else:
        linear = nn.Linear(held.shape[1], held.shape[0], device="meta")
        linear.weight = nn.Parameter(-2.0 * held, requires_grad=False)
        linear.bias = nn.Parameter(held.double().square().sum(1).float(), requires_grad=False)
        products = r.module(linear, x, word="linear")
    squares = r.call(torch.sum, r.call(torch.pow, x, 2), (len(r.shape(one)) - 1,), True)
    return r.call(torch.sqrt, r.call(torch.clamp, r.call(torch.add, products, squares), 0.0, None))


def _table(r: Raiser, two: fx.Node, rank: int) -> torch.Tensor:
    """Return vectors that are the same for all samples, float32 ``(rows, values)``."""
    held = same_for_all(r, two).float()
    if held.ndim == 3 and rank == 3 and torch.equal(held, held[:1].expand_as(held)):
        return held[0]
    if held.ndim != 2 or rank != 2:
        raise NotRaised
    return held


def _is_laid_out(r: Raiser, value: Any) -> bool:
    try:
        same_for_all(r, value)
    except NotRaised:
        return False
    return True


HANDLERS: dict[str, Any] = {
    "cdist": _distances,
    "_cdist_forward": _distances,
    "mse_loss": _error(torch.pow, 2),
    "l1_loss": _error(torch.abs),
    "broadcast_tensors": _broadcast,
    "linalg_norm": _norm,
}
"""By the name of an ATen operator."""
