"""Brings the calls that make masks to the front of a graph, where attention that reads them can be one layer."""

from __future__ import annotations

import torch
from torch import fx


def bring_masks_forward(graph: fx.GraphModule) -> None:
    """Move calls that come from truth values, and from no module and no product, behind the inputs, in place.

    A model may make its mask between the first product of attention and the sum with the mask. ``node.meta["dtype"]``
    must be there. The order of other calls stays.
    """
    nodes = list(graph.graph.nodes)
    free: set[fx.Node] = set()
    masks: set[fx.Node] = set()
    for node in nodes:
        if node.op in {"placeholder", "get_attr"}:
            free.add(node)
        elif node.op in {"call_function", "call_method"} and node.target is not torch.matmul:
            if not all(each in free for each in node.all_input_nodes):
                continue
            free.add(node)
            if node.meta.get("dtype") is torch.bool or any(each in masks for each in node.all_input_nodes):
                masks.add(node)
    moved = set(masks)
    for node in reversed(nodes):
        if node in moved:
            moved |= {each for each in node.all_input_nodes if each.op != "placeholder"}
    first = next((node for node in nodes if node.op not in {"placeholder", "get_attr"} and node not in moved), None)
    if first is None:
        return
    with graph.graph.inserting_before(first):
        for node in nodes:
            if node in moved:
                first.prepend(node)
    graph.graph.lint()
    graph.recompile()
