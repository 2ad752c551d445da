"""Batches that are joined and taken apart again: one network for two pictures, ``f(torch.cat([a, b])).chunk(2)``.

All samples of the first batch come, then all of the second. That is ``(2, batch, ...)`` with its first two dimensions
as one. So a part is one of two, and no call depends on how many samples there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.refusals import splits_batches
from cpupack.stages.capture.raising.shapes import selected

Handler = Callable[[Raiser, dict[str, Any]], Any]


def concatenate(otherwise: Handler) -> Handler:
    """Return the handler of ``cat``: of whole batches, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        parts = a["tensors"]
        if a["dim"] % len(r.shape()) or not r.dynamic()[0] or len(parts) < 2:
            return otherwise(r, a)
        shape = r.shape(parts[0])
        if any(r.is_known(each) or r.shape(each) != shape or not _is_batch(r, each) for each in parts):
            raise NotRaised
        several = [r.call(torch.reshape, r.activation(each), (-1, 1, *shape[1:])) for each in parts]
        joined = r.call(torch.permute, r.call(torch.cat, several, 1), (1, 0, *range(2, len(shape) + 1)))
        return r.call(torch.reshape, joined, (-1, *shape[1:]))

    return handler


def split(otherwise: Handler) -> Handler:
    """Return the handler of ``chunk`` and ``split``: into whole batches, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        source: Any = a.get("self", a.get("tensor"))
        if a["dim"] % len(r.shape(source)) or not r.dynamic(source)[0]:
            return otherwise(r, a)
        if not splits_batches(r.node, r.source):
            raise NotRaised
        parts = r.node.meta["val"]
        return [lambda place=place: _part(r, source, len(parts), place) for place in range(len(parts))]

    return handler


def slices(otherwise: Handler) -> Handler:
    """Return the handler of a slice: of a whole batch, ``x[:n]`` or ``x[n:]``, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        source = a["self"]
        shape, batch = r.shape(source), r.shape(r.source)[0]
        of_several = shape[0] > batch and shape[0] % batch == 0 and r.dynamic(source)[0]
        if a["dim"] % len(shape) or not of_several or not _is_batch(r, r.node) or a.get("step", 1) != 1:
            return otherwise(r, a)
        start = a["start"]
        first = _number(start)
        if first % batch or (first and not isinstance(start, fx.Node)):
            raise NotRaised
        return _part(r, source, shape[0] // batch, first // batch)

    return handler


def _number(start: Any) -> int:
    if isinstance(start, fx.Node):
        return int(start.meta["val"].node.hint)
    return int(start or 0)


def _is_batch(r: Raiser, node: fx.Node) -> bool:
    """Whether the first dimension has the samples of the batch, each once."""
    size = node.meta["val"].shape[0]
    return isinstance(size, torch.SymInt) and bool(size.node.expr == r.source.meta["val"].shape[0].node.expr)


def _part(r: Raiser, source: fx.Node, count: int, place: int) -> fx.Node:
    """Return one of the batches that are joined."""
    rest, batch = r.shape(source)[1:], r.shape(r.source)[0]
    apart = r.call(torch.reshape, r.activation(source), (count, -1, *rest))
    return selected(r, apart, (count, batch, *rest), (False, True, *[False] * len(rest)), 0, place)
