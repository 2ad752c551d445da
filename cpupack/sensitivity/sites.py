"""Finds the layers that INT8 would round: modules with weights, and operators whose result has its own range."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.fused import CONVS, TRANSPOSED_CONVS
from cpupack.graph.names import core, kind_of, scoped_name
from cpupack.graph.recurrent import Recurrent, weights_of_recurrent
from cpupack.graph.vocabulary import ACTIVATIONS, ARITHMETIC, BATCH_NORMS, NORMALIZATIONS, SOFTMAXES
from cpupack.sensitivity.rounding import round_weight

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_OWN_RANGE = (
    *BATCH_NORMS,
    *NORMALIZATIONS,
    *SOFTMAXES,
    *(each for each in ACTIVATIONS if each not in {nn.ReLU, nn.ReLU6, nn.Hardtanh}),
)
_FUNCTIONS = (*ARITHMETIC, torch.matmul, torch.cat, F.scaled_dot_product_attention)


@dataclass(frozen=True)
class Site:
    """One layer of a graph. ``node`` computes it. ``last`` is the ReLU in the same INT8 operator, or ``node`` itself.

    ``name`` is the module's path. For a function call it is the path of the calling module and the node's name.
    """

    node: fx.Node
    last: fx.Node
    name: str
    kind: str
    skip: str | None
    weights: tuple[tuple[torch.Tensor, int | None], ...]


def find_sites(graph: fx.GraphModule, calibrated: Container[str]) -> list[Site]:
    """Return the layers of a fused FP32 graph in the order of execution.

    ``calibrated`` are the names of the tensors that calibration saw. A node without such a tensor is not a layer.
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
            kind = str(getattr(node.target, "__name__", node.target))
            relu = _only_relu(graph, node)
            if relu is not None:
                last, kind = relu, f"{kind}+ReLU"
            site = (scoped_name(node), kind, None, ())
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
    if isinstance(inner, Recurrent):
        return {name: (value, 0) for name, value in weights_of_recurrent(inner).items()}
    if type(inner) in RECURRENT:
        return {name: (value.detach(), None) for name, value in inner.named_parameters() if name.startswith("weight_")}
    return {}


def rounded_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's weights rounded to INT8, by parameter name."""
    return {name: round_weight(weight, axis) for name, (weight, axis) in weights_of(module).items()}


def _only_relu(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the ReLU that is the only reader of ``node``. Engines run both as one operator with one range."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    is_relu = reader.op == "call_module" and type(graph.get_submodule(str(reader.target))) is nn.ReLU
    return reader if is_relu else None
