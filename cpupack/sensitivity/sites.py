"""The layers that INT8 would round: weighted modules and operators whose result has a range of its own."""

from __future__ import annotations

import operator
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.fused import CONVS, TRANSPOSED_CONVS
from cpupack.graph.names import core, kind_of, scoped_name
from cpupack.sensitivity.rounding import round_weight

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_OWN_RANGE = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.ELU,
    nn.GELU,
    nn.GroupNorm,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softmax,
    nn.Tanh,
)
_WEIGHTED_FUNCTIONS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_FUNCTIONS: tuple[Any, ...] = (
    *_WEIGHTED_FUNCTIONS,
    *(operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub),
    *(operator.mul, operator.imul, torch.mul, operator.matmul, torch.matmul, torch.bmm, torch.cat),
    *(F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.layer_norm, F.leaky_relu, F.silu, F.softmax),
    *(torch.sigmoid, torch.softmax, torch.tanh, F.scaled_dot_product_attention),
)


@dataclass(frozen=True)
class Site:
    """One layer of a graph: ``node`` computes it, ``last`` is the ReLU that INT8 runs with it, or ``node`` itself.

    ``name`` is the module's path; where a function is called, that of the module that calls it and the node's name.
    """

    node: fx.Node
    last: fx.Node
    name: str
    kind: str
    skip: str | None
    weights: tuple[tuple[torch.Tensor, int | None], ...]


def find_sites(graph: fx.GraphModule, calibrated: Container[str]) -> list[Site]:
    """Return the layers of a fused FP32 graph in the order they run.

    ``calibrated`` are the names of the tensors that calibration saw; what gives none of them is no layer.
    """
    sites = []
    site: tuple[str, str, str | None, tuple[tuple[torch.Tensor, int | None], ...]]
    for node in graph.graph.nodes:
        last = node
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if not (weights_of(module) or isinstance(core(module), _OWN_RANGE)):
                continue
            site = (str(node.target), kind_of(module), str(node.target), tuple(weights_of(module).values()))
        elif node.op == "call_function" and node.target in _FUNCTIONS:
            kind = getattr(node.target, "__name__", str(node.target)).strip("_")
            relu = _only_relu(graph, node)
            if relu is not None:
                last, kind = relu, f"{kind}+ReLU"
            site = (scoped_name(node), kind, None, _function_weights(graph, node))
        else:
            continue
        if last.name in calibrated:
            sites.append(Site(node, last, *site))
    return sites


def weights_of(module: nn.Module) -> dict[str, tuple[torch.Tensor, int | None]]:
    """Return each weight that INT8 rounds, by its parameter name, with the axis that has a scale for each channel.

    Transposed convolutions and recurrent layers have one scale for all channels.
    """
    inner = core(module)
    prefix = "0." if inner is not module else ""
    if type(inner) in (*CONVS, nn.Linear):
        return {f"{prefix}weight": (inner.weight.detach(), 0)}  # type: ignore[operator]  # a Parameter in all of them
    if type(inner) in TRANSPOSED_CONVS:
        return {f"{prefix}weight": (inner.weight.detach(), None)}  # type: ignore[operator]  # as above
    if type(inner) in RECURRENT:
        return {name: (value.detach(), None) for name, value in inner.named_parameters() if name.startswith("weight_")}
    return {}


def rounded_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what INT8 makes of a module's weights, by parameter name."""
    return {name: round_weight(weight, axis) for name, (weight, axis) in weights_of(module).items()}


def is_weight(node: fx.Node, argument: fx.Node) -> bool:
    """Whether ``argument`` is the weight of the function that ``node`` calls."""
    return node.target in _WEIGHTED_FUNCTIONS and len(node.args) > 1 and node.args[1] is argument


def _function_weights(graph: fx.GraphModule, node: fx.Node) -> tuple[tuple[torch.Tensor, int | None], ...]:
    weight = node.args[1] if len(node.args) > 1 else None
    if isinstance(weight, fx.Node) and is_weight(node, weight) and weight.op == "get_attr":
        value = operator.attrgetter(str(weight.target))(graph)
        return ((value.detach(), 0),)
    return ()


def _only_relu(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the ReLU that alone reads ``node``: engines run it in the same operator, in one range."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    if reader.op == "call_module":
        return reader if type(graph.get_submodule(str(reader.target))) is nn.ReLU else None
    return reader if reader.target in {F.relu, torch.relu, "relu", "relu_"} else None
