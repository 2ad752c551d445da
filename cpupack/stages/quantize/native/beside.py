"""Calls that go past all layers with weights, from the input or an embedding to the result, such as the sum of products
of factorization machines and the one-hot weights of wide models.

They have few values, and no INT8 layer would have codes of them otherwise. So they stay FP32, and so does what adds
them to the result of the last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from cpupack.stages.quantize.native.calls import Calls, shape_of
from cpupack.stages.quantize.native.filters import has_weights
from cpupack.stages.quantize.native.recurrent import is_recurrent

_LARGEST_RANK = 3
"""Images that go past a network, to be added to its result, stay INT8: they are large, and their codes exact enough."""


def calls_beside_layers(calls: Calls) -> set[fx.Node]:
    """Return these calls."""
    nodes = list(calls.graph.graph.nodes)
    layers = {node for node in nodes if has_weights(calls, node) or is_recurrent(calls, node)}
    after = _reached(nodes, layers, lambda node: node.all_input_nodes)
    before = _reached(reversed(nodes), layers, lambda node: list(node.users))
    found: set[fx.Node] = set()
    for node in nodes:
        if not node.op.startswith("call") or "shape" not in node.meta or node in before or calls.is_constant(node):
            continue
        adds = node in after and any(each in found for each in node.all_input_nodes)
        if (adds or node not in after) and len(shape_of(node)) <= _LARGEST_RANK:
            found.add(node)
    return found


def _reached(
    nodes: Iterable[fx.Node], layers: set[fx.Node], sources: Callable[[fx.Node], list[fx.Node]]
) -> set[fx.Node]:
    """Return the layers and what they reach, in the order of ``nodes``."""
    found = set(layers)
    for node in nodes:
        if any(each in found for each in sources(node)):
            found.add(node)
    return found
