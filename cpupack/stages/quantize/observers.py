"""Gives the observers in torch's prepared graph the ranges that the recipe's observer chooses."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.ao.quantization.observer import FixedQParamsObserver

from cpupack.artifacts import CalibratedModel
from cpupack.errors import QuantizationError
from cpupack.graph.vocabulary import NORMALIZATIONS
from cpupack.recipe import Quantize
from cpupack.stages.quantize.qconfig import FIXED_RANGES, StatsObserver
from cpupack.stages.quantize.ranges import choose_range

STATS_NAME = "cpupack_stats"
"""The key in a node's ``meta`` for the name of its statistics."""


def read_through_observers(prepared: fx.GraphModule) -> None:
    """Have every reader of a norm read it through its observer, in place.

    Where torch lets one of them read it as it is (two norms in a row), its lowering hands INT8 to a reader of FP32.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in prepared.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], NORMALIZATIONS):
            continue
        observers = [
            each
            for each in node.users
            if each.op == "call_module" and isinstance(modules[str(each.target)], StatsObserver)
        ]
        for reader in list(node.users):
            if observers and reader not in observers:
                reader.replace_input_with(node, observers[0])
                node.append(observers[0])
    prepared.graph.lint()
    prepared.recompile()


def _has_fixed_range(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], FIXED_RANGES)


def set_ranges(
    prepared: nn.Module, graph: fx.GraphModule, calibrated: CalibratedModel, recipe: Quantize, levels: int
) -> None:
    """Give each observer the range of its tensor. An observer that several calls share gets the union.

    ``prepare_fx`` retraces the graph and renames its nodes, so nodes are matched by order, without the observers.
    """
    assert isinstance(prepared, fx.GraphModule)
    modules = dict(prepared.named_modules(remove_duplicate=False))

    def is_observer(node: fx.Node) -> bool:
        return node.op == "call_module" and "activation_post_process" in str(node.target)

    plain = [node for node in prepared.graph.nodes if not is_observer(node)]
    source: dict[fx.Node, str] = {}
    for ours, theirs in zip(graph.graph.nodes, plain, strict=True):
        if (ours.op, str(ours.target)) != (theirs.op, str(theirs.target)):
            raise QuantizationError(f"internal: torch reordered the graph at {ours.format_node()}")
        source[theirs] = ours.meta[STATS_NAME]
    observed: dict[StatsObserver, list[str]] = {}
    for node in prepared.graph.nodes:
        if not is_observer(node):
            continue
        observer, tensor = modules[str(node.target)], node.args[0]
        while tensor not in source:
            tensor = tensor.args[0]
        if not isinstance(observer, StatsObserver):
            if not isinstance(observer, FixedQParamsObserver) or _has_fixed_range(tensor, modules):
                continue
            # torch gives the input of a sigmoid the range of its output if no other observer does
            observer = StatsObserver(levels)
            modules[str(node.target)] = observer
            prepared.add_submodule(str(node.target), observer)
        observer.stands_on = source[tensor]
        if tensor.op == "get_attr":
            constant = operator.attrgetter(str(tensor.target))(prepared)
            observer.range = min(float(constant.min()), 0.0), max(float(constant.max()), 0.0)
        else:
            observed.setdefault(observer, []).append(source[tensor])
    for observer, names in observed.items():
        set_range(observer, names, calibrated, recipe)
    for node in prepared.graph.nodes:
        if node.op == "call_function" and node.target is torch.cat:
            _share_range([_observer_of(each, modules) for each in (*node.all_input_nodes, *node.users)])


def _observer_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> StatsObserver | None:
    """Return the observer whose range a prepared node's tensor has in INT8, None where it is FP32."""
    while True:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, StatsObserver):
            return module
        if node.op != "call_method" or not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]  # a reshape or permutation has the range of its input


def _share_range(observers: list[StatsObserver | None]) -> None:
    """Give observers the union of their ranges, because INT8 concatenation uses the scale of the first part."""
    known = [each for each in observers if each is not None and each.range is not None]
    if known:
        union = min(each.range[0] for each in known), max(each.range[1] for each in known)  # type: ignore[index]
        for each in known:
            each.range = union


def set_range(observer: StatsObserver, names: list[str], calibrated: CalibratedModel, recipe: Quantize) -> None:
    """Set the range that the recipe's observer chooses. Without statistics it has none and fails when it needs one."""
    stats = [calibrated.stats[name] for name in names if name in calibrated.stats]
    if not stats:
        return
    ranges = [choose_range(each, recipe.observer, observer.levels, recipe.percentile) for each in stats]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if observer.range is not None:  # set for a constant that shares the observer
        low, high = min(low, observer.range[0]), max(high, observer.range[1])
    observer.range = low, high
