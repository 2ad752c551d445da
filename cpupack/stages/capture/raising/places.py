"""Computed places that count through a batch, and grids and buckets, written out in calls of a sample's own values.

Point clouds and graphs pick rows of each sample: ``x[torch.arange(len(x))[:, None], places]``, or of all samples in one
``x.view(-1, channels)[places + torch.arange(len(x)) * points]``. Both become a ``gather`` along dimension 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import counts_samples

_ATEN = torch.ops.aten
_ORDER_KEPT = frozenset({"view", "reshape", "_unsafe_view", "contiguous", "clone", "flatten"})
_MOST_COMPARISONS = 1 << 20
"""Comparisons of one sample with the ends of buckets."""
Handler = Callable[[Raiser, dict[str, Any]], Any]


def index(otherwise: Handler) -> Handler:
    """Return the handler of an index by computed places of several rows of each sample, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        given = a["indices"]
        if (axis := axis_of_places(r, a["self"], given)) > 1:
            return _rows(r, a["self"], r.activation(a["self"]), given[-1], wraps=True, axis=axis)
        if any(each is None or r.is_known(each) for each in given):
            return otherwise(r, a)
        if len(given) == 2 and counts_samples(_unrepeated(given[0], given[1])):
            own = r.dynamic(given[1])
            if own[0] and not any(own[1:]) and math.prod(r.shape(given[1])[1:]) > 1:
                return _rows(r, a["self"], r.activation(a["self"]), given[1], wraps=True)
        elif len(given) == 1 and (found := _through_batch(r, a["self"], given[0])) is not None:
            return _rows(r, found[0], r.activation(found[0]), found[1], wraps=False)
        return otherwise(r, a)

    return handler


def _unrepeated(samples: fx.Node, places: fx.Node) -> fx.Node:
    """Return the samples' numbers ``(n, 1, ...)`` that were repeated to the shape of the places, as PointNet++ does."""
    source = samples.args[0] if _is_named(samples, frozenset({"expand", "repeat"})) else None
    if not isinstance(source, fx.Node) or samples.meta["val"].ndim != places.meta["val"].ndim:
        return samples
    one, several = source.meta["val"], samples.meta["val"]
    alike = one.ndim == several.ndim and bool(one.shape[0] == several.shape[0])
    return source if alike and all(size == 1 for size in one.shape[1:]) else samples


def axis_of_places(r: Raiser, source: Any, given: Sequence[Any]) -> int:
    """Return the dimension along which each group of rows of each sample has computed places of its own, or 0.

    ``x[torch.arange(len(x))[:, None, None], torch.arange(heads)[:, None], places]`` is what it looks for, as Informer
    picks queries of each head.
    """
    places, axis = given[-1], len(given) - 1
    if axis < 2 or any(each is None for each in given) or r.is_known(places) or r.is_known(given[0]):
        return 0
    own, shape = r.shape(places), r.shape(source)
    alone = r.dynamic(places) == (True, *[False] * (len(own) - 1)) and len(own) > axis
    if not alone or not counts_samples(given[0]) or len(r.shape(given[0])) != len(own):
        return 0
    for dim, each in enumerate(given[1:-1], 1):
        if not r.is_known(each) or own[dim] != shape[dim]:
            return 0
        numbers = torch.arange(shape[dim]).reshape([-1 if at == dim else 1 for at in range(len(own))])
        held = r.tensor(each)
        if held is None or held.ndim > len(own) or not torch.equal(held.reshape(_ones(own, held)), numbers):
            return 0
    return axis


def _ones(own: tuple[int, ...], held: torch.Tensor) -> tuple[int, ...]:
    return (*[1] * (len(own) - held.ndim), *held.shape)


def _rows(r: Raiser, source: fx.Node, x: fx.Node, places: fx.Node, *, wraps: bool, axis: int = 1) -> fx.Node:
    """Return rows of each sample ``(n, size, ...)``, those at ``places`` ``(n, ...)``, as the current call does.

    With ``axis``, the dimensions before it are groups that have rows and places of their own.
    """
    at = places_along(r, source, places, axis, wraps=wraps)
    found = r.call(_ATEN.gather.default, x, axis, at, word="gather")
    return r.call(torch.reshape, found, (-1, *r.shape()[1:]), word="gather")


