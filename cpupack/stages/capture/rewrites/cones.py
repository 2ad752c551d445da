"""Finds the part of a graph that computes one result from one other, whatever way it is written.

A function written out (x * sigmoid(x), a norm from its means) is recognised by its values in float64, not by its
spelling: the order of the operands, a division or the product with an inverse, all look the same from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

from cpupack.graph.vocabulary import ACTIVATIONS, ARITHMETIC, POINTWISE
from cpupack.stages.capture.rewrites.tools import constant_of, module_of

_LARGEST = 24


@dataclass(frozen=True)
class Cone:
    """The calls between ``source`` and ``result``, the result's included, in the order of the graph."""

    graph: fx.GraphModule
    source: fx.Node
    result: fx.Node
    members: tuple[fx.Node, ...]

    def at(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the result for float64 values of the source, None where it is no function of such (of a mask)."""
        try:
            found = self._computed(x)
        except (
            RuntimeError,
            TypeError,
            IndexError,
        ):  # torch: no operator of float64, or of one value without dimensions
            return None
        return found if found.shape == x.shape and found.is_floating_point() else None

    def _computed(self, x: torch.Tensor) -> torch.Tensor:
        values: dict[fx.Node, Any] = {self.source: x}

        def value(node: fx.Node) -> Any:
            if node not in values:
                constant = single_value(self.graph, node)
                assert constant is not None
                values[node] = constant.double() if constant.is_floating_point() else constant
            return values[node]

        for node in self.members:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
            module = module_of(self.graph, node)
            values[node] = module(*args) if module is not None else node.target(*args, **kwargs)  # type: ignore[operator]
        result: torch.Tensor = values[self.result]
        return result

    def numbers(self) -> list[float]:
        """Return the numbers that the calls hold."""
        found: list[float] = []
        for node in self.members:
            for each in [*node.args, *node.kwargs.values()]:
                if isinstance(each, int | float) and not isinstance(each, bool):
                    found.append(float(each))
        return found


def single_value(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """Return the one value that a constant has everywhere, as a tensor without dimensions, else None."""
    if node.op == "call_method" and node.target == "expand":
        node = node.args[0]  # type: ignore[assignment]  # the constant that is laid out for the batch
    constant = constant_of(graph, node)
    if constant is None or not constant.numel() or bool((constant != constant.flatten()[0]).any()):
        return None
    return constant.flatten()[0]


def is_pointwise(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call computes each value of its result from the values at the same place, without weights."""
    if node.op == "call_module":
        return type(module_of(graph, node)) in ACTIVATIONS and not isinstance(module_of(graph, node), nn.PReLU)
    if node.op != "call_function":
        return False
    if node.target in ARITHMETIC or node.target in POINTWISE:
        return True
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags


def cones(
    graph: fx.GraphModule, result: fx.Node, inside: Callable[[fx.Node], bool], order: dict[fx.Node, int]
) -> Iterator[Cone]:
    """Yield the cones that end in ``result``, the smallest first; ``inside`` allows a call."""
    members: list[fx.Node] = []
    frontier = {result}
    while len(members) <= _LARGEST:
        latest = max(frontier, key=order.__getitem__)
        if len(frontier) == 1 and members:
            yield Cone(graph, latest, result, tuple(sorted(members, key=order.__getitem__)))
        if not inside(latest):
            return
        members.append(latest)
        frontier.remove(latest)
        for each in latest.all_input_nodes:
            if single_value(graph, each) is not None:
                continue
            if each.op == "get_attr":
                return
            frontier.add(each)
        if not frontier:
            return
