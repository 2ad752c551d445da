"""Constants beside tensors that have the batch elsewhere than in front: they turn with these."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten
_NUMBERS: dict[Any, float] = {_ATEN.zeros.default: 0.0, _ATEN.ones.default: 1.0}
"""What fills a tensor of given sizes, and with which number: ``outputs = torch.zeros(steps, batch, classes)``."""
_LAYOUTS = (_ATEN.expand.default, _ATEN.repeat.default, "expand", "repeat")
FILLS = (_ATEN.zeros_like.default, _ATEN.ones_like.default, _ATEN.full_like.default, torch.full_like)
"""What fills a tensor like another one with a number."""


def turned(constant: torch.Tensor, rank: int, axis: int, indices: int) -> torch.Tensor | None:
    """Return a constant as a tensor of ``rank`` dimensions with the batch in front reads it.

    Before, the batch is dimension ``axis``, with ``indices`` for each sample. None for a constant that varies along it.
    """
    wide = constant.reshape(*[1] * (rank - constant.ndim), *constant.shape)
    if wide.shape[axis] != 1:
        return None
    front = wide.movedim(axis, 0)
    return front.unsqueeze(1) if indices > 1 else front


def turn_constants(graph: fx.GraphModule, node: fx.Node, constants: dict[fx.Node, torch.Tensor]) -> None:
    """Have a call read these constants in place of those that it reads, in place."""
    found = {each: _held(graph, node, number, value) for number, (each, value) in enumerate(constants.items())}
    node.args = fx.node.map_arg(node.args, lambda each: found.get(each, each))


def _fill_in_front(graph: fx.GraphModule, node: fx.Node, axis: int) -> bool:
    sizes: Any = list(node.args[0]) if isinstance(node.args[0], list | tuple) else []
    numbers = [place for place, each in enumerate(sizes) if not isinstance(each, int)]
    if axis == 0 or numbers != [axis] or node.kwargs.get("dtype") not in (None, torch.float32):
        return False
    batch = sizes.pop(axis)
    held = _held(graph, node, 0, torch.full((1, *sizes), _NUMBERS[node.target]))
    node.op, node.target, node.args, node.kwargs = "call_method", "expand", (held, batch, *sizes), {}
    return True


def lay_out_in_front(graph: fx.GraphModule, node: fx.Node, axis: int) -> bool:
    """Have a call that lays a constant out for the batch, as dimension ``axis``, lay it out in front; False if it is
    another call."""
    if node.target in _NUMBERS:
        return _fill_in_front(graph, node, axis)
    if node.target not in _LAYOUTS or node.kwargs or axis == 0:
        return False
    constant, *sizes = node.args
    sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
    if not isinstance(constant, fx.Node) or constant.op != "get_attr":
        return False
    numbers = [each for each in sizes if not isinstance(each, int)]
    rank = len(sizes)
    if len(numbers) != 1 or sizes[axis] is not numbers[0] or not isinstance(numbers[0], fx.Node):
        return False
    value: Any = graph
    for name in str(constant.target).split("."):
        value = getattr(value, name)
    alone = [1 if each is numbers[0] else each for each in sizes]
    one = value.repeat(*alone) if "repeat" in str(node.target) else value.expand(*alone)
    if one.ndim != rank or one.shape[axis] != 1:
        return False  # a constant that is repeated as a whole
    front = one.movedim(axis, 0).contiguous()
    held = _held(graph, node, 0, front)
    node.op, node.target = "call_method", "expand"
    node.args = (held, numbers[0], *front.shape[1:])
    return True


def _held(graph: fx.GraphModule, node: fx.Node, number: int, value: torch.Tensor) -> fx.Node:
    name = f"{node.name}_turned_{number}"
    graph.register_buffer(name, value.detach().contiguous())
    with graph.graph.inserting_before(node):
        return graph.graph.get_attr(name)
