"""Values by their rank in a row: medians, the k-th smallest, quantiles. Each ends the smallest or the largest ones."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.pools import reads_indices
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import reshaped, sliced

_TOP = torch.ops.aten.topk.default


class _Ranks:
    """The values of a dimension by their rank, from 0 for the smallest; the dimension must not be the batch."""

    def __init__(self, r: Raiser, a: dict[str, Any]) -> None:
        source = a["self"]
        shape = r.shape(source)
        if not isinstance(a["dim"], int) or not r.is_float(source) or not shape:
            raise NotRaised
        self._r, self._keep = r, bool(a["keepdim"])
        self._dim, self._rank = a["dim"] % len(shape), len(shape)
        if r.dynamic(source)[self._dim]:
            raise NotRaised
        self.count = shape[self._dim]
        self._x = r.activation(source)
        self._before = (*shape[: self._dim], 1, *shape[self._dim + 1 :])
        self._moves = tuple(each for at, each in enumerate(r.dynamic(source)) if at != self._dim)

    def ordered(self, first: int, last: int) -> tuple[fx.Node, int, int]:
        """Return the ordered values and places that have these ranks, and where the two ranks are among them."""
        if not 0 <= first <= last < self.count:
            raise NotRaised
        down = self.count - first < last + 1
        length = self.count - first if down else last + 1
        found = self._r.call(_TOP, self._x, length, self._dim, down, True, word="ranked")
        where = [self.count - 1 - each if down else each for each in (first, last)]
        return found, where[0], where[1]

    def at(self, ordered: fx.Node, part: int, place: int) -> fx.Node:
        """Return the value (part 0) or the place (part 1) at a place of what is ordered."""
        values = self._r.call(operator.getitem, ordered, part, word="ranked")
        return sliced(self._r, values, self._rank, self._dim, place, place + 1)

    def result(self, value: fx.Node) -> fx.Node:
        """Return a value without the dimension where the call drops it."""
        if self._keep:
            return value
        after = (*self._before[: self._dim], *self._before[self._dim + 1 :])
        return reshaped(self._r, value, self._before, after, self._moves)


def _kth(r: Raiser, a: dict[str, Any], rank: int | None = None) -> list[Any]:
    """``kthvalue``, and with a ``rank`` that of ``median``: the value, and its place where something reads it."""
    ranks = _Ranks(r, a)
    own = (ranks.count - 1) // 2 if rank is None else rank
    ordered, place, _ = ranks.ordered(own, own)
    value = ranks.result(ranks.at(ordered, 0, place))
    return [value, ranks.result(ranks.at(ordered, 1, place)) if reads_indices(r.node) else None]


def _kth_value(r: Raiser, a: dict[str, Any]) -> list[Any]:
    return _kth(r, a, int(r.constant(a["k"])) - 1)


def _quantile(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``quantile`` at one share: between the two values around it."""
    held = r.constant(a["q"])
    if isinstance(held, torch.Tensor) and held.ndim:
        raise NotRaised  # a dimension more, in front of the batch
    ranks = _Ranks(r, a)
    place = float(held) * (ranks.count - 1)
    first = min(int(place), ranks.count - 1)
    last, share = min(first + 1, ranks.count - 1), place - first
    how = a["interpolation"]
    if how == "nearest":
        first = last = round(place)
    elif how == "midpoint":
        share = 0.5 if share else 0.0
    elif how != "linear":
        first = last = last if how == "higher" and share else first
    if first == last or not share:
        ordered, one, _ = ranks.ordered(first, first)
        return ranks.result(ranks.at(ordered, 0, one))
    ordered, one, other = ranks.ordered(first, last)
    low, high = ranks.at(ordered, 0, one), ranks.at(ordered, 0, other)
    between = r.call(torch.mul, r.call(torch.sub, high, low), share)
    return ranks.result(r.call(torch.add, low, between))


HANDLERS: dict[str, Any] = {"median": _kth, "kthvalue": _kth_value, "quantile": _quantile}
"""By the name of an ATen operator."""
