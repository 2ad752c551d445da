"""Products of batches with their heads in front, beside a constant that has one matrix for each head."""

from __future__ import annotations

import torch
from torch import fx

from cpupack.stages.capture.rewrites.tools import constant_of, new_call, new_constant, replace, shape


def part_heads(graph: fx.GraphModule) -> bool:
    """Have a product with a constant for each head read batch and heads apart.

    DeBERTa multiplies ``(batch x heads, tokens, channels)`` by ``table.repeat(batch, 1, 1)``. An engine that computes
    sample by sample can read ``(batch, heads, tokens, channels)`` beside ``(1, heads, ...)``.
    """
    changed = False
    for node in list(graph.graph.nodes):
        if node.target is not torch.matmul or len(shape(node)) != 3:
            continue
        for place in (0, 1):
            other, repeated = node.args[1 - place], node.args[place]
            found = _repeated(graph, repeated)
            if found is None or not isinstance(other, fx.Node) or other.op == "get_attr":
                continue
            source, table = found
            heads = len(table)
            if len(shape(other)) != 3 or shape(other)[0] != shape(repeated)[0]:
                continue
            samples = shape(other)[0] // heads
            rows = shape(other)[1:]
            apart = new_call(graph, torch.reshape, (other, (-1, heads, *rows)), node, "", (samples, heads, *rows))
            constant = new_constant(graph, table.unsqueeze(0).contiguous(), source, node)
            operands = (constant, apart) if place == 0 else (apart, constant)
            product = new_call(graph, torch.matmul, operands, node, "", (samples, heads, *shape(node)[1:]))
            replace(node, new_call(graph, torch.reshape, (product, (-1, *shape(node)[1:])), node))
            changed = True
            break
    return changed


def _repeated(graph: fx.GraphModule, node: object) -> tuple[fx.Node, torch.Tensor] | None:
    """Return a constant with a matrix for each head that is repeated for each sample, and its value as ``node`` is."""
    turned = False
    while isinstance(node, fx.Node) and node.target is torch.permute:
        order = tuple(node.args[1])  # type: ignore[arg-type]  # numbers
        if order != (0, 2, 1):
            return None
        node, turned = node.args[0], not turned
    if not isinstance(node, fx.Node) or node.target is not torch.ops.aten.repeat.default:
        return None
    source, times = node.args[0], list(node.args[1])  # type: ignore[arg-type]  # a list
    value = constant_of(graph, source)
    if value is None or value.ndim != 3 or len(value) < 2 or times[1:] != [1, 1] or not isinstance(times[0], fx.Node):
        return None
    assert isinstance(source, fx.Node)
    return source, value.transpose(1, 2) if turned else value
