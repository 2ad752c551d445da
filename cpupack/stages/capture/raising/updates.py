"""Handlers of updates: at constant places (``adjacency[:, idx, idx] = 1``), and of rows of each group of a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.combined import chosen
from cpupack.stages.capture.raising.places import axis_of_places, places_along
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser

_ATEN = torch.ops.aten
Handler = Callable[[Raiser, dict[str, Any]], Any]


def put(otherwise: Handler) -> Handler:
    """Return the handler of ``index_put``: at constant places, or at rows of each sample, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        source, indices = a["self"], list(a["indices"])
        given = [each for each in indices if each is not None]
        whole = r.dynamic(source)[0] and not any(r.dynamic(source)[1:]) and r.is_float(source)
        if whole and not a["accumulate"] and (axis := axis_of_places(r, source, indices)) > 0:
            return _put_rows(r, source, axis, indices[-1], a["values"])
        if indices[0] is not None or not whole or not all(r.is_known(each) for each in given):
            return otherwise(r, a)
        if a["accumulate"]:
            raise NotRaised
        places = tuple(slice(None) if each is None else r.tensor(each) for each in indices)
        if r.is_known(a["values"]):
            return _put_constants(r, source, places, r.tensor(a["values"]))
        if len(given) != 1 or len(indices) - 1 != next(place for place, each in enumerate(indices) if each is not None):
            raise NotRaised
        return _put_values(r, source, len(indices) - 1, places[-1], a["values"])

    return handler


def _put_constants(r: Raiser, source: Any, places: tuple[Any, ...], values: torch.Tensor | None) -> fx.Node:
    """What is there where nothing is put, and constants elsewhere."""
    shape = r.shape(source)[1:]
    if values is None or (values.ndim > len(shape) and values.shape[0] != 1):
        raise NotRaised
    keep, filled = torch.ones(1, *shape), torch.zeros(1, *shape)
    keep[places], filled[places] = 0.0, values.float()
    other = float(values) if values.numel() == 1 else filled
    return chosen(r, keep, source, other, "kept")


def _put_rows(r: Raiser, source: Any, axis: int, places: fx.Node, values: Any) -> fx.Node:
    """Rows at computed places of each sample's groups: a ``scatter``."""
    shape, own = r.shape(source), r.shape(places)
    if r.is_known(values) or not r.is_float(values) or r.shape(values) != (*own, *shape[axis + 1 :]):
        raise NotRaised
    if r.dynamic(values) != (True, *[False] * (len(r.shape(values)) - 1)):
        raise NotRaised
    at = places_along(r, source, places, axis, wraps=True)
    new = r.activation(values)
    if len(own) > axis + 1:
        new = r.call(torch.reshape, new, (-1, *shape[1:axis], math.prod(own[axis:]), *shape[axis + 1 :]), word="put")
    return r.call(_ATEN.scatter.src, r.activation(source), axis, at, new, word="put")


def _put_values(r: Raiser, source: Any, dim: int, places: Any, values: Any) -> fx.Node:
    """Both side by side, and each index of the result from one of them: of several for a place, the last one."""
    shape = list(r.shape(source))
    if not isinstance(places, torch.Tensor) or places.ndim != 1 or places.dtype != torch.int64:
        raise NotRaised
    size = shape[dim]
    if not r.is_float(values) or list(r.shape(values)) != [*shape[:dim], len(places), *shape[dim + 1 :]]:
        raise NotRaised
    if r.dynamic(values) != r.dynamic(source):
        raise NotRaised
    order = torch.arange(size)
    for number, place in enumerate(places.tolist()):
        order[place] = size + number
    joined = r.call(torch.cat, [r.activation(source), r.activation(values)], dim)
    return r.call(_ATEN.index_select.default, joined, dim, r.attribute(order, "places"), word="put")
