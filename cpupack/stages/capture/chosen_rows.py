"""Rows that a mask chooses, computed for all rows and then chosen: ``out[mask] = layer(x[mask])``.

A mixture of experts gives each expert its own tokens, a flow treats what is outside of its splines apart, a point cloud
keeps the smaller of two distances. How many rows that are depends on the values, so no program of the engine has such a
tensor, and which samples share it depends on the batch. Where all that is done to the rows is done to each by itself,
the same is done here to all of them, and ``torch.where`` takes the chosen ones. That computes more, and in INT8.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from cpupack.graph.needed import needed
from cpupack.stages.capture.export import Exported

_ATEN = torch.ops.aten
_ALIKE = frozenset(
    {"clone", "contiguous", "to", "_to_copy", "type_as", "detach", "alias", "zeros_like", "ones_like", "full_like"}
)
"""Give each row by itself, whatever their arguments."""
_ALONG = frozenset(
    {
        "softmax", "_softmax", "log_softmax", "_log_softmax", "sum", "mean", "amax", "amin", "max", "min", "argmax",
        "argmin", "cumsum", "cumprod", "logsumexp", "unsqueeze", "squeeze", "select", "slice", "narrow", "chunk",
        "split", "split_with_sizes", "unbind", "cat", "stack", "glu", "flip", "sort", "topk",
        "linalg_vector_norm", "var", "std",
    }
)  # fmt: skip
"""Give each row by itself where they go along another dimension than the first."""
_WRITES = frozenset({"select_scatter", "slice_scatter"})
"""Give each row by itself where both operands have the rows first and they write along another dimension."""
_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten", "expand"})


def compute_all_rows(exported: Exported) -> Exported:
    """Rewrite each update by a mask whose new values are made of rows of that mask alone."""
    result = exported.result
    for put in list(exported.graph.nodes):
        if put.target is _ATEN.index_put.default and (found := _rows_between(put)) is not None:
            chosen = _choose_last(put, found)
            result = chosen if put is result else result
    exported.graph.lint()
    return replace(exported, result=result)


def _rows_between(put: fx.Node) -> list[fx.Node] | None:
    """Return the calls from the rows that a mask chooses to those that are put there, in order; None where some call
    looks at several rows, or it is another kind of update."""
    source, indices, values, *accumulate = put.args
    mask = indices[0] if isinstance(indices, list | tuple) and len(indices) == 1 else None
    if any(accumulate) or not all(isinstance(each, fx.Node) for each in (source, mask, values)):
        return None
    assert isinstance(source, fx.Node)
    assert isinstance(mask, fx.Node)
    assert isinstance(values, fx.Node)
    held, masked, new = (each.meta["val"] for each in (source, mask, values))
    whole = masked.dtype == torch.bool and not any(isinstance(size, torch.SymInt) for size in held.shape[1:])
    if not whole or new.ndim != held.ndim - masked.ndim + 1 or new.dtype != held.dtype:
        return None
    before = needed(values)
    leaves = {each for each in before if _takes_rows(each, mask)}
    inside: set[fx.Node] = set()
    for node in put.graph.nodes:
        if node in before and (node in leaves or any(each in inside for each in node.all_input_nodes)):
            if node not in leaves and not is_by_row(node, inside):
                return None
            inside.add(node)
    return [each for each in put.graph.nodes if each in inside] if values in inside else None


def _takes_rows(node: fx.Node, mask: fx.Node) -> bool:
    """Whether a call is ``x[mask]``."""
    if node.target is not _ATEN.index.Tensor or not isinstance(node.args[0], fx.Node):
        return False
    given: Any = node.args[1]
    return len(given) == 1 and _is_alike(given[0], mask) and node.args[0].meta["val"].ndim >= mask.meta["val"].ndim


def _is_alike(one: Any, other: Any) -> bool:
    """Whether two values are computed alike: a mask may be written out twice (``y[~inside] = x[~inside]``)."""
    if one is other:
        return True
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_alike, one, other))
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return type(one) is type(other) and bool(one == other)
    pure = isinstance(one.target, OpOverload) and torch.Tag.nondeterministic_seeded not in one.target.tags
    return pure and one.target is other.target and one.kwargs == other.kwargs and _is_alike(one.args, other.args)


def is_by_row(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether a call makes each row of its results, an index of the first dimension, of that row of its operands."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor | list | tuple):
        return isinstance(value, torch.SymInt)
    if any(isinstance(each, torch.SymInt) for part in _tensors(value) for each in part.shape[1:]):
        return False
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    name = node.target._opname
    rows = [each for each in node.all_input_nodes if each in inside and isinstance(each.meta["val"], torch.Tensor)]
    if name in _WRITES:
        kept, written = node.args[:2]
        return kept in inside and written in inside and _goes_along_others(node, _rank(kept.meta["val"]), name)  # type: ignore[union-attr]  # nodes
    ranks = {each.meta["val"].ndim for each in rows}
    if not rows or len(ranks) != 1 or 0 in ranks:
        return False
    (rank,) = ranks
    others = [each.meta.get("val") for each in node.all_input_nodes if each not in inside]
    if name in _ALIKE:
        return node.args[0] in inside
    if name in _RESHAPES:
        size = rows[0].meta["val"].shape[0]
        return isinstance(value, torch.Tensor) and value.ndim > 0 and _is_same(value.shape[0], size)
    if name == "expand_as":
        return len(rows) == 2 and _is_same(*(each.meta["val"].shape[0] for each in rows))
    if name in _ALONG:
        return not any(isinstance(each, torch.Tensor) for each in others) and _goes_along_others(node, rank, name)
    if name in {"permute", "transpose"}:
        return _keeps_rows_first(node, rank)
    if name == "gather":
        return len(rows) == 2 and _goes_along_others(node, rank, name)
    if name in {"linear", "matmul", "mm", "addmm"}:
        place = 1 if name == "addmm" else 0
        return rows == [node.args[place]] and rank >= 2 and all(_rank(each) <= 2 for each in others)
    if name in {"pad", "constant_pad_nd"}:
        pads: Any = node.args[1]
        return bool(len(pads) // 2 < rank)
    if name in {"copy", "fill"}:
        return node.args[0] in inside and _rank(value) == rank and all(not _rank(each) for each in others)
    if name == "layer_norm":
        shape: Any = node.args[1]
        return bool(rows == [node.args[0]] and len(shape) < rank)
    if torch.Tag.pointwise in node.target.tags and isinstance(value, torch.Tensor):
        tensors = [each for each in others if isinstance(each, torch.Tensor)]
        return value.ndim == rank and all(each.ndim < rank or each.shape[0] == 1 for each in tensors)
    return False


def _rank(value: object) -> int:
    return value.ndim if isinstance(value, torch.Tensor) else 0


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def _is_same(one: Any, other: Any) -> bool:
    return isinstance(one, torch.SymInt) and bool(one.node.expr == other.node.expr)


def _goes_along_others(node: fx.Node, rank: int, name: str) -> bool:
    """Whether a call goes along dimensions that it names, the rows not among them."""
    schema = node.target._schema  # type: ignore[union-attr]  # an OpOverload
    names = [each.name for each in schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    defaults = {each.name: each.default_value for each in schema.arguments}
    dims = next((given.get(each, defaults[each]) for each in ("dim", "dims") if each in names), None)
    if dims is None:
        return False
    rank += name in {"unsqueeze", "stack"}
    listed = list(dims) if isinstance(dims, list | tuple) else [dims]
    return bool(listed) and all(isinstance(each, int) and each % rank != 0 for each in listed)


def _keeps_rows_first(node: fx.Node, rank: int) -> bool:
    """Whether a call that moves dimensions leaves the rows where they are."""
    dims: Any = node.args[1:3] if node.target is _ATEN.transpose.int else node.args[1]
    return dims[0] % rank == 0 if isinstance(dims, list) else all(each % rank for each in dims)


def _choose_last(put: fx.Node, between: list[fx.Node]) -> fx.Node:
    """Write an update out: all rows, and of these the ones that the mask chooses. Returns what gives them."""
    given: Any = put.args
    source, (mask,), values = given[:3]
    samples, *sizes = mask.meta["val"].shape
    rows = samples * math.prod(sizes)
    made: dict[fx.Node, fx.Node] = {}
    with put.graph.inserting_before(put):
        for node in between:
            taken: Any = node.args[0]
            if _takes_rows(node, mask):
                made[node] = _added(node, with_rows(node, rows), _ATEN.flatten.using_ints, taken, 0, len(sizes))
                continue
            copy = put.graph.node_copy(node, lambda each: made.get(each, each))
            copy.meta["val"] = with_rows(copy, rows)
            made[node] = copy
        new = made[values]
        rest = list(new.meta["val"].shape[1:])
        batch = _added(put, samples, _ATEN.sym_size.int, mask, 0)
        apart = _added(put, _like(put, (samples, *sizes, *rest)), _ATEN.reshape.default, new, [batch, *sizes, *rest])
        where, ones = mask, [1] * len(rest)
        if rest:
            shape = _like(mask, (samples, *sizes, *ones))
            where = _added(put, shape, _ATEN.reshape.default, mask, [batch, *sizes, *ones])
        chosen = _added(put, put.meta["val"], _ATEN.where.self, where, apart, source)
    put.replace_all_uses_with(chosen)
    return chosen


def _added(like: fx.Node, value: Any, target: Any, *args: Any) -> fx.Node:
    new = like.graph.call_function(target, args)
    new.meta = {**like.meta, "val": value}
    return new


def _like(node: fx.Node, shape: tuple[Any, ...]) -> Any:
    """Return a tensor of the type of a call's, with no values."""
    value = node.meta["val"]
    with value.fake_mode:
        return torch.empty(shape, dtype=value.dtype)


def with_rows(node: fx.Node, rows: Any) -> Any:
    """Return what a call gives for other rows than before: as many of them, and each of the shape that it has."""
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        return _like(node, (rows, *value.shape[1:]))
    if isinstance(value, list | tuple):
        mode = value[0].fake_mode
        with mode:
            return [torch.empty((rows, *each.shape[1:]), dtype=each.dtype) for each in value]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    return node.target(*args, **kwargs)  # type: ignore[operator]  # arithmetic on sizes
