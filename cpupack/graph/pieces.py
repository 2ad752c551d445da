"""Products of functions of one value, of which there are several for each value: the pieces of splines.

A basis of splines (as in Kolmogorov-Arnold networks) is made of ramps, ``(x - knots) / width``, that truth values or
other ramps hide wherever they are not between 0 and 1. A ramp's INT8 range is that of the values that are hidden: 20
steps are left for what counts, and the next order multiplies that error by another ramp. All of this is arithmetic that
costs little beside the layer that reads it, so it stays FP32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.vocabulary import ARITHMETIC, POINTWISE, SHAPES, UNFOLD

_ATEN = torch.ops.aten
_COMPARISONS = tuple(
    getattr(getattr(_ATEN, name), kind) for name in ("ge", "gt", "le", "lt") for kind in ("Tensor", "Scalar")
)
_TRUTHS = (_ATEN.__and__.Tensor, _ATEN.logical_and.default, _ATEN.bitwise_and.Tensor, _ATEN.to.dtype)
_MOVES = tuple(each for each in SHAPES if each not in (UNFOLD, F.pixel_shuffle, F.pixel_unshuffle))
_OF_ONE_VALUE = (*ARITHMETIC, *POINTWISE, *_MOVES, *_COMPARISONS, *_TRUTHS, torch.cat)


def pieces(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the products of several functions of each value, and all that comes from them or goes into them.

    Both factors are functions of one call's result, and there are more products than values. So a gate is none
    (``x * sigmoid(x)``, one half times the other).
    """
    sources: dict[fx.Node, fx.Node] = {}
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        sources[node] = _source(graph, node, sources)
        if node.target is torch.mul and _is_piece(node, sources):
            found.add(node)
    pending = list(found)
    while pending:
        node = pending.pop()
        for each in (*node.all_input_nodes, *node.users):
            if each not in found and each.op.startswith("call") and sources[each] is sources[node] is not each:
                found.add(each)
                pending.append(each)
    return found


def _source(graph: fx.GraphModule, node: fx.Node, sources: dict[fx.Node, fx.Node]) -> fx.Node:
    """Return the call whose result alone a node is a function of: the node itself where there is no other."""
    read = {sources[each] for each in node.all_input_nodes if each.op != "get_attr"}
    if node.target not in _OF_ONE_VALUE and not _is_relu(graph, node):
        return node
    return read.pop() if len(read) == 1 else node


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(core(graph.get_submodule(str(node.target))), nn.ReLU)


def _is_piece(node: fx.Node, sources: dict[fx.Node, fx.Node]) -> bool:
    one, two = node.args
    if not isinstance(one, fx.Node) or not isinstance(two, fx.Node) or one is two:
        return False
    if "get_attr" in (one.op, two.op) or sources[one] is not sources[two]:
        return False
    source = sources[node]
    return _moved(one) is not source and _moved(two) is not source and _count(node) > _count(source)


def _moved(node: fx.Node) -> fx.Node:
    """Return the call whose values a node has in other places."""
    while node.target in _MOVES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _count(node: fx.Node) -> int:
    shape: Any = node.meta.get("shape", ())
    return math.prod(shape[1:])
