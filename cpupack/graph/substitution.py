"""Derives the graph of a model for another size from its graphs for two sizes, in place of capturing it once more.

Two captures of one model at two sizes are the same calls with other numbers. A number that differs is taken to lie on a
line through both, and a constant tensor that differs to be the beginning of the larger one. Nothing here proves that
the model does so at the size in between: whoever derives a graph compares its answers with the model's.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

_PLAIN = (int, float, str, bool, tuple, list, type(None), torch.Size)


class NotDerivedError(Exception):
    """Two graphs differ in more than numbers on a line and in constants that are cut: capture the model instead."""


def derived(small: fx.GraphModule, large: fx.GraphModule, sizes: tuple[int, int], size: int) -> fx.GraphModule:
    """Return the graph for ``size`` from those for two ``sizes``. It shares modules and constants with ``large``.

    ``node.meta`` has what ``large`` has, shapes too: record them anew. Raises NotDerivedError.
    """
    if len(small.graph.nodes) != len(large.graph.nodes):
        raise NotDerivedError("the calls are others")
    twins = dict(zip(small.graph.nodes, large.graph.nodes, strict=True))
    line = _Line(sizes[0], sizes[1], size, twins)
    graph, copies, cut = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, torch.Tensor]()
    for one, other in twins.items():
        new = graph.node_copy(other, copies.__getitem__)
        copies[other] = new
        if one.op != other.op or (one.op.startswith("call") and one.op != "call_module" and one.target != other.target):
            raise NotDerivedError(f"{other.name} is another call")
        if one.op == "call_module":
            _check_alike(small.get_submodule(str(one.target)), large.get_submodule(str(other.target)))
        elif one.op == "get_attr":
            whole = operator.attrgetter(str(other.target))(large)
            held = line.tensor(operator.attrgetter(str(one.target))(small), whole)
            if held is not whole:
                new.target = f"cut_{len(cut)}"
                cut[new.target] = held
        found = line.value((one.args, dict(one.kwargs)), (other.args, dict(other.kwargs)))
        new.args, new.kwargs = fx.node.map_arg(found, copies.__getitem__)
    root = nn.Module()
    for target in {str(node.target) for node in graph.nodes if node.op in {"call_module", "get_attr"}}:
        _put(root, target, cut[target] if target in cut else operator.attrgetter(target)(large))
    return fx.GraphModule(root, graph).eval()


@dataclass(frozen=True)
class _Line:
    """What has one value at ``low`` and another at ``high``, at ``size``. ``twins`` are nodes of both graphs."""

    low: int
    high: int
    size: int
    twins: Mapping[fx.Node, fx.Node]

    def value(self, one: Any, other: Any) -> Any:
        """Return an argument, with the nodes of the larger graph."""
        if isinstance(other, fx.Node):
            if not isinstance(one, fx.Node) or self.twins.get(one) is not other:
                raise NotDerivedError(f"{other.name} is read by another call")
            return other
        if type(one) is not type(other):
            raise NotDerivedError(f"{one!r} is {other!r}")
        if isinstance(other, slice):
            return slice(*(self.value(getattr(one, n), getattr(other, n)) for n in ("start", "stop", "step")))
        if isinstance(other, Mapping):
            if one.keys() != other.keys():
                raise NotDerivedError("the arguments are others")
            return {key: self.value(one[key], other[key]) for key in other}
        if isinstance(other, tuple | list):
            if len(one) != len(other):
                raise NotDerivedError("the arguments are others")
            return type(other)([self.value(a, b) for a, b in zip(one, other, strict=True)])
        if isinstance(other, int) and not isinstance(other, bool):
            return self.number(one, other)
        if one != other:
            raise NotDerivedError(f"{one!r} is {other!r}")
        return other

    def number(self, one: int, other: int) -> int:
        """Return a whole number on the line."""
        step, rest = divmod((other - one) * (self.size - self.low), self.high - self.low)
        if rest:
            raise NotDerivedError(f"{one} and {other} are on no line of whole numbers")
        return one + step

    def tensor(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return a constant: the same one, or the beginning of the larger graph's."""
        if one.shape == other.shape:
            return other  # weights that were corrected may differ
        if one.ndim != other.ndim:
            raise NotDerivedError("a constant has other dimensions")
        begin = other[tuple(slice(size) for size in one.shape)]
        if begin.shape != one.shape or not torch.equal(begin, one):
            raise NotDerivedError("a constant is no beginning of the larger one")
        return other[tuple(slice(self.number(*pair)) for pair in zip(one.shape, other.shape, strict=True))].contiguous()


def _check_alike(one: nn.Module, other: nn.Module) -> None:
    """Raise NotDerivedError for modules whose settings differ; weights may."""
    inner, outer = list(one.modules()), list(other.modules())
    if [type(each) for each in inner] != [type(each) for each in outer]:
        raise NotDerivedError("a layer is another one")
    for first, second in zip(inner, outer, strict=True):
        if _settings(first) != _settings(second):
            raise NotDerivedError(f"a {type(second).__name__} has other settings")


def _settings(module: nn.Module) -> dict[str, Any]:
    shapes = {name: tuple(each.shape) for name, each in module.named_parameters(recurse=False)}
    return shapes | {name: each for name, each in vars(module).items() if isinstance(each, _PLAIN)}


def _put(root: nn.Module, target: str, value: Any) -> None:
    """Put a module or a constant at a dotted place, as it is."""
    *path, name = target.split(".")
    for each in path:
        if not isinstance(getattr(root, each, None), nn.Module):
            root.add_module(each, nn.Module())
        root = getattr(root, each)
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    else:
        root.register_buffer(name, value)
