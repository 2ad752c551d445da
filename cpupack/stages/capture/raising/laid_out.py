"""Handlers of what lays values out again: expansions, repeats, and tensors that are filled with a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising import shapes
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser, name_of

_MOST_ROWS = 1 << 20
"""Values of a constant that a sample has several times, and that the program has as often."""


def _expand(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """A constant laid out for the batch, or an activation that is repeated along other dimensions."""
    source, shape, moves = a["self"], r.shape(), r.dynamic()
    before = r.shape(source)
    if not r.is_known(source):
        return r.activation(source) if before == shape else _repeated(r, source, moves)
    if sum(moves) != 1:
        raise NotRaised
    if not moves[0]:
        value = r.tensor(source)
        assert value is not None
        return _laid_out_within(r, value, r._name_of(source))
    if len(before) == len(shape) and before[0] != 1:
        raise NotRaised
    if _repeats_for_arithmetic(r, before):
        r.known[r.node] = r.constant(source)
        return r.input  # a placeholder's worth, as in _filled
    value = r.tensor(source)
    assert value is not None
    rows = _rows_of_a_sample(r)  # several where a batch of frames or windows has a token of its own for each
    if rows * value.numel() > _MOST_ROWS:
        raise NotRaised
    return _rows_laid_out(r, value.expand(rows, *shape[1:]), r._name_of(source))


def _repeated(r: Raiser, source: fx.Node, moves: tuple[bool, ...]) -> fx.Node:
    """Expand an activation without the batch's size, which a traced model would have as a number."""
    shape, before = r.shape(), r.shape(source)
    new = len(shape) - len(before)
    if (False,) * new + r.dynamic(source) != moves:
        raise NotRaised  # the batch is what is repeated
    kept = [-1 if size == other else size for size, other in zip(shape[new:], before, strict=True)]
    return r.call(torch.ops.aten.expand.default, r.activation(source), [*shape[:new], *kept], word="expand")


def _laid_out(r: Raiser, value: torch.Tensor, name: str) -> fx.Node:
    """Return a constant for each sample of the batch. Raises NotRaised where there is one for each of its heads."""
    if r.shape()[0] != r.shape(r.source)[0]:
        raise NotRaised
    table = r.attribute(value, name)
    return r.method("expand", table, r.batch(), *[-1] * (value.ndim - 1))


def _laid_out_within(r: Raiser, value: torch.Tensor, name: str) -> fx.Node:
    """Return a constant for each sample of a batch that is not the first dimension: the batch first, then moved.

    The states of recurrent layers have their batch second. Raises NotRaised where the constant is not of one sample.
    """
    shape, place = r.shape(), r.dynamic().index(True)
    batch, own = r.source.meta["val"].shape[0].node.expr, r.node.meta["val"].shape[place].node.expr
    one = [*shape[:place], 1, *shape[place + 1 :]]
    if own != batch or math.prod(one) > _MOST_ROWS or not _fits(value.shape, one):
        raise NotRaised
    table = r.attribute(value.expand(one).movedim(place, 0).clone(), name)
    laid = r.method("expand", table, r.batch(), *[-1] * (len(shape) - 1))
    return shapes.permuted(r, laid, [*range(1, place + 1), 0, *range(place + 1, len(shape))])


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether values of a shape can be expanded to another."""
    new = len(wanted) - len(shape)
    return new >= 0 and all(size in {1, other} for size, other in zip(shape, wanted[new:], strict=True))


def _repeats_for_arithmetic(r: Raiser, before: tuple[int, ...]) -> bool:
    """Whether a constant is repeated for each of several parts of a sample, and only added or multiplied there.

    ``mask.repeat(batch * rows, 1, 1)`` beside scores of that shape: arithmetic repeats what has one in a dimension.
    """
    shape, moves = r.shape(), r.dynamic()
    if not moves[0] or shape[0] == r.shape(r.source)[0] or len(before) != len(shape):
        return False
    if any(one not in {1, size} for one, size in zip(before, shape, strict=True)) or before[0] != 1:
        return False
    return _read_by_arithmetic(r, r.node)


def _read_by_arithmetic(r: Raiser, node: fx.Node) -> bool:
    """Whether a tensor, or what it is after a change of sign, is an operand of sums and products of its own shape."""
    readers = list(node.users)
    return bool(readers) and all(
        _read_by_arithmetic(r, each)
        if name_of(each) == "neg"
        else name_of(each) in {"add", "sub", "mul"}
        and all(isinstance(other, fx.Node) and r.shape(other) == r.shape(node) for other in each.args[:2])
        for each in readers
    )


def _repeat(r: Raiser, a: dict[str, Any]) -> fx.Node:
    source = a["self"]
    before, shape, moves = r.shape(source), r.shape(), r.dynamic()
    if r.is_known(source) and _repeats_for_arithmetic(r, before):
        r.known[r.node] = r.constant(source)
        return r.input  # a placeholder's worth: who reads this call takes the known value
    if (
        not r.is_known(source)
        and len(before) == len(shape)
        and all(one in {1, size} for one, size in zip(before, shape, strict=True))
    ):
        return _repeated(r, source, moves)
    if not r.is_known(source) or sum(moves) != 1 or len(before) != len(shape):
        raise NotRaised
    if not moves[0]:
        value = r.tensor(source)
        assert value is not None
        times = [1 if move else end // start for start, end, move in zip(before, shape, moves, strict=True)]
        return _laid_out_within(r, value.repeat(*times), r._name_of(source))
    rows = _rows_of_a_sample(r)
    if rows % before[0]:
        raise NotRaised
    value = r.tensor(source)
    assert value is not None
    times = [rows // before[0], *(end // start for start, end in zip(before[1:], shape[1:], strict=True))]
    return _rows_laid_out(r, value.repeat(*times), r._name_of(source))


def _repeat_each(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``x.repeat_interleave(4, 0)``: several rows for each sample, as for the frames of a video."""
    source, times = a["self"], a.get("repeats")
    if not isinstance(times, int) or a.get("dim") != 0 or r.is_known(source) or not r.dynamic(source)[0]:
        raise NotRaised
    rest = r.shape(source)[1:]
    apart = r.call(torch.reshape, r.activation(source), (-1, 1, *rest))
    wide = r.call(torch.ops.aten.expand.default, apart, [-1, times, *[-1] * len(rest)], word="expand")
    return r.call(torch.reshape, wide, (-1, *rest))


