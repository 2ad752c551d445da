"""Angles: what goes through a sine or a cosine several times around must not be rounded to 8 bits on the way.

The step of an embedding of time is 4 when its times go up to 1000, and a turn is 6.3: the sine of such codes is noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from cpupack.graph.names import core
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.vocabulary import CONVOLUTIONS, NORMALIZATIONS, TRANSPOSED_CONVOLUTIONS

_ATEN = torch.ops.aten
PERIODIC = (_ATEN.sin.default, _ATEN.cos.default, _ATEN.tan.default, _ATEN.remainder.Scalar, _ATEN.frac.default)
_ROUGH = 4.0
"""Angles up to here have 80 codes for a half turn and more: the sine of a code is off by 0.01."""
_FINE = 8.0
"""A layer that gives larger angles multiplies the rounding of its input and of its weights to as much."""
_LAYERS = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, torch.nn.Linear, *NORMALIZATIONS, Recurrent, torch.nn.Embedding)


def large_angles(graph: fx.GraphModule, magnitude: Callable[[fx.Node], float | None]) -> set[fx.Node]:
    """Return the sines of large angles and the calls between them and the layers before; at ``_FINE``, the layers too.

    ``magnitude`` tells the largest absolute value that a call gave while it was calibrated, None where it is unknown.
    """
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.target not in PERIODIC:
            continue
        (angle,) = (each for each in node.all_input_nodes if each.op != "get_attr")
        largest = magnitude(angle) or 0.0
        if largest > _ROUGH:
            found |= {node, *calls_before(graph, angle, layers=1 if largest > _FINE else 0)}
    return found


def calls_before(graph: fx.GraphModule, node: fx.Node, layers: int) -> set[fx.Node]:
    """Return the calls that a value is computed by, back past as many layers as ``layers`` and to the ones before."""
    left: dict[fx.Node, int] = {}  # layers that may still be passed on the way from a call
    pending = [(node, layers)]
    while pending:
        each, rest = pending.pop()
        if not each.op.startswith("call") or rest <= left.get(each, -1):
            continue
        before = rest - _is_layer(graph, each)
        if before < 0:
            continue
        left[each] = rest
        pending += [(source, before) for source in each.all_input_nodes]
    return set(left)


def _is_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(core(graph.get_submodule(str(node.target))), _LAYERS)
