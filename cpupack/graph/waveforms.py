"""First convolutions of sound that a normalization follows: quiet sounds matter to it as much as loud ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.vocabulary import ACTIVATIONS, BATCH_NORMS, NORMALIZATIONS

_FEW = 16
"""A layer with so many times fewer products than all others takes little of the time, also in FP32."""
_WITH_WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.Linear)
_ALONG = (*ACTIVATIONS, *BATCH_NORMS)


def normalized_waveforms(graph: fx.GraphModule, moves: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Return the convolutions over one channel of an input, with few products, and what leads to a normalization.

    One range for all samples has few codes for a quiet one, and the normalization makes it as loud as the others, with
    its error. ``moves`` tells calls that give their operand's values in another order or shape. The nodes know their
    shapes (``Calls``).
    """
    products = {node: _products(graph, node) for node in graph.graph.nodes if node.op == "call_module"}
    total, found = sum(products.values()), list[fx.Node]()
    for node, own in products.items():
        layer = core(graph.get_submodule(str(node.target)))
        if not isinstance(layer, nn.Conv1d) or layer.in_channels != 1 or _FEW * own > total:
            continue
        source = node.all_input_nodes[0]
        while source.op.startswith("call") and moves(source):
            source = source.all_input_nodes[0]
        if source.op == "placeholder":
            found += _up_to_norm(graph, node)
    return found


def _up_to_norm(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return a call and the only readers that follow it up to a normalization; nothing where none follows."""
    chain = [node]
    while len(chain[-1].users) == 1:
        (reader,) = chain[-1].users
        if reader.op == "output" or len(reader.all_input_nodes) > 1:
            break
        layer = core(graph.get_submodule(str(reader.target))) if reader.op == "call_module" else None
        if isinstance(layer, NORMALIZATIONS):
            return chain
        if layer is not None and list(layer.parameters()) and not isinstance(layer, _ALONG):
            break
        chain.append(reader)
    return []


def _products(graph: fx.GraphModule, node: fx.Node) -> int:
    layer = core(graph.get_submodule(str(node.target)))
    if not isinstance(layer, _WITH_WEIGHTS) or "shape" not in node.meta:
        return 0
    shape = tuple(node.meta["shape"])
    places = 1
    for size in shape[1:-1] if isinstance(layer, nn.Linear) else shape[2:]:
        places *= size
    return layer.weight.numel() * places
