"""Brings attention that a model writes out into one order of calls, before it is lowered.

Models scale queries or keys, or the scores; they compute the values before the scores or after them. Here the scores
are scaled, and the values come first, so that one layer can take all (``attention.py``).
"""

from __future__ import annotations

import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.vocabulary import SHAPES
from cpupack.stages.quantize.native.batches import scale_channels, scales_channels
from cpupack.stages.quantize.native.rearrangement import Rearrangement

_ATEN = torch.ops.aten
_CHANGES = (
    torch.mul, torch.add, _ATEN.masked_fill.Scalar, _ATEN.masked_fill.Tensor, _ATEN.where.ScalarOther, _ATEN.where.self,
)  # fmt: skip


def order_attention(graph: fx.GraphModule) -> None:
    """Rewrite a captured graph in place. What it computes stays the same but for the rounding of scaled scores."""
    for product in list(graph.graph.nodes):
        if product.target is not torch.matmul:
            continue
        softmax = _softmax_of(graph, product)
        if softmax is None:
            continue
        for place, operand in enumerate(product.args[:2]):
            if isinstance(operand, fx.Node):
                _scale_scores(graph, product, place, operand)
        _scale_queries(graph, product)
        blend = _only_user(_past_shapes(graph, softmax))
        if blend is not None and blend.target is torch.matmul and isinstance(blend.args[1], fx.Node):
            _bring_forward(product, blend.args[1])
    graph.graph.lint()
    graph.recompile()


def _softmax_of(graph: fx.GraphModule, product: fx.Node) -> fx.Node | None:
    """Return the softmax of a product: between them are sums, scales and other shapes alone.

    A factor for each head, which capture takes for a BatchNorm, becomes a product again.
    """
    node, norms = _only_user(product), []
    while node is not None:
        if scales_channels(graph, node):
            norms.append(node)
        elif not _only_shapes(graph, node) and node.target not in _CHANGES:
            break
        node = _only_user(node)
    if node is None or not _is_a(graph, node, nn.Softmax):
        return None
    for norm in norms:
        scale_channels(graph, norm)
    return node


def _past_shapes(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    user = _only_user(node)
    while user is not None and _only_shapes(graph, user):
        node, user = user, _only_user(user)
    return node


def _scale_scores(graph: fx.GraphModule, product: fx.Node, place: int, operand: fx.Node) -> None:
    """Multiply the product with a number instead of one of its operands."""
    last, node = product, operand
    while _only_shapes(graph, node) and len(node.users) == 1 and isinstance(node.args[0], fx.Node):
        last, node = node, node.args[0]
    if node.target is not torch.mul or len(node.users) != 1 or node.kwargs or len(node.args) != 2:
        return
    source, factor = node.args
    if not isinstance(source, fx.Node) or source.op == "get_attr" or not isinstance(factor, int | float):
        return
    last.args = (
        (source, *last.args[1:]) if last is not product else tuple(source if at == place else each
                                                                   for at, each in enumerate(product.args))
    )  # fmt: skip
    product.append(node)
    product.replace_all_uses_with(node)
    node.args = (product, factor)


def _scale_queries(graph: fx.GraphModule, product: fx.Node) -> None:
    """Multiply the queries of each head with a factor of its own instead of the scores."""
    scaled = _only_user(product)
    if scaled is None or scaled.target is not torch.mul or scaled.kwargs or scaled.args[0] is not product:
        return
    factors = scaled.args[1]
    constant = (
        getattr(graph, str(factors.target)) if isinstance(factors, fx.Node) and factors.op == "get_attr" else None
    )
    if constant is None or constant.ndim < 2 or tuple(constant.shape[-2:]) != (1, 1):
        return
    assert isinstance(factors, fx.Node)
    if list(product.graph.nodes).index(factors) > list(product.graph.nodes).index(product):
        product.prepend(factors)
    scaled.replace_all_uses_with(product)
    product.prepend(scaled)
    scaled.args = (product.args[0], factors)
    product.args = (scaled, *product.args[1:])


def _bring_forward(product: fx.Node, values: fx.Node) -> None:
    """Move what computes ``values`` before ``product``, unless it depends on that."""
    place = {node: number for number, node in enumerate(product.graph.nodes)}
    late, pending = set[fx.Node](), [values]
    while pending:
        node = pending.pop()
        if node is product:
            return
        if place[node] > place[product] and node not in late:
            late.add(node)
            pending += node.all_input_nodes
    for node in sorted(late, key=place.__getitem__):
        product.prepend(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _only_shapes(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), Rearrangement)
    return node.op == "call_function" and node.target in SHAPES and len(node.all_input_nodes) == 1


def _is_a(graph: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(core(graph.get_submodule(str(node.target))), kind)
