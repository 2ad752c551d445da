"""Powers under roots: values that INT8 must not round between a power and the root that is taken of it."""

from __future__ import annotations

import torch
from torch import fx, nn

from cpupack.graph.vocabulary import ACTIVATIONS, ADAPTIVE_POOLS, AVERAGE_POOLS, POINTWISE

_SIGN = torch.ops.aten.sign.default
_PASSED = (
    torch.add, torch.sub, torch.mul, torch.div, torch.mean, torch.sum, torch.reshape, torch.flatten, torch.permute,
    _SIGN, *POINTWISE,
)  # fmt: skip
_PASSED_MODULES = (*ACTIVATIONS, *AVERAGE_POOLS, *ADAPTIVE_POOLS)


def under_roots(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the calls from a power (or exponential) to a root (or logarithm) of it, both included.

    ``(x ** 3).mean() ** (1 / 3)`` has values that differ by orders of magnitude more than those of ``x``, and the root
    makes large errors of the small ones. Sums of squares under a square root are the same. So are products that are
    added to squares: of a distance, ``sqrt(x² + y² - 2 x y)``, little is left.
    """
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if _is_root(node):
            path = _from_power(graph, node)
            if path:
                found |= path
    return found


def _is_root(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target is torch.pow:
        exponent = node.args[1]
        return isinstance(exponent, int | float) and 0 < exponent < 1
    return node.target in {torch.sqrt, torch.log}


def _is_power(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target is torch.pow:
        exponent = node.args[1]
        return isinstance(exponent, int | float) and exponent > 1
    return node.target is torch.exp or (node.target is torch.mul and node.args[0] is node.args[1])


def _from_power(graph: fx.GraphModule, root: fx.Node) -> set[fx.Node]:
    """Return the calls on the ways from powers to ``root``, none where no power is on a way of plain arithmetic."""
    reached: dict[fx.Node, bool] = {}

    def has_power(node: fx.Node) -> bool:
        if node not in reached:
            reached[node] = False
            if _is_power(node):
                reached[node] = True
            elif _is_passed(graph, node):
                ways = [has_power(each) for each in node.all_input_nodes]  # all of them
                reached[node] = any(ways)
        return reached[node]

    ways = [has_power(each) for each in root.all_input_nodes]
    if not any(ways):
        return set()
    beside = {node for node in reached if root.target is not torch.log and _is_product(graph, node)}
    return {node for node, found in reached.items() if found} | {root} | beside


def _is_product(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call is a linear layer: ``x @ y.T`` of a constant."""
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Linear)


def _is_passed(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module: nn.Module = graph.get_submodule(str(node.target))
        return isinstance(module, _PASSED_MODULES)
    return node.op == "call_function" and node.target in _PASSED
