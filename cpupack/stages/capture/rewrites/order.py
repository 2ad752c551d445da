"""Functions of one value come before what only moves values: they become part of the layer that computes the values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.vocabulary import ACTIVATIONS
from cpupack.stages.capture.rewrites.tools import is_a, module_of, only_reader, shape

_MOVES: tuple[Any, ...] = (torch.reshape, torch.permute, torch.flatten)
_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip


def compute_before_moves(graph: fx.GraphModule) -> bool:
    """Have an activation come right after a layer whose result is reshaped or permuted before the activation."""
    changed = False
    for node in list(graph.graph.nodes):
        if not _is_function_of_one_value(graph, node):
            continue
        moves: list[fx.Node] = []
        source = node.args[0]
        while isinstance(source, fx.Node) and source.target in _MOVES and only_reader(source) is not None:
            moves.append(source)
            source = source.args[0]
        if not moves or not is_a(graph, source, *_LAYERS) or only_reader(source) is not moves[-1]:
            continue
        last, first = moves[0], moves[-1]
        node.replace_all_uses_with(last)
        node.args = (source,)
        node.meta["shape"] = shape(source)
        source.append(node)
        first.replace_input_with(source, node)
        changed = True
    return changed


def _is_function_of_one_value(graph: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(graph, node)
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1
    return type(module) in ACTIVATIONS
