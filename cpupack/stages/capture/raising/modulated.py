"""Filters that are constant ones times factors of each sample: StyleGAN2's modulation, and what is written like it.

``filters[b, o, i] = constant[o, i] * out[b, o] * in[b, i]`` convolves a sample as ``constant`` convolves its channels
times ``in``, whose results are then times ``out``: a layer with weights (Karras et al. 2020, section 2.2 and appendix
B). The norm of such filters needs no filters either: the sum of squares over inputs and places is ``out ** 2`` times
the product of ``in ** 2`` with the constant filters' own sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser, name_of

Handler = Callable[[Raiser, dict[str, Any]], Any]
_SAME = (
    "contiguous",
    "clone",
    "alias",
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
)
"""What changes at most how the dimensions are divided, not the order of values."""


@dataclass
class Factors:
    """One dimension's factors of each sample: the exported nodes, and whether each divides."""

    nodes: list[tuple[fx.Node, bool]] = field(default_factory=list)


@dataclass
class Modulated:
    """Filters ``(batch, first, second, *kernel)``: constant ones without the batch, factors for first and second."""

    filters: torch.Tensor
    name: str
    first: Factors
    second: Factors

    def turned(self) -> Modulated:
        """Return the same with the first two dimensions swapped."""
        return Modulated(self.filters.transpose(0, 1), self.name, self.second, self.first)


def modulated(r: Raiser, node: Any, rank: int) -> Modulated | None:
    """Return what filters of ``rank`` dimensions are made of, the batch first; None for filters made in another way.

    ``node`` may have the batch and the first dimension as one.
    """
    found = _same(r, node, lambda each: len(r.shape(each)) == rank)
    if found is None or r.dynamic(found) != (True, *[False] * (rank - 1)):
        return None
    turned = name_of(found) in ("transpose", "permute") and _swaps(found, rank)
    whole = found.args[0] if turned else found
    result = Modulated(torch.ones(()), "", Factors(), Factors())
    try:
        shape = r.shape(whole) if isinstance(whole, fx.Node) else ()
        _take(r, whole, shape, result)
    except NotRaised:
        return None
    result.filters = result.filters.expand(1, *shape[1:])[0].float().contiguous()
    return result.turned() if turned else result


def factor(r: Raiser, factors: Factors, spatial: int) -> fx.Node | None:
    """Return the product of factors as ``(batch, size, 1, ...)`` with ``spatial`` ones; None without any."""
    made = [_whole(r, node, spatial, divides=divides) for node, divides in factors.nodes]
    return reduce(lambda one, other: r.call(torch.mul, one, other), made) if made else None


