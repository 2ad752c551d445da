"""Handlers of what moves values: reshapes, permutations, slices, splits, joins, and what does nothing."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx

from cpupack.stages.capture.export import is_dynamic
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser, name_of, numbers


def _same(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return r.activation(a.get("self", a.get("input")))


def _convert(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """A conversion to the type that a tensor has already."""
    source = a["self"]
    if not isinstance(source, fx.Node) or source.meta["val"].dtype != r.node.meta["val"].dtype:
        raise NotRaised
    return r.activation(source)


def _dropout(r: Raiser, a: dict[str, Any]) -> fx.Node:
    if a.get("train", a.get("training", True)):
        raise NotRaised
    return r.activation(a["input"])


def _reshape(r: Raiser, a: dict[str, Any]) -> fx.Node:
    if "dtype" in a:
        raise NotRaised  # the same bytes, read as another type
    return reshaped(r, r.activation(a["self"]), r.shape(a["self"]), r.shape(), r.dynamic())


def reshaped(
    r: Raiser, x: fx.Node, before: tuple[int, ...], after: tuple[int, ...], dynamic: tuple[bool, ...]
) -> fx.Node:
    """Add a reshape to ``after``, of which one dimension is ``dynamic``."""
    if before == after:
        return x
    if sum(dynamic) > 1:
        raise NotRaised
    if len(after) == 2 and len(before) > 1 and dynamic[0] and before[0] == after[0]:
        return r.call(torch.flatten, x, 1)
    return r.call(torch.reshape, x, tuple(-1 if moves else size for size, moves in zip(after, dynamic, strict=True)))


def _permute(r: Raiser, a: dict[str, Any]) -> fx.Node:
    rank = len(r.shape(a["self"]))
    return permuted(r, r.activation(a["self"]), [each % rank for each in a["dims"]])


def permuted(r: Raiser, x: fx.Node, order: list[int]) -> fx.Node:
    return x if order == sorted(order) else r.call(torch.permute, x, tuple(order))


def _transpose(r: Raiser, a: dict[str, Any]) -> fx.Node:
    rank = len(r.shape(a["self"]))
    order = list(range(rank))
    one, two = a.get("dim0", a.get("axis0", -2)), a.get("dim1", a.get("axis1", -1))
    if rank < 2:
        raise NotRaised
    order[one % rank], order[two % rank] = order[two % rank], order[one % rank]
    return permuted(r, r.activation(a["self"]), order)


def _move(r: Raiser, a: dict[str, Any]) -> fx.Node:
    rank = len(r.shape(a["self"]))
    sources = [each % rank for each in numbers(a["source"], 1)]
    places = [each % rank for each in numbers(a["destination"], 1)]
    order: list[int] = [-1] * rank
    for source, place in zip(sources, places, strict=True):
        order[place] = source
    rest = iter(each for each in range(rank) if each not in sources)
    return permuted(r, r.activation(a["self"]), [next(rest) if each < 0 else each for each in order])


def sliced(r: Raiser, x: fx.Node, rank: int, dim: int, start: int, end: int, step: int = 1) -> fx.Node:
    """Add a slice of one dimension; the ends are those of the dimension's indices."""
    index = [slice(None)] * dim + [slice(start, end, None if step == 1 else step)]
    del rank
    return r.call(operator.getitem, x, tuple(index), word="getitem")


def _size_along(r: Raiser, source: Any, dim: int) -> tuple[int, int, int]:
    """Return rank, dimension from 0 and its size; raise NotRaised where it changes with the batch."""
    shape, moves = r.shape(source), r.dynamic(source)
    dim %= len(shape)
    if moves[dim]:
        raise NotRaised
    return len(shape), dim, shape[dim]


def _is_whole(a: dict[str, Any]) -> bool:
    """Whether a slice takes everything, however large the dimension is."""
    start, end = a["start"], a["end"]
    return start in {None, 0} and a.get("step", 1) == 1 and (end is None or (isinstance(end, int) and end >= 2**62))


def _slice(r: Raiser, a: dict[str, Any]) -> fx.Node:
    start, end, step = a["start"], a["end"], a.get("step", 1)
    source = a["self"]
    if _is_whole(a):
        return r.activation(source)
    rank, dim, size = _size_along(r, source, a["dim"])
    if not all(each is None or isinstance(each, int) for each in (start, end)):
        raise NotRaised
    first, last, step = slice(start, end, step).indices(size)
    if (first, last, step) == (0, size, 1):
        return r.activation(source)
    made = r.made.get(source)
    updated = r.put.get(made) if isinstance(made, fx.Node) else None
    if updated is not None and updated[1:] == (dim, first, last) and step == 1:
        return updated[0]  # the part that an update has just written
    return sliced(r, r.activation(source), rank, dim, first, last, step)


