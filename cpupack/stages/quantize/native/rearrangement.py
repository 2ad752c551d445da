"""Calls that only move values, as one module of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn


class Rearrangement(nn.Module):
    """Calls that only move values, one after the other: each a function and its arguments after the tensor."""

    def __init__(self, *calls: tuple[Any, tuple[Any, ...]]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for function, arguments in self.calls:
            x = function(x, *arguments)
        return x


def turn_around(graph: fx.GraphModule, node: fx.Node, name: str) -> tuple[fx.Node, fx.Node]:
    """Swap the first two dimensions of a sample before a call of one value and back after it, in place.

    Return the calls that do it. They share a module ``name``, which is added where it is not there.
    """
    if not hasattr(graph, name):
        graph.add_submodule(name, Rearrangement((torch.transpose, (1, 2))))
    return put_between(graph, node, name, name)


def put_between(graph: fx.GraphModule, node: fx.Node, before: str, after: str) -> tuple[fx.Node, fx.Node]:
    """Have two modules of the graph rearrange what a call reads and what it gives, in place; return their calls."""
    (source,) = node.all_input_nodes
    with graph.graph.inserting_before(node):
        turned = graph.graph.call_module(before, (source,))
    with graph.graph.inserting_after(node):
        back = graph.graph.call_module(after, (node,))
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    node.args = (turned, *node.args[1:])
    turned.meta = {key: value for key, value in source.meta.items() if key not in {"shape", "rank"}}
    back.meta = {key: value for key, value in node.meta.items() if key != "shape"}
    return turned, back