def sum_of_squares(otherwise: Handler) -> Handler:
    """Return the handler of sums: those of the squares of modulated filters, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        squares = a["self"]
        dims, rank = a.get("dim"), len(r.shape(squares)) if _is_dynamic(r, squares) else 0
        if rank < 4 or not isinstance(dims, Sequence) or not r.is_float():
            return otherwise(r, a)
        summed, source = {each % rank for each in dims}, _squared(r, squares)
        kept = ({1, 2} - summed).pop() if len({1, 2} & summed) == 1 else 0
        if source is None or not kept or summed != {*range(1, rank)} - {kept}:
            return otherwise(r, a)
        found = modulated(r, source, rank)
        if found is None:
            return otherwise(r, a)
        own = found if kept == 1 else found.turned()  # what is kept comes first
        inputs = own.filters.shape[1]
        sums = own.filters.square().flatten(2).sum(2)
        if (scale := factor(r, own.second, 0)) is None:
            return otherwise(r, a)
        constant = r.attribute(sums[None], f"{own.name}.squares" if own.name else "squares")
        rows = r.call(torch.reshape, r.call(torch.pow, scale, 2), (-1, 1, inputs))
        total = r.call(torch.sum, r.call(torch.mul, rows, constant), (2,), False)
        if (outer := factor(r, own.first, 0)) is not None:
            total = r.call(torch.mul, total, r.call(torch.pow, outer, 2))
        return r.call(torch.reshape, total, (-1, *r.shape()[1:]))

    return handler


def _is_dynamic(r: Raiser, node: Any) -> bool:
    return isinstance(node, fx.Node) and node not in r.known and isinstance(node.meta.get("val"), torch.Tensor)


def _same(r: Raiser, node: Any, wanted: Callable[[fx.Node], bool]) -> fx.Node | None:
    """Return the first node that is ``wanted`` with the values of ``node`` in their order, None without one."""
    while _is_dynamic(r, node):
        if wanted(node):
            return node  # type: ignore[no-any-return]  # a node, as asked above
        if name_of(node) not in _SAME:
            return None
        node = node.args[0]
    return None


def _take(r: Raiser, node: Any, shape: tuple[int, ...], result: Modulated) -> None:
    """Take a product apart. Raises NotRaised for what is none."""
    if r.is_known(node):
        value = r.constant(node)
        if isinstance(value, torch.Tensor):
            if not value.is_floating_point() or value.ndim > len(shape):
                raise NotRaised
            if value.numel() > 1:
                result.name = result.name or r.weight_name(node)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise NotRaised
        result.filters = result.filters * value
        return
    if r.shape(node) != shape:
        _take_factor(r, node, shape, result)
        return
    name = name_of(node)
    if name == "mul":
        for each in node.args[:2]:
            _take(r, each, shape, result)
    elif name == "div" and len(node.args) == 2 and not node.kwargs:
        _take(r, node.args[0], shape, result)
        _divide(r, node.args[1], shape, result)
    else:
        source = _same(r, node.args[0], lambda each: r.shape(each) == shape) if name in _SAME else None
        if source is None:
            raise NotRaised
        _take(r, source, shape, result)


def _divide(r: Raiser, node: Any, shape: tuple[int, ...], result: Modulated) -> None:
    if r.is_known(node):
        result.filters = result.filters / r.constant(node)
    else:
        _take_factor(r, node, shape, result, divides=True)


def _take_factor(r: Raiser, node: fx.Node, shape: tuple[int, ...], result: Modulated, *, divides: bool = False) -> None:
    """Note what has a value for each sample and each of its first or second dimension."""
    missing = len(shape) - len(r.shape(node))
    own = (*[1] * missing, *r.shape(node))
    wide = [axis for axis, size in enumerate(own) if axis > 0 and size > 1]
    moves = (*[False] * missing, *r.dynamic(node))
    if moves != (True, *[False] * (len(shape) - 1)) or len(wide) > 1 or (wide and wide[0] > 2) or not r.is_float(node):
        raise NotRaised
    factors = result.second if wide == [2] else result.first
    factors.nodes.append((node, divides))


def _whole(r: Raiser, node: fx.Node, spatial: int, *, divides: bool) -> fx.Node:
    count = math.prod(r.shape(node)[1:])
    found = r.call(torch.reshape, r.activation(node), (-1, count, *[1] * spatial))
    return r.call(torch.reciprocal, found) if divides else found


def _swaps(node: fx.Node, rank: int) -> bool:
    """Whether a call swaps the first two dimensions after the batch."""
    given: list[Any] = list(node.args[1:])
    if name_of(node) == "permute":
        order = [each % rank for each in given[0]]
    else:
        order = list(range(rank))
        one, two = (each % rank for each in given)
        order[one], order[two] = order[two], order[one]
    return order == [0, 2, 1, *range(3, rank)]


def _squared(r: Raiser, node: fx.Node) -> Any:
    name = name_of(node)
    if name == "pow":
        return node.args[0] if node.args[1] == 2 else None
    if name == "mul":
        return node.args[0] if node.args[0] is node.args[1] else None
    return node.args[0] if name == "square" else None
