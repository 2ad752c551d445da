"""Layers of images that run over the frames of videos, as layers of three dimensions; of signals, as of two.

A network may put the frames of a video in its batch: ``(batch * frames, channels, height, width)``. The engine's values
are those of a sample. So a layer of two dimensions becomes one of three, whose windows are one frame deep. It reads and
gives ``(batch, channels, frames, height, width)``; ``turned`` is what brings that to the order that the others have,
``(batch, frames, channels, height, width)``. So it is with the letters of words, ``(batch * words, channels, places)``.
What only moves values between two such layers is taken out again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.fused import ConvReLU6, with_relu
from cpupack.graph.names import core
from cpupack.graph.vocabulary import ACTIVATIONS, POINTWISE
from cpupack.stages.quantize.native.rearrangement import turn_around

_TURN = "turn_frames"
_ALIKE = (torch.add, torch.sub, torch.mul)


_CONVS: dict[Any, Any] = {nn.Conv1d: nn.Conv2d, nn.Conv2d: nn.Conv3d}
_TRANSPOSED: dict[Any, Any] = {nn.ConvTranspose1d: nn.ConvTranspose2d, nn.ConvTranspose2d: nn.ConvTranspose3d}
_MAX_POOLS: dict[Any, Any] = {nn.MaxPool1d: nn.MaxPool2d, nn.MaxPool2d: nn.MaxPool3d}
_AVERAGE_POOLS: dict[Any, Any] = {nn.AvgPool1d: nn.AvgPool2d, nn.AvgPool2d: nn.AvgPool3d}
_ADAPTIVE_POOLS: dict[Any, Any] = {
    nn.AdaptiveAvgPool1d: nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d: nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool2d: nn.AdaptiveMaxPool3d,
}  # fmt: skip
_ONE_DIMENSION = (
    nn.Conv1d, nn.ConvTranspose1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d
)  # fmt: skip


def over_frames(module: nn.Module) -> nn.Module | None:
    """Return a layer of images or signals as one of videos or images, None where it is no such layer."""
    layer: Any = core(module)
    kind, flat = type(layer), 1 if isinstance(layer, _ONE_DIMENSION) else 2

    def deep(setting: Any, other: int) -> tuple[int, ...]:
        return other, *(setting if isinstance(setting, list | tuple) else (setting,) * flat)

    found: nn.Module
    if kind in _CONVS:
        found = _with_weights(layer, _CONVS[kind](
            layer.in_channels, layer.out_channels, deep(layer.kernel_size, 1), deep(layer.stride, 1),
            deep(layer.padding, 0), deep(layer.dilation, 1), layer.groups, layer.bias is not None,
        ))  # fmt: skip
    elif kind in _TRANSPOSED:
        found = _with_weights(layer, _TRANSPOSED[kind](
            layer.in_channels, layer.out_channels, deep(layer.kernel_size, 1), deep(layer.stride, 1),
            deep(layer.padding, 0), deep(layer.output_padding, 0), layer.groups, layer.bias is not None,
            deep(layer.dilation, 1),
        ))  # fmt: skip
    elif kind in _MAX_POOLS:
        found = _MAX_POOLS[kind](
            deep(layer.kernel_size, 1), deep(layer.stride, 1), deep(layer.padding, 0), deep(layer.dilation, 1),
            layer.return_indices, layer.ceil_mode,
        )  # fmt: skip
    elif kind in _AVERAGE_POOLS:
        found = _AVERAGE_POOLS[kind](
            deep(layer.kernel_size, 1), deep(layer.stride, 1), deep(layer.padding, 0), layer.ceil_mode,
            layer.count_include_pad, None if flat == 1 else layer.divisor_override,
        )  # fmt: skip
    elif kind in _ADAPTIVE_POOLS:
        size = layer.output_size
        rest = size if isinstance(size, list | tuple) else (size,) * flat
        found = _ADAPTIVE_POOLS[kind]((None, *rest))  # None: as many frames as there are
    else:
        return None
    if module is not layer:
        kinds = [type(each) for each in list(module)[1:]] if isinstance(module, nn.Sequential) else []
        if type(found) not in _CONVS.values() or kinds not in ([nn.ReLU], [nn.ReLU6]):
            return None
        found = with_relu(found) if kinds == [nn.ReLU] else ConvReLU6(found, nn.ReLU6())
    return found.eval()


def _with_weights(layer: Any, found: Any) -> nn.Module:
    found.weight = nn.Parameter(layer.weight.detach()[:, :, None], requires_grad=False)
    if layer.bias is not None:
        found.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    module: nn.Module = found
    return module


def run_over_frames(graph: fx.GraphModule, node: fx.Node, layer: nn.Module) -> fx.Node:
    """Have a call run ``layer`` on videos, whose frames it has before the channels; return what gives its result."""
    name = f"{node.name}_over_frames"
    graph.add_submodule(name, layer)
    _, back = turn_around(graph, node, _TURN)
    node.target = name
    return back


def join_turns(graph: fx.GraphModule) -> None:
    """Take out pairs of turns, in place, also where calls on one value, or on two that are turned alike, are between.

    Those calls then see the videos as the layers do, and keep their names.
    """
    if not hasattr(graph, _TURN):
        return
    for node in list(graph.graph.nodes):
        if _is_turn(node) and _is_turn(node.all_input_nodes[0]):
            node.replace_all_uses_with(node.all_input_nodes[0].all_input_nodes[0])
        elif node.all_input_nodes and all(map(_is_turn, node.all_input_nodes)) and _is_by_value(graph, node):
            for each in dict.fromkeys(node.all_input_nodes):
                node.replace_input_with(each, each.all_input_nodes[0])
            with graph.graph.inserting_after(node):
                back = graph.graph.call_module(_TURN, (node,))
            node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
            back.meta = {key: value for key, value in node.meta.items() if key != "shape"}
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _is_turn(node: fx.Node) -> bool:
    return node.op == "call_module" and node.target == _TURN


def _is_by_value(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        slopes = isinstance(module, nn.PReLU) and module.num_parameters > 1
        return type(module) in ACTIVATIONS and not slopes
    alike = node.target in _ALIKE and all(isinstance(each, fx.Node) for each in node.args[:2])
    return node.op == "call_function" and (node.target in POINTWISE or alike)
