"""Steps that a model computes in float64, ``x.double()``, computed in float32: no kernel and no buffer has float64.

A model does so to be careful, and most answers are the same. Where they are not (sums of a long sequence, times in
seconds since 1970), the steps stay as they are, and torch runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from cpupack.errors import ModelError
from cpupack.graph.needed import needed
from cpupack.stages.capture.export import Exported
from cpupack.stages.capture.raising import raise_graph

_CLOSE = 1e-5
"""Of an output's largest value: a thousandth of what INT8 costs."""


def in_single_precision(
    exported: Exported, module: nn.Module, batch: torch.Tensor, places: Sequence[slice] = ()
) -> Exported:
    """Return the graph with float32 in place of float64 where its answers to ``batch`` are still the model's.

    ``places`` says where each of several outputs is in a row: each is judged for itself, by its own largest value.
    """
    if not any(_is_double(each.meta.get("val")) for each in needed(exported.result)):
        return exported
    found = _single(exported)
    try:
        graph = raise_graph(found)
        with torch.inference_mode():
            expected, answer = module(batch.clone()), graph(batch.clone())
    except (ModelError, RuntimeError, TypeError, ValueError):  # what it says is of float32, and not of the model
        return exported
    if answer.shape != expected.shape:
        return exported
    pairs = [(expected[:, each], answer[:, each]) for each in places] or [(expected, answer)]
    return found if all(_is_close(one.double(), other.double()) for one, other in pairs) else exported


def _is_close(expected: torch.Tensor, answer: torch.Tensor) -> bool:
    return bool((answer - expected).abs().max() <= _CLOSE * expected.abs().max())


def _single(exported: Exported) -> Exported:
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(exported.graph, made))
    for node in graph.nodes:
        node.args, node.kwargs = _numbers(node.args), _numbers(node.kwargs)
        if "val" in node.meta:
            node.meta["val"] = _values(node.meta["val"])
    constants = {
        made[node]: (name, value.float() if value.dtype == torch.float64 else value)
        for node, (name, value) in exported.constants.items()
    }
    return replace(
        exported, graph=graph, constants=constants, source=made[exported.source], result=made[exported.result]
    )


def _numbers(given: Any) -> Any:
    """Return arguments with float32 where they ask for float64."""
    return fx.node.map_aggregate(given, lambda each: torch.float32 if each == torch.float64 else each)


def _values(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_values, value))
    if not _is_double(value):
        return value
    with value.fake_mode:
        return value.float()


def _is_double(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_double, value))
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64
