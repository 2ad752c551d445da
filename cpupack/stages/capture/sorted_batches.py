"""Batches that are sorted by the samples' lengths, go through a network, and are put back into their order.

``lengths, order = lengths.sort(descending=True)``, ``x[order]``, and in the end ``y[order.argsort()]``: so sequences
had to be packed before torch sorted them itself (``enforce_sorted=False``). What is done to each sample by itself is
the same in any order, so here the samples stay where they are. The proof of a captured model shows whether it was so.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.export import Exported

_ATEN = torch.ops.aten
_SORTS = frozenset({_ATEN.sort.default, _ATEN.sort.stable})
_ARGSORTS = frozenset({_ATEN.argsort.default, _ATEN.argsort.stable})
_KEPT = frozenset(
    {
        _ATEN.to.device, _ATEN.to.dtype, _ATEN.to.dtype_layout, _ATEN._to_copy.default, _ATEN.clone.default,
        _ATEN.contiguous.default, _ATEN.detach.default, _ATEN.alias.default, _ATEN.slice.Tensor,
    }
)  # fmt: skip
_CHECKS = frozenset({_ATEN._assert_tensor_metadata.default})
_LIKE = frozenset({_ATEN.empty_like.default, _ATEN.zeros_like.default})
"""Take of an order its shape alone."""


def keep_order(exported: Exported) -> Exported:
    """Rewrite a graph that sorts the samples and puts them back, so that it leaves them in their order."""
    batch = exported.source.meta["val"].shape[0].node.expr
    orders: set[fx.Node] = set()
    given: dict[fx.Node, fx.Node] = {}
    back = False
    for node in exported.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _SORTS | _ARGSORTS and _is_of_samples(node.args[0], batch):
            back |= node.args[0] in orders
            if node.target in _ARGSORTS:
                orders.add(node)
            for part in node.users if node.target in _SORTS else ():
                if part.args[1] == 0:
                    given[part] = node.args[0]
                if part.args[1] == 1 or node.args[0] in orders:
                    orders.add(part)
        elif node.args and node.args[0] in orders and node.target in _KEPT and _is_of_samples(node, batch):
            orders.add(node)
        elif (put := _puts_numbers(node)) is not None and put in orders:
            back = True
            orders.add(node)
        elif (taken := _takes(node, orders, batch)) is not None:
            given[node] = taken
        elif any(each in orders for each in node.all_input_nodes) and not _only_parts(node):
            return exported  # an order that is read in another way
    if not back or exported.result in orders:
        return exported
    result = exported.result
    for node, source in given.items():
        while source in given:
            source = given[source]
        node.replace_all_uses_with(source)
        result = source if node is result else result
    for node in reversed(list(exported.graph.nodes)):
        if not node.users and (node in orders or node in given or _checks(node, orders)):
            exported.graph.erase_node(node)
    exported.graph.eliminate_dead_code()
    exported.graph.lint()
    return replace(exported, result=result)


def _is_of_samples(node: Any, batch: Any) -> bool:
    """Whether a tensor has one value for each sample."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.ndim == 1 and _is_batch(value.shape[0], batch)


def _is_batch(size: Any, batch: Any) -> bool:
    return isinstance(size, torch.SymInt) and bool(size.node.expr == batch)


def _puts_numbers(node: fx.Node) -> fx.Node | None:
    """Return the order of which ``back[order] = torch.arange(n)`` makes the one that undoes it."""
    given: Any = node.args
    if node.target is _ATEN.index_put.default and len(given[1]) == 1:
        order, numbers = given[1][0], given[2]
    elif node.target is _ATEN.scatter.src and given[1] in {0, -1}:
        order, numbers = given[2], given[3]
    else:
        return None
    counts = isinstance(numbers, fx.Node) and numbers.target is _ATEN.arange.default
    return order if counts and isinstance(order, fx.Node) else None


def _takes(node: fx.Node, orders: set[fx.Node], batch: Any) -> fx.Node | None:
    """Return the tensor whose samples a call takes in an order; None for another call."""
    given: Any = node.args
    if node.target is _ATEN.index.Tensor:
        chosen = [(dim, each) for dim, each in enumerate(given[1]) if each is not None]
    elif node.target in {_ATEN.index_select.default, _ATEN.gather.default}:
        chosen = [(given[1], given[2])]
    else:
        return None
    value = given[0].meta["val"]
    if len(chosen) != 1 or chosen[0][1] not in orders or given[0] in orders:
        return None
    dim = chosen[0][0] % value.ndim
    if not _is_batch(value.shape[dim], batch) or (node.target is _ATEN.gather.default and value.ndim != 1):
        return None
    source: fx.Node = given[0]
    return source


def _only_parts(node: fx.Node) -> bool:
    return node.target is operator.getitem or node.target in _CHECKS | _LIKE | _SORTS | _ARGSORTS


def _checks(node: fx.Node, orders: set[fx.Node]) -> bool:
    return node.target in _CHECKS and any(each in orders for each in node.all_input_nodes)
