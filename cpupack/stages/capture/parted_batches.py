"""Batches of different numbers of rows that are joined, go through a network, and are taken apart again.

A prototypical network folds five supports and four queries of each sample into one batch:
``z = f(torch.cat([support.flatten(0, 1), query.flatten(0, 1)])); z[: len(support) * 5]``. The samples' rows are no
longer side by side then, and the engine's values are those of a sample. Where all that comes between is done to each
row by itself, the same is done here to each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from cpupack.graph.needed import needed
from cpupack.stages.capture.chosen_rows import is_by_row, with_rows
from cpupack.stages.capture.export import Exported, is_dynamic

_ATEN = torch.ops.aten
_SPLITS = frozenset({"split_with_sizes", "split", "chunk", "tensor_split"})
_OF_IMAGES = frozenset(
    {
        "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
        "batch_norm", "group_norm", "instance_norm", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d",
        "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        "adaptive_max_pool2d", "max_pool2d_with_indices", "upsample_nearest2d", "upsample_bilinear2d", "pixel_shuffle",
        "pixel_unshuffle", "prelu", "dropout", "feature_dropout",
    }
)  # fmt: skip
"""Give each row by itself, in eval mode, where their first operand alone has the rows."""


def compute_all_parts(exported: Exported) -> Exported:
    """Rewrite each batch that is joined of others, unlike ones, and taken apart at the same places."""
    read = needed(exported.result)
    for joined in [each for each in exported.graph.nodes if each in read and each.target is _ATEN.cat.default]:
        parts = _parts_of(joined, exported.source)
        if parts is not None and (found := _rows_behind(joined, read, exported.result)) is not None:
            _run_apart(joined, parts, *found)
    exported.graph.lint()
    return exported


def _parts_of(joined: fx.Node, source: fx.Node) -> list[fx.Node] | None:
    """Return what is joined along the first dimension, where each has rows of all samples and not one of each alone."""
    parts: Any = joined.args[0]
    dim = joined.args[1] if len(joined.args) > 1 else joined.kwargs.get("dim", 0)
    if len(parts) < 2 or dim not in {0, -joined.meta["val"].ndim}:
        return None
    sizes = [each.meta["val"].shape[0] for each in parts]
    batch = source.meta["val"].shape[0].node.expr
    if not all(map(is_dynamic, sizes)) or all(each.node.expr == batch for each in sizes):
        return None
    return list(parts)


def _rows_behind(joined: fx.Node, read: set[fx.Node], result: fx.Node) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """Return the calls on joined rows, in order, and those that take rows apart; None where rows meet, or leave."""
    inside: set[fx.Node] = {joined}
    between, apart = list[fx.Node](), list[fx.Node]()
    for node in joined.graph.nodes:
        taken = [each for each in node.all_input_nodes if each in inside]
        if node is joined or not taken or node not in read:
            continue
        if _takes_apart(node):
            apart.append(node)
        elif _is_by_row(node, inside):
            inside.add(node)
            between.append(node)
        else:
            return None
    return None if result in {*inside, *apart} or not apart else (between, apart)


def _takes_apart(node: fx.Node) -> bool:
    """Whether a call takes some of the rows, by their numbers."""
    name = node.target._opname if isinstance(node.target, OpOverload) else ""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if name == "slice":
        return bool((node.args[1] if len(node.args) > 1 else 0) == 0 and len(node.args) < 5)
    return name in _SPLITS and bool(dim == 0)


def _is_by_row(node: fx.Node, inside: set[fx.Node]) -> bool:
    name = node.target._opname if isinstance(node.target, OpOverload) else ""
    if name in _OF_IMAGES:
        return node.args[0] in inside and not any(each in inside for each in node.all_input_nodes[1:])
    return is_by_row(node, inside)


def _run_apart(joined: fx.Node, parts: Sequence[fx.Node], between: list[fx.Node], apart: list[fx.Node]) -> None:
    """Give each part the calls between, if what is taken apart is what was joined."""
    sizes = [each.meta["val"].shape[0] for each in parts]
    ends = [sum(sizes[:place], start=sizes[0] * 0) for place in range(len(sizes) + 1)]
    wanted: dict[fx.Node, list[int]] = {}
    for node in apart:
        found = _places(node, ends)
        if found is None:
            return
        wanted[node] = found
    made: list[dict[fx.Node, fx.Node]] = []
    for part, rows in zip(parts, sizes, strict=True):
        own: dict[fx.Node, fx.Node] = {joined: part}
        for node in between:
            with joined.graph.inserting_before(node):
                copy = joined.graph.node_copy(node, lambda each, own=own: own.get(each, each))  # type: ignore[misc]
            copy.meta["val"] = with_rows(copy, rows)
            own[node] = copy
        made.append(own)
    for node, places in wanted.items():
        source: Any = node.args[0]
        if node.target is _ATEN.slice.Tensor:
            node.replace_all_uses_with(made[places[0]][source])
            continue
        for user in list(node.users):
            user.replace_all_uses_with(made[places[user.args[1]]][source])  # type: ignore[index]  # a getitem


def _places(node: fx.Node, ends: list[Any]) -> list[int] | None:
    """Return the numbers of the parts that a call takes; None where it takes other rows."""
    if node.target is _ATEN.slice.Tensor:
        first = _size(node.args[2] if len(node.args) > 2 else 0)
        count = node.meta["val"].shape[0]
        found = [
            place for place in range(len(ends) - 1)
            if _same(ends[place], first) and _same(ends[place + 1] - ends[place], count)
        ]  # fmt: skip
        return found or None
    results = node.meta["val"]
    if len(results) != len(ends) - 1 or any(user.op != "call_function" for user in node.users):
        return None
    alike = all(_same(each.shape[0], ends[place + 1] - ends[place]) for place, each in enumerate(results))
    return list(range(len(results))) if alike else None


def _size(value: Any) -> Any:
    return value.meta["val"] if isinstance(value, fx.Node) else (value or 0)


def _same(one: Any, other: Any) -> bool:
    """Whether two sizes are the same for any batch."""
    found = one - other
    return bool(found.node.expr == 0 if isinstance(found, torch.SymInt) else found == 0)
