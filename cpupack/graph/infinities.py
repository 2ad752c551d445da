"""Calls whose values are not finite on calibration samples, though what the model answers is.

``1 / degree`` is infinite for a node without neighbours, and ``log(x)`` for a zero; ``torch.where`` then takes
something else. No range of INT8 codes has such values, so these calls and those that read them stay FP32, and
calibration counts their ordinary values alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection

from torch import fx


def lasting(graph: fx.GraphModule, infinite: Collection[str]) -> str | None:
    """Return the first of the calls named ``infinite`` from which infinities go on into the model's answer.

    None where each of them is replaced, or becomes a finite number, on the way.
    """
    reaches: set[fx.Node] = set()
    first = None
    for node in reversed(graph.graph.nodes):
        if node.op == "output" or (_passes(node, infinite) and not reaches.isdisjoint(node.users)):
            reaches.add(node)
            first = node.name if node.name in infinite else first
    return first


def _passes(node: fx.Node, infinite: Collection[str]) -> bool:
    """Whether a call's values are not all finite; of several tensors (a split) the parts tell."""
    parts = [each for each in node.users if each.target is operator.getitem]
    return node.name in infinite or any(each.name in infinite for each in parts)


def infinite_calls(graph: fx.GraphModule, is_infinite: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Return the calls of a graph that ``is_infinite`` tells, and those that read them."""
    found = {node for node in graph.graph.nodes if node.op.startswith("call") and is_infinite(node)}
    return found | {each for node in found for each in node.users if each.op.startswith("call")}
