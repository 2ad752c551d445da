"""Handlers of operators that are other ones put together: maxima of two tensors, gated units, masks, joins by name."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.raising.activations import clamp_module
from cpupack.stages.capture.raising.masks import HIDDEN, leads_to_softmax, may_be_infinite
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import reshaped

Handler = Callable[[Raiser, dict[str, Any]], Any]
_HIDES = -1e9
"""A score of this size or below is 0 after a softmax beside any other: masks have it in the place of an infinity."""


def _gated(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``glu``: the first half of the channels times the sigmoid of the second."""
    source = a["self"]
    dim = a["dim"] % len(r.shape(source))
    if r.dynamic(source)[dim] or not r.is_float():
        raise NotRaised
    parts = r.call(torch.chunk, r.activation(source), 2, dim)
    value, gate = (r.call(operator.getitem, parts, place) for place in range(2))
    return r.call(torch.mul, value, r.module(nn.Sigmoid(), gate, word="sigmoid"))


def _join_along(choose: Callable[[int], int]) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    """Return a handler of ``hstack`` and the like; ``choose`` gives the dimension for tensors of a rank."""

    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        rank = len(r.shape(a["tensors"][0]))
        dim = choose(rank)
        if dim >= rank or r.dynamic()[dim]:
            raise NotRaised  # a dimension is added, or batches are joined
        return r.call(torch.cat, [r.operand(each) for each in a["tensors"]], dim)

    return handler


def extreme(sign: float) -> Callable[[Raiser, dict[str, Any]], Any]:
    """Return a handler of ``maximum`` (sign 1) or ``minimum`` (-1) of two tensors."""

    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        left, right = a["self"], a["other"]
        if r.is_known(left):
            left, right = right, left
        x = r.activation(left)
        if not r.is_float():
            raise NotRaised
        if r.shape(left) != r.shape():
            raise NotRaised
        return _limited(r, x, right, sign)

    return handler


def _limited(r: Raiser, x: fx.Node, limit: Any, sign: float) -> fx.Node:
    """Return the larger (or smaller) of what has the current call's shape and a limit."""
    if r.is_known(limit):
        return _clamped(r, x, r.constant(limit), sign, r._name_of(limit) if isinstance(limit, fx.Node) else "limit")
    shape = r.shape()
    if len(shape) < 2 or r.shape(limit) != shape or any(r.dynamic()[1:]):  # one limit for many values
        own = torch.ops.aten.maximum if sign > 0 else torch.ops.aten.minimum
        return r.call(own.default, x, r.activation(limit))
    parts = [x, r.activation(limit)]
    if sign < 0:
        parts = [r.call(torch.mul, each, -1.0) for each in parts]
    joined = r.call(torch.reshape, r.call(torch.cat, parts, 1), (-1, 2, *shape[1:]))
    largest = r.call(torch.amax, joined, (1,), False)
    return r.call(torch.mul, largest, -1.0) if sign < 0 else largest


