"""Divisors: values that INT8 must not round to zero, because what they divide would be infinite or no number."""

from __future__ import annotations

import operator

import torch
from torch import fx

_DIVISOR_PLACE = {torch.div: 1, operator.truediv: 1, torch.reciprocal: 0, torch.rsqrt: 0, torch.log: 0}
_EXPANSIONS = {"expand", "expand_as", "broadcast_to"}


def divisors(graph: fx.GraphModule, *, of_quotients_alone: bool = False) -> set[fx.Node]:
    """Return the functions whose result becomes a divisor, back to the first call of two computed operands or a module.

    ``x / (x.norm() + 1e-12)`` has the sum and the norm. Roots and logarithms count as divisors' readers too, unless
    ``of_quotients_alone``.
    """
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        place = _DIVISOR_PLACE.get(node.target) if node.op == "call_function" else None
        if place is None or len(node.args) <= place or (of_quotients_alone and not place):
            continue
        divisor = node.args[place]
        while isinstance(divisor, fx.Node) and divisor.op in {"call_function", "call_method"}:
            source = _only_source(divisor)
            if source is not None:
                found.add(divisor)
            divisor = source
    return found


def _only_source(node: fx.Node) -> fx.Node | None:
    """Return what a function of one computed operand reads; another may say to which shape it is expanded."""
    if str(getattr(node.target, "_opname", node.target)) in _EXPANSIONS and isinstance(node.args[0], fx.Node):
        return node.args[0]
    computed = [each for each in node.all_input_nodes if each.op != "get_attr"]
    return computed[0] if len(computed) == 1 else None
