"""Calls that read the size of the batch, in a form that ``torch.jit.trace`` keeps open.

An overload that is called as such (``torch.ops.aten.zeros.default``) takes a size as a plain number, so a trace holds
that of its example. Functions and methods whose arguments Python parses (``torch.zeros``) record where a size comes
from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

SIZE = torch.ops.aten.sym_size.int
COUNTED_RESULTS = {"split", "split_with_sizes", "chunk", "tensor_split", "unbind"}
"""Calls whose number of results a trace holds, whoever calls them."""


def open_sizes(module: nn.Module) -> None:
    """Change the calls in a module's graphs so that a trace of one batch gives the right answers for any other.

    No answer changes.
    """
    for each in module.modules():
        if isinstance(each, fx.GraphModule):
            changed = [node for node in _readers(each.graph) if _open(node)]
            if changed:
                each.recompile()


def _readers(graph: fx.Graph) -> list[fx.Node]:
    """Return the calls that take or give a number that is computed from a size."""
    numbers: set[fx.Node] = set()
    found = []
    for node in graph.nodes:
        sizes = [each for each in node.all_input_nodes if each in numbers]
        if (
            node.target is SIZE
            or (node.op == "call_method" and node.target in {"size", "numel"})
            or (sizes and len(sizes) == len(node.all_input_nodes) and _is_arithmetic(node))
        ):
            numbers.add(node)
        if sizes or node.target is SIZE:
            found.append(node)
    return found


def _is_arithmetic(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__module__", "") in {"_operator", "math"}


def _open(node: fx.Node) -> bool:
    """Have a node call a function or a method; return False where it does already, or where there is none."""
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    name = target._schema.name.removeprefix("aten::")
    if target is SIZE:
        node.op, node.target = "call_method", "size"
        return True
    function: Callable[..., Any] | None = take_slice if name == "slice" else getattr(torch, name, None)
    if function is not None:
        node.target = function
        return True
    if node.args and target._schema.arguments[0].name == "self" and hasattr(torch.Tensor, name):
        node.op, node.target = "call_method", name
        return True
    return False


def take_slice(
    self: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> torch.Tensor:
    """Return a slice of one dimension, as ``aten::slice`` does, for which torch has no function."""
    return self[(slice(None),) * (dim % self.ndim) + (slice(start, end, step),)]
