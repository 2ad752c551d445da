"""Scores whose order chooses: INT8 must not round them on their way to a sort, a top-k or a place of a maximum."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from cpupack.graph.names import core

_ATEN = torch.ops.aten
_FEW = 64
"""Scores of a place that cost little in FP32."""
_SEVERAL = frozenset({_ATEN.topk.default, _ATEN.sort.default, _ATEN.sort.stable})
_PLACES = frozenset({_ATEN.argsort.default, _ATEN.argsort.stable, _ATEN.argmax.default, _ATEN.argmin.default})


def choosing_calls(graph: fx.GraphModule, has_weights: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Return the calls between layers with weights and an order whose places something reads.

    Two scores that become one code are in another order than before, and what is picked by it is another row. Small
    linear layers that give such scores are among them.
    """
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.target in _PLACES or (node.target in _SEVERAL and any(_reads_places(user) for user in node.users)):
            pending = list(node.all_input_nodes)
            while pending:
                each = pending.pop()
                if each in found or not each.op.startswith("call"):
                    continue
                if not has_weights(each):
                    found.add(each)
                    pending += each.all_input_nodes
                elif _is_small(graph, each):
                    found.add(each)
    return found


def _is_small(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a layer only scores: a router of experts, the scores of points or tokens."""
    if node.op != "call_module":
        return False
    module = core(graph.get_submodule(str(node.target)))
    return isinstance(module, nn.Linear) and int(module.out_features) <= _FEW


def _reads_places(user: fx.Node) -> bool:
    return user.target is operator.getitem and bool(user.args[1] == 1)