def _rows_laid_out(r: Raiser, value: torch.Tensor, name: str) -> fx.Node:
    """Return constant rows for each sample of the batch."""
    if len(value) == 1:
        return _laid_out(r, value, name)
    several = r.method("expand", r.attribute(value[None], name), r.batch(), *[-1] * value.ndim)
    return r.call(torch.reshape, several, (-1, *value.shape[1:]))


def _filled(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """Zeros, ones or another number for each sample of the batch."""
    shape, moves = r.shape(), r.dynamic()
    kind = r.node.target._schema.name  # type: ignore[union-attr]  # an OpOverload
    number = a.get("fill_value", 1.0 if "ones" in kind else 0.0)
    if not any(moves) and isinstance(number, int | float):
        r.known[r.node] = torch.full(shape, number, dtype=r.node.meta["val"].dtype)
        return r.input  # a placeholder's worth: who reads this call takes the known value
    kind_of_number = r.node.meta["val"].dtype
    held = kind_of_number == torch.float32 or not (kind_of_number.is_floating_point or kind_of_number.is_complex)
    if not held or sum(moves) != 1 or not isinstance(number, int | float):
        raise NotRaised
    scopes = [path for path, _ in r.node.meta.get("nn_module_stack", {}).values()]
    name = ".".join(part for part in (scopes[-1] if scopes else "", r.node.name) if part)
    if not moves[0]:
        return _laid_out_within(r, torch.full((), number, dtype=kind_of_number), name)
    return _rows_laid_out(r, torch.full((_rows_of_a_sample(r), *shape[1:]), number, dtype=kind_of_number), name)


def _rows_of_a_sample(r: Raiser) -> int:
    """Return how many indices of its first dimension the current call has for each sample of the batch."""
    batch, own = (each.meta["val"].shape[0].node.expr for each in (r.source, r.node))
    rows = r.shape()[0] // r.shape(r.source)[0]
    if own != rows * batch:
        raise NotRaised
    return rows


def _written_over(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``x.fill_(number)`` and the like: a constant in the place of a tensor."""
    number = r.constant(a["value"])
    number = number.item() if isinstance(number, torch.Tensor) and number.numel() == 1 else number
    try:
        return _filled(r, {"fill_value": number})
    except NotRaised:  # truth values, or the batch elsewhere; torch.jit has no form of ``fill`` itself
        # A truth value as a number: for TorchScript it is none.
        return r.call(torch.full_like, r.operand(a["self"]), int(number) if isinstance(number, bool) else number)


def _strided(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``x.as_strided(size, stride)`` that steps through the values of each sample: a choice at constant places."""
    source = a["self"]
    shape, moves, sizes = r.shape(source), r.dynamic(source), r.shape()
    value = source.meta["val"]
    steps, ways = ([_number(each) for each in given] for given in (value.stride(), a["stride"]))
    order = sorted(range(1, len(shape)), key=lambda dim: (-steps[dim], dim))  # as the values lie in memory
    size = 1
    for dim in reversed(order):
        if shape[dim] != 1 and steps[dim] != size:
            raise NotRaised  # there are others between the values
        size *= shape[dim]
    first = value.storage_offset()
    last = sum((count - 1) * way for count, way in zip(sizes[1:], ways[1:], strict=True))
    by_sample = moves == (True, *[False] * (len(shape) - 1)) and r.dynamic() == (True, *[False] * (len(sizes) - 1))
    if (
        not by_sample
        or r.node.meta["val"].shape[0].node.expr != value.shape[0].node.expr
        or not (steps[0] == ways[0] == size > last)
        or a["storage_offset"] not in {None, first}
    ):
        raise NotRaised  # it steps from one sample to the next, or through what is not the tensor's own
    x = shapes.permuted(r, r.activation(source), [0, *order])
    places = torch.arange(size).as_strided(sizes[1:], ways[1:])
    flat = r.call(torch.reshape, x, (-1, size))
    return r.call(torch.ops.aten.index.Tensor, flat, [None, r.attribute(places, "places")], word="as_strided")


def _number(step: object) -> int:
    """Return a step that is a number, whatever the batch is."""
    if not isinstance(step, int):
        raise NotRaised
    return step


HANDLERS: dict[str, Any] = {
    "as_strided": _strided,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    "repeat": _repeat,
    "repeat_interleave": _repeat_each,
    **dict.fromkeys(
        (
            *("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
            *("empty", "empty_like", "new_empty"),  # whose values nobody may read before they are written
        ),
        _filled,
    ),
    "fill": _written_over,
    "zero": _filled,
}
"""By the name of an ATen operator."""
