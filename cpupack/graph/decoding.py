"""Calls after the last layers that give numbers another meaning: boxes of offsets, a map's places, rates of logarithms.

A detector's head is the common case. Its layers give offsets and scores; sigmoids, grids and anchors make boxes in
pixels of them, and one tensor has the boxes beside the scores. In one range of INT8 codes, the step is the image's
width by 255: boxes are off by pixels, and every score is rounded to 0. These calls are few and cheap, so they stay
FP32, and so does what they read of the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.vocabulary import (
    ARITHMETIC,
    BATCH_NORMS,
    CONVOLUTIONS,
    NORMALIZATIONS,
    SHAPES,
    SOFTMAXES,
    TRANSPOSED_CONVOLUTIONS,
)

_UNLIKE = 4.0
"""Parts whose largest values differ by this factor share no range: the smaller one would have 6 bits or fewer."""
_ATEN = torch.ops.aten
_OVERWRITES = (_ATEN.slice_scatter.default, _ATEN.select_scatter.default, _ATEN.copy.default)
_EXPONENTIALS = (torch.exp, _ATEN.exp2.default, _ATEN.expm1.default, _ATEN.sinh.default, _ATEN.cosh.default)
_LAYERS = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear, *NORMALIZATIONS, Recurrent)
_WORK = (torch.matmul, F.scaled_dot_product_attention)

Magnitude = Callable[[fx.Node], float | None]
"""The largest absolute value that a call gave while it was calibrated, None where that is unknown."""


def decoding_calls(graph: fx.GraphModule, magnitude: Magnitude) -> set[fx.Node]:
    """Return the calls after the last layers from which a decoded value comes, and those that come from one.

    Decoded is what joins parts of unlike ranges, what adds or multiplies constants that differ from place to place or
    give channels unlike ranges, and an exponential. A model that only scales, sums or resizes its maps decodes nothing.
    A map that is resized before it is decoded has codes of its own range, and many values: that work stays INT8.
    """
    after = _after_layers(graph)
    found = {node for node in after if _decodes(graph, node, magnitude)}
    pending = list(found)
    while pending:
        node = pending.pop()
        before = [each for each in node.all_input_nodes if each.target is not F.interpolate]
        for each in (*before, *node.users):
            if each in after and each not in found:
                found.add(each)
                pending.append(each)
    return found


def _after_layers(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the calls whose result reaches no layer."""
    found: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if not node.op.startswith("call") or _is_layer(graph, node):
            continue
        if all(each.op == "output" or each in found for each in node.users):
            found.add(node)
    return found


def _is_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return node.target in _WORK
    module = core(graph.get_submodule(str(node.target)))
    return isinstance(module, _LAYERS) and not _is_expectation(graph, node, module)


def _is_expectation(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> bool:
    """Whether a layer is a mean over a distribution: it makes one number of the results of a softmax."""
    outputs = getattr(module, "out_channels", getattr(module, "out_features", 0))
    if outputs != 1 or isinstance(module, TRANSPOSED_CONVOLUTIONS):
        return False
    if isinstance(module, CONVOLUTIONS) and any(each != 1 for each in module.kernel_size):
        return False
    source: Any = node.args[0]
    while isinstance(source, fx.Node) and source.target in SHAPES:
        source = source.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return False
    return isinstance(graph.get_submodule(str(source.target)), SOFTMAXES)


def _decodes(graph: fx.GraphModule, node: fx.Node, magnitude: Magnitude) -> bool:
    if node.target is torch.cat or node.target in _OVERWRITES:
        parts = node.args[0] if node.target is torch.cat else node.args[:2]
        assert isinstance(parts, list | tuple)
        sizes = [each for each in (_size(graph, part, magnitude) for part in parts) if each]
        return bool(sizes) and max(sizes) >= _UNLIKE * min(sizes)
    if node.target in ARITHMETIC:
        by_place = any(_differs_by_place(graph, each, len(node.meta["shape"])) for each in node.args)
        return by_place or _parts_channels(graph, node, magnitude)
    if node.op == "call_module":
        norm = graph.get_submodule(str(node.target))
        return isinstance(norm, BATCH_NORMS) and _norm_parts_channels(norm, magnitude(node.all_input_nodes[0]))
    return node.target in _EXPONENTIALS


def _parts_channels(graph: fx.GraphModule, node: fx.Node, magnitude: Magnitude) -> bool:
    """Whether a constant operand gives channels unlike ranges."""
    for each, other in (node.args, reversed(node.args)):
        held = _held(graph, each)
        if held is None:
            continue
        if node.target in {torch.mul, torch.div}:
            return _are_unlike(held)
        return _is_wide(held, magnitude(other) if isinstance(other, fx.Node) else None)
    return False


def _norm_parts_channels(norm: nn.Module, largest: float | None) -> bool:
    """Whether a norm, as which capture also writes factors and terms of channels, gives them unlike ranges."""
    assert isinstance(norm, BATCH_NORMS)
    if norm.running_mean is None or norm.running_var is None:
        return False
    factors = torch.rsqrt(norm.running_var + norm.eps) * (1.0 if norm.weight is None else norm.weight)
    terms = (0.0 if norm.bias is None else norm.bias) - norm.running_mean * factors
    return _are_unlike(factors) or _is_wide(terms, largest and largest * float(factors.abs().max()))


def _are_unlike(factors: torch.Tensor) -> bool:
    """Whether channels that are multiplied by these share no range."""
    sizes = factors.abs()[factors != 0]
    return bool(sizes.numel()) and float(sizes.max()) >= _UNLIKE * float(sizes.min())


def _is_wide(terms: torch.Tensor, largest: float | None) -> bool:
    """Whether values up to ``largest`` share no range after these terms were added to their channels."""
    return bool(largest) and terms.numel() > 1 and float(terms.max() - terms.min()) >= _UNLIKE * float(largest or 0.0)


def _size(graph: fx.GraphModule, part: object, magnitude: Magnitude) -> float | None:
    if not isinstance(part, fx.Node):
        return None
    held = _held(graph, part)
    if held is None:
        return magnitude(part)
    return float(held.abs().max()) if held.numel() else None


def _differs_by_place(graph: fx.GraphModule, operand: object, dimensions: int) -> bool:
    """Whether an operand of a result of so many dimensions is a constant that varies along another one than 1."""
    held = _held(graph, operand)
    if held is None:
        return False
    channels = held.ndim - dimensions + 1
    return any(bool((held != held.narrow(axis, 0, 1)).any()) for axis in range(held.ndim) if axis != channels)


def _held(graph: fx.GraphModule, operand: object) -> torch.Tensor | None:
    """Return the constant that an operand reads, None for anything else."""
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        return None
    held: Any = graph
    for name in str(operand.target).split("."):
        held = getattr(held, name)
    return held if isinstance(held, torch.Tensor) else None
