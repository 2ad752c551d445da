"""Handlers of look-ups in a constant tensor by computed numbers, along any of its dimensions: rows of a table.

``torch.eye(10).index_select(0, winner)`` is how capsules choose, ``table[:, ids]`` how factors lie in columns, and
``torch.take`` reads a whole table as one row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import permuted

_ATEN = torch.ops.aten
_NUMBERS = (torch.int64, torch.int32)
Handler = Callable[[Raiser, dict[str, Any]], Any]


def index(otherwise: Handler) -> Handler:
    """Return the handler of an index of a constant along one dimension but the first, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        given = [(dim, each) for dim, each in enumerate(a["indices"]) if each is not None]
        if not r.is_known(a["self"]) or len(given) != 1 or given[0][0] == 0:
            return otherwise(r, a)
        dim, numbers = given[0]
        return _looked_up(r, r.tensor(a["self"]), numbers, dim)

    return handler


def _index_select(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return _looked_up(r, r.tensor(a["self"]), a["index"], a["dim"])


def _take(r: Raiser, a: dict[str, Any]) -> fx.Node:
    table = r.tensor(a["self"])
    return _looked_up(r, None if table is None else table.flatten(), a["index"], 0)


def _looked_up(r: Raiser, table: torch.Tensor | None, numbers: Any, dim: int) -> fx.Node:
    """Return the rows of a table along ``dim``; where that is not the first one, they are turned back."""
    if table is None or table.ndim == 0 or r.is_known(numbers) or numbers.meta["val"].dtype not in _NUMBERS:
        raise NotRaised
    dim %= table.ndim
    rows = r.attribute(table.movedim(dim, 0).contiguous(), "table")
    found = r.call(_ATEN.index.Tensor, rows, [r.activation(numbers)], word="look_up")
    rank = len(r.shape(numbers))
    before = range(rank, rank + dim)
    return permuted(r, found, [*before, *range(rank), *range(rank + dim, rank + table.ndim - 1)])


HANDLERS: dict[str, Handler] = {"index_select": _index_select, "take": _take}