def _between_limits(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``clamp`` by tensors."""
    if not r.is_float() or r.shape(a["self"]) != r.shape():
        raise NotRaised
    x = r.activation(a["self"])
    for limit, sign in ((a.get("min"), 1.0), (a.get("max"), -1.0)):
        x = x if limit is None else _limited(r, x, limit, sign)
    return x


def clamp(otherwise: Handler) -> Handler:
    """Return the handler of ``clamp``: by tensors, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        limits = [each for each in (a.get("min"), a.get("max")) if isinstance(each, fx.Node)]
        if all(isinstance(r.known.get(each), int | float) for each in limits):
            return otherwise(r, a)
        return _between_limits(r, a)

    return handler


def _clamped(r: Raiser, x: fx.Node, limit: Any, sign: float, name: str) -> fx.Node:
    """The larger (or smaller) of ``x`` and a number, or of several: what ``x`` is above these, and they themselves."""
    if isinstance(limit, torch.Tensor) and limit.numel() > 1:
        if not bool(torch.isfinite(limit).all()):
            raise NotRaised
        limit = limit.float()
        above = r.call(torch.add, x, r.attribute(-limit, name))
        above = above if sign > 0 else r.call(torch.mul, above, -1.0)
        above = r.module(nn.ReLU(), above, word="relu")
        above = above if sign > 0 else r.call(torch.mul, above, -1.0)
        return r.call(torch.add, above, r.attribute(limit, name))
    if isinstance(limit, torch.Tensor):
        limit = float(limit)
    low, high = (limit, None) if sign > 0 else (None, limit)
    module = clamp_module(low, high)
    return r.call(torch.clamp, x, low, high) if module is None else r.module(module, x, word="relu")


def _mask_of(r: Raiser, value: Any) -> torch.Tensor:
    """Return a mask that is a constant, as zeros and ones; what is compared anew for each input has no form."""
    mask = r.tensor(value)
    if mask is None or mask.dtype != torch.bool:
        raise NotRaised
    return mask.float()


def _masked(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``masked_fill`` by a constant mask: a product and a sum with constants."""
    number = r.constant(a["value"])
    return chosen(r, 1.0 - _mask_of(r, a["mask"]), a["self"], number, r._name_of(a["mask"]))


def _where(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``where`` by a constant mask."""
    mask, one, other = _mask_of(r, a["condition"]), a["self"], a["other"]
    name = r._name_of(a["condition"])
    if r.is_known(other):
        return chosen(r, mask, one, r.constant(other), name)
    if r.is_known(one):
        return chosen(r, 1.0 - mask, other, r.constant(one), name)
    parts = [_times(r, each, keep, name) for each, keep in ((one, mask), (other, 1.0 - mask))]
    return r.call(torch.add, *parts)


def chosen(r: Raiser, keep: torch.Tensor, source: Any, other: Any, name: str) -> fx.Node:
    """Return ``source`` where ``keep`` is 1, the constant ``other`` where it is 0."""
    if isinstance(other, torch.Tensor):
        other = other.float() if other.numel() > 1 else float(other)
    if isinstance(other, float | int) and other <= _HIDES and _hides_some(r, keep, source) and leads_to_softmax(r.node):
        # Scores are far smaller: what they add to the number is lost in rounding.
        return r.call(torch.add, r.activation(source), r.attribute((1.0 - keep) * max(other, HIDDEN), name))
    if not isinstance(other, torch.Tensor | int | float) or not bool(torch.isfinite(torch.as_tensor(other)).all()):
        raise NotRaised  # an infinity times 0 is no number
    x = _times(r, source, keep, name)
    filled = (1.0 - keep) * other
    return x if not bool(filled.any()) else r.call(torch.add, x, r.attribute(filled, name))


def _hides_some(r: Raiser, keep: torch.Tensor, source: Any) -> bool:
    """Whether a mask of scores leaves something to see in each row: a row without would get equal parts of all."""
    same = r.is_float() and r.is_float(source) and r.shape(source) == r.shape() and keep.ndim > 0
    return same and bool((keep.amax(-1) > 0).all())


def _times(r: Raiser, source: Any, mask: torch.Tensor, name: str) -> fx.Node:
    if not r.is_float() or not r.is_float(source) or r.shape(source) != r.shape():
        raise NotRaised
    if isinstance(source, fx.Node) and may_be_infinite(r, source):
        raise NotRaised  # 0 times an infinity is no number
    return r.call(torch.mul, r.activation(source), r.attribute(mask, name))


def _plus_product(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``addcmul``: ``self + value * tensor1 * tensor2``."""
    if not r.is_float():
        raise NotRaised
    product = _product(r, a["tensor1"], a["tensor2"])
    if a["value"] != 1:
        product = r.call(torch.mul, product, float(a["value"]))
    return r.call(torch.add, product, r.operand(a["self"]))


def _plus_quotient(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``addcdiv``: ``self + value * tensor1 / tensor2``."""
    if not r.is_float() or r.is_known(a["tensor2"]):
        raise NotRaised
    quotient = r.call(torch.div, r.operand(a["tensor1"]), r.operand(a["tensor2"]))
    if a["value"] != 1:
        quotient = r.call(torch.mul, quotient, float(a["value"]))
    return r.call(torch.add, quotient, r.operand(a["self"]))


def _product(r: Raiser, left: Any, right: Any) -> fx.Node:
    if r.is_known(left):
        left, right = right, left
    return r.call(torch.mul, r.activation(left), r.operand(right))


def _between(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``lerp``: ``self + weight * (end - self)``."""
    if not r.is_float():
        raise NotRaised
    start, end, weight = r.activation(a["self"]), r.activation(a["end"]), r.operand(a["weight"])
    return r.call(torch.add, start, r.call(torch.mul, r.call(torch.sub, end, start), weight))


def _norm(r: Raiser, x: fx.Node, order: float, dim: int, *, keepdim: bool) -> fx.Node:
    return r.call(torch.ops.aten.linalg_vector_norm.default, x, order, [dim], keepdim, word="norm")


def _cosine_similarity(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``cosine_similarity``: the sum of products of two tensors, each divided by its norm."""
    rank = len(r.shape()) + 1
    dim = a["dim"] % rank
    units: list[fx.Node] = []
    for value in (a["x1"], a["x2"]):
        shape = r.shape(value)
        if len(shape) != rank or not r.is_float(value) or r.dynamic(value)[dim]:
            raise NotRaised
        if r.is_known(value):
            held = r.tensor(value)
            assert held is not None
            unit = held / held.norm(dim=dim, keepdim=True).clamp(min=a["eps"])
            units.append(r.attribute(unit, r._name_of(value)))
        else:
            x = r.activation(value)
            units.append(r.call(torch.div, x, r.call(torch.clamp, _norm(r, x, 2.0, dim, keepdim=True), a["eps"], None)))
    return r.call(torch.sum, r.call(torch.mul, *sorted(units, key=_is_constant)), (dim,), False)


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr"


def _pairwise_distance(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``pairwise_distance``: the norm of the difference of two tensors, to which a small number is added."""
    left, right = a["x1"], a["x2"]
    if not (r.is_float(left) and r.is_float(right) and r.shape(left) == r.shape(right)):
        raise NotRaised
    if r.is_known(left):
        left, right = right, left
    elif not r.is_known(right):
        difference = r.call(torch.sub, r.activation(left), r.activation(right))
        return _norm(r, r.call(torch.add, difference, a["eps"]), a["p"], len(r.shape(left)) - 1, keepdim=a["keepdim"])
    raise NotRaised


def _step(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``heaviside``: 1 above zero, 0 below, and the other operand's value at zero."""
    aten, other = torch.ops.aten, a["values"]
    if not r.is_float(a["self"]) or r.shape(a["self"]) != r.shape() or r.is_known(a["self"]):
        raise NotRaised
    x = r.activation(a["self"])
    above = r.call(aten._to_copy.default, r.call(aten.gt.Scalar, x, 0), dtype=torch.float32, word="above")
    return r.call(aten.where.self, r.call(aten.eq.Scalar, x, 0), r.operand(other), above, word="heaviside")


def _diagonal(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``diag_embed``: each value where its row and column meet, and zeros."""
    source = a["self"]
    shape, moves = r.shape(source), r.dynamic(source)
    last = (a["dim1"] % (len(shape) + 1), a["dim2"] % (len(shape) + 1))
    if a["offset"] != 0 or last != (len(shape) - 1, len(shape)) or moves[-1] or not r.is_float(source):
        raise NotRaised
    column = reshaped(r, r.activation(source), shape, (*shape, 1), (*moves, False))
    meets = r.attribute(torch.eye(shape[-1], dtype=torch.bool), "diagonal")
    zero = r.attribute(torch.zeros(()), "nothing")
    return r.call(torch.ops.aten.where.self, meets, column, zero, word="diagonal")


def _logarithm(base: float) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    """Return a handler of a logarithm to another base: a product with the natural one."""

    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        if not r.is_float() or not r.is_float(a["self"]):
            raise NotRaised
        return r.call(torch.mul, r.call(torch.log, r.activation(a["self"])), 1.0 / math.log(base))

    return handler


HANDLERS: dict[str, Any] = {
    "heaviside": _step,
    "diag_embed": _diagonal,
    "log10": _logarithm(10.0),
    "log2": _logarithm(2.0),
    "cosine_similarity": _cosine_similarity,
    "pairwise_distance": _pairwise_distance,
    "glu": _gated,
    "hstack": _join_along(lambda rank: 0 if rank == 1 else 1),
    "dstack": _join_along(lambda _: 2),
    "column_stack": _join_along(lambda _: 1),
    **dict.fromkeys(("maximum", "fmax"), extreme(1.0)),
    **dict.fromkeys(("minimum", "fmin"), extreme(-1.0)),
    "masked_fill": _masked,
    "where": _where,
    "addcmul": _plus_product,
    "addcdiv": _plus_quotient,
    "lerp": _between,
}
