"""A value of each sample at a computed place: the last token of a text, the token that ends it.

``x[torch.arange(len(x)), places]`` and ``x.gather(1, places)`` become a choice along the dimension and a sum of what
is left, one value and zeros. That is exact, no number depends on the batch, and every engine has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.pools import reads_indices
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import counts_samples, selected

_ATEN = torch.ops.aten
_PICKED = (torch.float32, torch.int64)
Handler = Callable[[Raiser, dict[str, Any]], Any]


def gather(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``torch.gather`` of one place along a dimension, which must not be the batch."""
    source, places = a["self"], a["index"]
    rank = len(r.shape(source))
    dim = a["dim"] % rank
    if r.dynamic(source)[dim] or not r.dynamic(source)[0]:
        raise NotRaised
    places = _unexpanded(r, places)
    if r.is_known(places):
        held = r.tensor(places)
        assert held is not None
        return _rearranged(r, source, held.reshape(*[1] * (rank - held.ndim), *held.shape), dim)
    sizes, whole = r.shape(places), r.shape(source)
    fits = len(sizes) == rank and all(
        sizes[each] in {1, whole[each]} and (sizes[each] > 1 or not r.dynamic(source)[each]) for each in range(rank)
    )
    if not fits or sizes[dim] != 1 or r.shape()[dim] != 1:
        raise NotRaised
    same = all(r.shape()[each] == whole[each] for each in range(rank) if each != dim)
    if not same:
        raise NotRaised  # of the first values of another dimension
    return _picked(r, source, r.activation(places), dim, keep=True)


def index(otherwise: Handler) -> Handler:
    """Return the handler of an index: by the samples' numbers and a place for each, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        given = [each for each in a["indices"] if each is not None]
        if len(given) == 1 and a["indices"][0] is given[0] and counts_samples(given[0]) and r.shape(given[0])[1:] == ():
            return r.activation(a["self"])  # all samples in their order
        of_samples = len(given) == 2 and a["indices"][:2] == given and isinstance(given[0], fx.Node)
        if not of_samples or not counts_samples(given[0]):
            return otherwise(r, a)
        source, places = a["self"], given[1]
        if r.is_known(places):
            held = r.tensor(places)
            if held is None or held.ndim or held.dtype != torch.int64:
                return otherwise(r, a)
            shape = r.shape(source)
            return selected(r, r.activation(source), shape, r.dynamic(source), 1, int(held) % shape[1])
        if not r.dynamic(source)[0] or any(r.dynamic(source)[1:]):
            raise NotRaised
        sizes = r.shape(places)
        if r.dynamic(places) not in {(True,), (True, False)} or sizes[1:] not in {(), (1,)}:
            raise NotRaised
        size, rank = r.shape(source)[1], len(r.shape(source))
        wrapped = r.activation(places)
        # As torch does, negative places count from the end.
        below = r.call(_ATEN.lt.Scalar, wrapped, 0, word="negative")
        wrapped = r.call(_ATEN.where.self, below, r.call(_ATEN.add.Tensor, wrapped, size, word="place"), wrapped)
        column = r.call(torch.reshape, wrapped, (-1, *[1] * (rank - 1)), word="place")
        return _picked(r, source, column, 1, keep=len(sizes) == 2)

    return handler


def extreme(otherwise: Handler, place: Any) -> Handler:
    """Return the handler of ``max`` or ``min`` along a dimension whose places are read, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        if "dim" not in a or not reads_indices(r.node):
            return otherwise(r, a)
        source = a["self"]
        dim = a["dim"] % len(r.shape(source))
        if r.dynamic(source)[dim]:
            raise NotRaised
        x, keep = r.activation(source), bool(a["keepdim"])
        values = torch.amax if place is _ATEN.argmax.default else torch.amin
        return [
            lambda: r.call(values, x, (dim,), keep),
            lambda: r.call(place, x, dim, keep, word=str(place).split(".")[1]),
        ]

    return handler


def _picked(r: Raiser, source: fx.Node, places: fx.Node, dim: int, *, keep: bool) -> fx.Node:
    """Return ``source`` at ``places``, which have its rank and one position along ``dim``."""
    value = source.meta["val"]
    if value.dtype not in _PICKED or r.is_known(source):
        raise NotRaised
    rank, size = value.ndim, r.shape(source)[dim]
    positions = torch.arange(size).reshape(1, *[size if each == dim else 1 for each in range(1, rank)])
    here = r.call(_ATEN.eq.Tensor, places, r.attribute(positions, "positions"), word="is_picked")
    x = r.activation(source)
    zero = r.attribute(torch.zeros((), dtype=value.dtype), "nothing")
    left = r.call(_ATEN.where.self, here, x, zero, word="picked")
    return r.call(torch.sum, left, (dim,), keep, word="pick")


def _rearranged(r: Raiser, source: fx.Node, places: torch.Tensor | None, dim: int) -> fx.Node:
    """Return the values at constant places, the same in each sample: an order of a sample's values."""
    sizes = r.shape()[1:]
    if places is None or places.ndim != len(sizes) + 1 or len(places) != 1 or r.dynamic()[1:] != (False,) * len(sizes):
        raise NotRaised
    found: list[fx.Node | None] = [None]
    for axis, size in enumerate(sizes):
        numbers = torch.arange(size).reshape([-1 if each == axis else 1 for each in range(len(sizes))])
        found.append(r.attribute(places[0].expand(sizes) if axis + 1 == dim else numbers, "places"))
    return r.call(_ATEN.index.Tensor, r.activation(source), found, word="gather")


def _unexpanded(r: Raiser, node: fx.Node) -> fx.Node:
    """Return what an expansion to more positions reads, of constants also one to more dimensions."""
    while node.target is _ATEN.expand.default and not r.is_known(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.meta["val"].ndim != node.meta["val"].ndim and not r.is_known(source):
            break
        node = source
    return node
