"""Pools of the maximum whose places ``max_unpool`` reads, as in SegNet: each value goes back to its place.

The places that torch gives are numbers of pixels. Here a window has the number of its first largest value, and
unpooling gives a value to what is equal to that number.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.graph.tags import WORD
from cpupack.stages.capture.raising.pools import reads_indices
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser, name_of, numbers

_ATEN = torch.ops.aten
Handler = Callable[[Raiser, dict[str, Any]], Any]
_POOL, _UNPOOL = "max_pool2d_with_indices", "max_unpool2d"
_PLACE = "place_in_window"


def max_pool(otherwise: Handler, plain: Handler) -> Handler:
    """Return the handler of a pool with indices: of those that unpooling alone reads, else ``otherwise``.

    ``plain`` is the handler of a pool without indices.
    """

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        if not reads_indices(r.node):
            return otherwise(r, a)
        readers = [user for part in r.node.users if part.args[1] == 1 for user in part.users]
        kernel, shape = numbers(a["kernel_size"], 2), r.shape(a["self"])
        windows = numbers(a["stride"] or kernel, 2) == kernel and numbers(a["dilation"], 2) == (1, 1)
        whole = len(shape) == 4 and all(size % length == 0 for size, length in zip(shape[2:], kernel, strict=True))
        if not windows or not whole or any(numbers(a["padding"], 2)):
            raise NotRaised
        if any(name_of(reader) != _UNPOOL for reader in readers):
            raise NotRaised
        if math.prod(kernel) < 2 or any(r.shape(reader) != shape for reader in readers):
            raise NotRaised  # into an image of another size
        return [plain(r, a), _place_in_window(r, r.activation(a["self"]), kernel)]

    return handler


def _place_in_window(r: Raiser, x: fx.Node, kernel: tuple[int, ...]) -> fx.Node:
    """Return the number of the first largest value of each window, 0 for its first one, as float32."""
    taps = [
        r.call(
            operator.getitem, x, (slice(None), slice(None), slice(row, None, kernel[0]), slice(column, None, kernel[1]))
        )
        for row, column in itertools.product(*map(range, kernel))
    ]
    largest = functools.reduce(lambda one, other: r.call(_ATEN.maximum.default, one, other, word="largest"), taps)
    last = len(taps) - 2
    found = r.call(_ATEN._to_copy.default, r.call(_ATEN.lt.Tensor, taps[last], largest), dtype=torch.float32)
    found = r.call(torch.add, found, float(last), word=_PLACE)
    for number in reversed(range(last)):
        less = r.call(_ATEN.lt.Tensor, taps[number], largest, word="is_less")
        own = r.attribute(torch.tensor(float(number)), f"place {number}")
        found = r.call(_ATEN.where.self, less, found, own, word=_PLACE)
    return found


def _max_unpool(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``max_unpool2d`` of values whose places a pool of the same windows has."""
    part = a["indices"]
    pool = part.args[0] if isinstance(part, fx.Node) and part.args else None
    made = r.made.get(part) if isinstance(part, fx.Node) else None
    if not isinstance(pool, fx.Node) or name_of(pool) != _POOL:
        raise NotRaised
    if not isinstance(made, fx.Node) or made.meta.get(WORD) != _PLACE:
        raise NotRaised
    shape, small = r.shape(), r.shape(a["self"])
    if len(small) != 4:
        raise NotRaised
    channels, height, width = small[1:]
    rows, columns = shape[2] // height, shape[3] // width
    numbers_of = r.attribute(torch.arange(rows * columns, dtype=torch.float32).reshape(-1, 1, 1, 1), "places")
    place = r.call(torch.reshape, made, (-1, 1, channels, height, width), word="place")
    here = r.call(_ATEN.eq.Tensor, place, numbers_of, word="is_largest")
    values = r.call(torch.reshape, r.activation(a["self"]), (-1, 1, channels, height, width), word="values")
    found = r.call(_ATEN.where.self, here, values, r.attribute(torch.zeros(()), "nothing"), word="unpool")
    found = r.call(torch.reshape, found, (-1, rows, columns, channels, height, width), word="unpool")
    found = r.call(torch.permute, found, (0, 3, 4, 1, 5, 2), word="unpool")
    return r.call(torch.reshape, found, (-1, *shape[1:]), word="max_unpool2d")


HANDLERS: dict[str, Any] = {"max_unpool2d": _max_unpool}
"""By the name of an ATen operator."""