def places_along(r: Raiser, source: fx.Node, places: fx.Node, axis: int, *, wraps: bool) -> fx.Node:
    """Return the places of rows along a dimension as ``gather`` and ``scatter`` take them: one for each value."""
    shape, moves, own = r.shape(source), r.dynamic(source), r.shape(places)
    if not moves[0] or any(moves[1:]) or places.meta["val"].dtype not in (torch.int64, torch.int32):
        raise NotRaised
    at, count = r.activation(places), math.prod(own[axis:])
    if wraps:  # as torch does, negative places count from the end
        below = r.call(_ATEN.lt.Scalar, at, 0, word="negative")
        at = r.call(_ATEN.where.self, below, r.call(_ATEN.add.Tensor, at, shape[axis], word="place"), at)
    if places.meta["val"].dtype != torch.int64:
        at = r.call(_ATEN._to_copy.default, at, dtype=torch.int64, word="place")
    at = r.call(torch.reshape, at, (-1, *shape[1:axis], count, *[1] * (len(shape) - axis - 1)), word="place")
    if len(shape) > axis + 1:
        at = r.call(_ATEN.expand.default, at, [-1, *shape[1:axis], count, *shape[axis + 1 :]], word="place")
    return at


def _through_batch(r: Raiser, joined: fx.Node, places: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the tensor of which ``joined`` has the rows of all samples, and the places in each sample's own."""
    source = joined
    while _is_named(source, _ORDER_KEPT) and r.dynamic(source)[0]:
        source = source.args[0]  # type: ignore[assignment]  # a view reads a node
        if len(r.shape(source)) == len(r.shape(joined)) + 1 and r.shape(source)[2:] == r.shape(joined)[1:]:
            break
    while _is_named(places, _ORDER_KEPT):
        places = places.args[0]  # type: ignore[assignment]
    if not _is_named(places, frozenset({"add"})) or places.kwargs or len(r.shape(source)) != len(r.shape(joined)) + 1:
        return None
    for own, first in (places.args[:2], places.args[1::-1]):
        if isinstance(own, fx.Node) and _counts_rows(first, r.shape(source)[1]) and r.dynamic(own)[0]:
            return (source, own) if r.shape(own) == r.shape(places) else None
    return None


def _counts_rows(node: object, rows: int) -> bool:
    """Whether a tensor has for each sample the number of the rows of all samples before it."""
    while _is_named(node, _ORDER_KEPT):
        node = node.args[0]  # type: ignore[attr-defined]
    if not _is_named(node, frozenset({"mul"})):
        return False
    samples, factor = node.args[:2]  # type: ignore[attr-defined]
    return factor == rows and isinstance(samples, fx.Node) and counts_samples(samples)


def _is_named(node: object, names: frozenset[str]) -> bool:
    packet = getattr(getattr(node, "target", None), "overloadpacket", None)
    return packet is not None and str(packet).removeprefix("aten.") in names


def _grid(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``affine_grid`` of images and volumes: each place of the result is a product with the sample's matrix."""
    theta, (_, _, *sides) = a["theta"], a["size"]
    if len(sides) not in {2, 3} or not all(isinstance(each, int) for each in sides) or not r.dynamic(theta)[0]:
        raise NotRaised
    ends = [1.0 if a["align_corners"] else 1.0 - 1.0 / side for side in sides]
    lines = (
        torch.linspace(-end, end, side) if side > 1 else torch.zeros(1) for end, side in zip(ends, sides, strict=True)
    )
    numbers = torch.meshgrid(*lines, indexing="ij")[::-1]  # the way across comes first
    places = torch.stack([*numbers, torch.ones_like(numbers[0])]).reshape(1, len(sides) + 1, -1)
    found = r.call(torch.matmul, r.activation(theta), r.attribute(places, "grid"), word="grid")
    found = r.call(torch.reshape, found, (-1, len(sides), *sides), word="grid")
    return r.call(torch.permute, found, (0, *range(2, len(sides) + 2), 1), word="grid")


def _buckets(values: str, ends: str) -> Handler:
    """Return the handler of ``bucketize`` or ``searchsorted``: how many ends of buckets are below each value."""

    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        held, source = r.tensor(a[ends]), a[values]
        shape, moves = r.shape(source), r.dynamic(source)
        if held is None or held.ndim != 1 or a.get("sorter") is not None or not moves[0] or any(moves[1:]):
            raise NotRaised
        if not r.is_float(source) or not 0 < held.numel() * math.prod(shape[1:]) <= _MOST_COMPARISONS:
            raise NotRaised
        right = bool(a["right"]) or a.get("side") == "right"
        x = r.call(torch.reshape, r.activation(source), (-1, *shape[1:], 1), word="value")
        below = r.attribute(held.float(), "ends")
        if not torch.equal(held.double(), held.float().double()):
            raise NotRaised
        # What is no number is in the last bucket.
        less = r.call(_ATEN.lt.Tensor if right else _ATEN.le.Tensor, x, below, word="is_less")
        found = r.call(_ATEN.sum.dim_IntList, r.call(_ATEN.logical_not.default, less, word="is_more"), [-1])
        return r.call(_ATEN._to_copy.default, found, dtype=torch.int32) if a["out_int32"] else found

    return handler


HANDLERS: dict[str, Handler] = {
    "affine_grid_generator": _grid,
    "bucketize": _buckets("self", "boundaries"),
    "searchsorted": _buckets("self", "sorted_sequence"),
}
"""By the name of an ATen operator."""