def _put_slice(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """An update of a part of a tensor: the parts before and after it, joined with the new one."""
    if _is_whole(a):
        return r.activation(a["src"])
    rank, dim, size = _size_along(r, a["self"], a["dim"])
    if not all(each is None or isinstance(each, int) for each in (a["start"], a["end"])) or a["step"] != 1:
        raise NotRaised
    first, last, _ = slice(a["start"], a["end"]).indices(size)
    return _replaced(r, a["self"], a["src"], rank, dim, first, last)


def _put_one(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """An update at one index."""
    rank, dim, size = _size_along(r, a["self"], a["dim"])
    if not isinstance(a["index"], int):
        raise NotRaised
    index, shape, moves = a["index"] % size, r.shape(a["self"]), r.dynamic(a["self"])
    whole, dynamic = (*shape[:dim], 1, *shape[dim + 1 :]), (*moves[:dim], False, *moves[dim + 1 :])
    part = reshaped(r, r.activation(a["src"]), r.shape(a["src"]), whole, dynamic)
    return _replaced(r, a["self"], part, rank, dim, index, index + 1)


def _replaced(r: Raiser, source: Any, part: Any, rank: int, dim: int, first: int, last: int) -> fx.Node:
    size = r.shape(source)[dim]
    new = part if isinstance(part, fx.Node) and part.graph is r.graph else r.operand(part)
    if (first, last) == (0, size):
        if not isinstance(new, fx.Node) or new.op == "get_attr":
            raise NotRaised
        return new
    x = r.activation(source)
    parts = [sliced(r, x, rank, dim, 0, first)] if first > 0 else []
    parts.append(new)
    if last < size:
        parts.append(sliced(r, x, rank, dim, last, size))
    joined = r.call(torch.cat, parts, dim, word="cat")
    r.put[joined] = new, dim, first, last
    return joined


def _narrow(r: Raiser, a: dict[str, Any]) -> fx.Node:
    rank, dim, _ = _size_along(r, a["self"], a["dim"])
    start = r.constant(a["start"])
    if not isinstance(a["length"], int):
        raise NotRaised
    return sliced(r, r.activation(a["self"]), rank, dim, int(start), int(start) + a["length"])


def _select(r: Raiser, a: dict[str, Any]) -> fx.Node:
    _, dim, size = _size_along(r, a["self"], a["dim"])
    if not isinstance(a["index"], int):
        raise NotRaised
    return selected(r, r.activation(a["self"]), r.shape(a["self"]), r.dynamic(a["self"]), dim, a["index"] % size)


def selected(r: Raiser, x: fx.Node, shape: tuple[int, ...], moves: tuple[bool, ...], dim: int, index: int) -> fx.Node:
    part = sliced(r, x, len(shape), dim, index, index + 1) if shape[dim] != 1 else x
    before = (*shape[:dim], 1, *shape[dim + 1 :])
    return reshaped(r, part, before, (*shape[:dim], *shape[dim + 1 :]), (*moves[:dim], *moves[dim + 1 :]))


def _split(r: Raiser, a: dict[str, Any]) -> list[Callable[[], fx.Node]]:
    """Return the parts of chunk, split and the like, each added when it is read: chunks where equal, else slices."""
    source = a.get("self", a.get("tensor"))
    rank, dim, size = _size_along(r, source, a["dim"])
    sizes = [int(part.shape[dim]) for part in r.node.meta["val"]]
    x = r.activation(source)
    if len(sizes) == 1:
        return [lambda: x]
    if len(set(sizes)) == 1 and sum(sizes) == size:
        parts = r.call(torch.chunk, x, len(sizes), dim)
        return [lambda place=place: r.call(operator.getitem, parts, place) for place in range(len(sizes))]  # type: ignore[misc]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        lambda start=start, length=length: sliced(r, x, rank, dim, start, start + length)  # type: ignore[misc]
        for start, length in zip(starts, sizes, strict=True)
    ]


def _unbind(r: Raiser, a: dict[str, Any]) -> list[Callable[[], fx.Node]]:
    source = a["self"]
    _, dim, size = _size_along(r, source, a["dim"])
    x, shape, moves = r.activation(source), r.shape(source), r.dynamic(source)
    return [lambda index=index: selected(r, x, shape, moves, dim, index) for index in range(size)]  # type: ignore[misc]


def _concatenate(r: Raiser, a: dict[str, Any]) -> fx.Node:
    parts = [each for each in a["tensors"] if not _is_empty(r, each)] or a["tensors"][:1]
    if len(parts) == 1:
        return r.activation(parts[0])
    rank = len(r.shape())
    dim = a["dim"] % rank
    if r.dynamic()[dim]:
        raise NotRaised
    return r.call(torch.cat, [r.operand(each) for each in parts], dim)


def _is_empty(r: Raiser, part: Any) -> bool:
    return isinstance(part, fx.Node) and 0 in r.shape(part)


def _stack(r: Raiser, a: dict[str, Any]) -> fx.Node:
    shape, moves = r.shape(), r.dynamic()
    dim = a["dim"] % len(shape)
    after, dynamic = (*shape[:dim], 1, *shape[dim + 1 :]), (*moves[:dim], False, *moves[dim + 1 :])
    parts = []
    for each in a["tensors"]:
        if r.is_known(each):
            raise NotRaised
        parts.append(reshaped(r, r.activation(each), r.shape(each), after, dynamic))
    return r.call(torch.cat, parts, dim)


def _copy(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """What is written over a whole tensor."""
    source = a["src"]
    same = isinstance(source, fx.Node) and source.meta["val"].dtype == r.node.meta["val"].dtype
    if not same or r.shape(source) != r.shape() or r.dynamic(source) != r.dynamic():
        raise NotRaised
    return r.activation(source)


def _pixel_shuffle(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return r.call(F.pixel_shuffle, r.activation(a["self"]), a["upscale_factor"])


def _pixel_unshuffle(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return r.call(F.pixel_unshuffle, r.activation(a["self"]), a["downscale_factor"])


def _channel_shuffle(r: Raiser, a: dict[str, Any]) -> fx.Node:
    n, channels, *rest = r.shape(a["self"])
    groups = a["groups"]
    del n
    x = r.call(torch.reshape, r.activation(a["self"]), (-1, groups, channels // groups, *rest))
    x = r.call(torch.permute, x, (0, 2, 1, *range(3, 3 + len(rest))))
    return r.call(torch.reshape, x, (-1, channels, *rest))


def _index(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """An index that takes every sample in turn, and constants of each: the same constants of every sample.

    ``mask[torch.arange(batch)[:, None, None, None], positions]`` is how masks are laid out under ``torch.vmap``.
    """
    indices = list(a["indices"])
    if len(indices) < 2 or not all(isinstance(each, fx.Node) for each in indices) or not counts_samples(indices[0]):
        raise NotRaised
    constants = [r.tensor(each) for each in indices[1:]]
    rank = len(r.shape(indices[0]))
    if any(each is None or each.dtype not in (torch.int64, torch.int32) for each in constants):
        raise NotRaised
    found = []
    for each in constants:
        assert each is not None
        whole = each.reshape(*[1] * (rank - each.ndim), *each.shape)
        if whole.ndim != rank or whole.shape[0] != 1:
            raise NotRaised
        found.append(r.attribute(whole[0], r.node.name))
    return r.call(torch.ops.aten.index.Tensor, r.activation(a["self"]), [None, *found], word="index")


def counts_samples(node: fx.Node) -> bool:
    """Whether a tensor ``(batch, 1, ...)`` has the numbers of the samples, from 0 on."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.ndim or any(size != 1 for size in value.shape[1:]):
        return False
    batch = value.shape[0]
    while node.op == "call_function" and (name_of(node) in _SAME_ORDER or _is_whole_slice(node)):
        source = node.args[0]
        if not isinstance(source, fx.Node):
            return False
        node = source
    if name_of(node) != "arange" or not is_dynamic(batch):
        return False
    arguments = [each for each in node.args if not isinstance(each, torch.dtype)]
    ends = [each.meta["val"] if isinstance(each, fx.Node) else each for each in arguments]
    return len(ends) == 1 or (len(ends) == 2 and bool(ends[0] == 0))


def _is_whole_slice(node: fx.Node) -> bool:
    """Whether a slice takes all there is along the first dimension."""
    bounds = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    return name_of(node) == "slice" and bounds[:2] in {(0, 0), (0, None)} and bounds[2] in {None, 2**63 - 1}


_SAME_ORDER = ("view", "reshape", "unsqueeze", "expand", "alias", "clone", "contiguous", "to", "_to_copy")


HANDLERS: dict[str, Any] = {
    "index": _index,
    **dict.fromkeys(
        ("detach", "clone", "contiguous", "alias", "lift", "lift_fresh", "lift_fresh_copy", "identity", "positive"),
        _same,
    ),
    "copy": _copy,
    **dict.fromkeys(("to", "_to_copy", "type_as"), _convert),
    **dict.fromkeys(
        ("dropout", "native_dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"), _dropout
    ),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
        _reshape,
    ),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t", "swapaxes", "swapdims", "numpy_T", "mT"), _transpose),
    **dict.fromkeys(("movedim", "moveaxis"), _move),
    "slice": _slice,
    "slice_scatter": _put_slice,
    "select_scatter": _put_one,
    "narrow": _narrow,
    "select": _select,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"), _split),
    "unbind": _unbind,
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    "stack": _stack,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
}
