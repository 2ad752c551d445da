"""Brings the batch to the front of every tensor, where a model has it elsewhere or joined with other dimensions.

Transformers compute on tensors such as ``(batch * windows, tokens, channels)``, and cut ``(3, batch, heads, ...)`` into
queries, keys and values. The engine's values are those of a sample. So the first kind becomes ``(batch, windows, tokens,
channels)``, which is the same for every call that looks at the last dimensions alone. Of the second kind, the calls from
one tensor with the batch in front to the next become one rearrangement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn
from torch.fx.node import map_arg

from cpupack.graph.names import core
from cpupack.graph.vocabulary import ACTIVATIONS, ARITHMETIC, POINTWISE, SHAPES

_MOVES = (*SHAPES, torch.ops.aten.roll.default, torch.ops.aten.flip.default)
_BY_LAST_DIMENSIONS = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Softmax, nn.LogSoftmax)
_OF_ALIKE = (*ARITHMETIC, torch.matmul, F.scaled_dot_product_attention)
_REDUCTIONS = (torch.mean, torch.sum, torch.amax, torch.amin)
_LEAST_VALUES = 2


class Rearrangement(nn.Module):
    """Calls that only move values, one after the other: each a function and its arguments after the tensor."""

    def __init__(self, *calls: tuple[Any, tuple[Any, ...]]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for function, arguments in self.calls:
            x = function(x, *arguments)
        return x


@dataclass
class _Known:
    """What is known of the calls: ``leads`` of each tensor, and the moves from ``source`` that a pending one is."""

    leads: dict[fx.Node, int]
    split: dict[fx.Node, int] = field(default_factory=dict)
    pending: dict[fx.Node, tuple[fx.Node, list[tuple[Any, tuple[Any, ...]]]]] = field(default_factory=dict)


def bring_batches_forward(graph: fx.GraphModule, *input_shapes: tuple[int, ...]) -> None:
    """Rewrite a graph in place so that tensors have the batch, alone, as their first dimension where that is possible.

    Calls keep their names. Every call gives the same values, if need be in another shape.
    """
    known = _Known(_leads(graph, *input_shapes))
    if all(lead == 1 for lead in known.leads.values()):
        return
    for node in list(graph.graph.nodes):
        if node.op in {"placeholder", "get_attr"}:
            continue
        if _moves(graph, node):
            _move(graph, node, known)
        elif any(each in known.split for each in node.all_input_nodes):
            _compute(graph, node, known)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _leads(graph: fx.GraphModule, *input_shapes: tuple[int, ...]) -> dict[fx.Node, int]:
    """Return how many first indices a sample has in each tensor: 1 where the batch is alone, 0 where it is not first."""
    shapes = []
    for count in (2, 3):
        record = _Shapes(graph)
        with torch.inference_mode():
            record.run(*(torch.zeros(count, *shape) for shape in input_shapes))
        shapes.append(record.shapes)
    found = {}
    for node, two in shapes[0].items():
        three = shapes[1][node]
        alike = len(two) == len(three) > 0 and two[1:] == three[1:] and two[0] % 2 == 0 and two[0] > 0
        found[node] = two[0] // 2 if alike and two[0] * 3 == three[0] * 2 else 0
    return found


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and n.op != "get_attr":
            self.shapes[n] = tuple(value.shape)
            n.meta["rank"] = value.ndim
        return value


def _moves(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call gives one tensor of another one's values, with settings that are numbers."""
    if node.op != "call_function" or node.target not in _MOVES or node.kwargs:
        return False
    return len(node.all_input_nodes) == 1 and node.args[0] is node.all_input_nodes[0]


def _move(graph: fx.GraphModule, node: fx.Node, known: _Known) -> None:
    source = node.all_input_nodes[0]
    if source not in known.leads and source not in known.split:
        return  # of a chunk, or of constants
    if node.target is torch.chunk:
        if source in known.split:
            axis = node.args[2] if len(node.args) > _LEAST_VALUES else 0
            assert isinstance(axis, int)
            if axis == 0:
                node.args = (_whole(graph, node, source, known), *node.args[1:])
            else:
                node.args = (source, node.args[1], axis + 1 if axis > 0 else axis)
                for part in node.users:
                    known.split[part] = known.split[source]
        return
    begin, calls = known.pending.get(source, (source, []))
    calls = [*calls, (node.target, node.args[1:])]
    lead = known.leads.get(node, 0)
    if lead == 0:
        known.pending[node] = begin, calls
        return
    before = known.split.get(begin)
    if before is not None:
        calls = [(_join, ()), *calls]
    if lead > 1:
        calls = [*calls, (_split, (lead,))]
        known.split[node] = lead
    if len(calls) > 1:
        name = f"rearrangement_{node.name}"
        graph.add_submodule(name, Rearrangement(*calls))
        node.op, node.target, node.args = "call_module", name, (begin,)


def _join(x: torch.Tensor) -> torch.Tensor:
    """Return ``(batch * count, ...)`` of ``(batch, count, ...)``."""
    return x.reshape(-1, *x.shape[2:])


def _split(x: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``(batch, count, ...)`` of ``(batch * count, ...)``."""
    return x.reshape(-1, count, *x.shape[1:])


def _compute(graph: fx.GraphModule, node: fx.Node, known: _Known) -> None:
    """Leave a call as it is where it may read split tensors; else have it read whole ones."""
    lead = known.leads.get(node, 0)
    if lead > 1 and _works_split(graph, node, known, lead):
        known.split[node] = lead
        return
    replaced = {each: _whole(graph, node, each, known) for each in node.all_input_nodes if each in known.split}
    node.args = map_arg(node.args, lambda each: replaced.get(each, each))
    node.kwargs = map_arg(node.kwargs, lambda each: replaced.get(each, each))


def _works_split(graph: fx.GraphModule, node: fx.Node, known: _Known, lead: int) -> bool:
    read = [each for each in node.all_input_nodes if each.op != "get_attr"]
    if any(known.split.get(each) != lead for each in read):
        return False
    rank = node.meta.get("rank", 0)
    constants = [each for each in node.all_input_nodes if each.op == "get_attr"]
    if any(_rank_of(graph, each) > rank or _first_of(graph, each, rank) != 1 for each in constants):
        return False
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        kind = type(core(module))
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            return False
        if kind in (nn.Softmax, nn.LogSoftmax):
            return module.dim is not None and -rank < module.dim < 0  # type: ignore[operator]  # a number
        return kind in (*_BY_LAST_DIMENSIONS, *ACTIVATIONS)
    if node.target in _REDUCTIONS and not node.kwargs and len(node.args) > 1:
        axes = node.args[1]
        axes = [axes] if isinstance(axes, int) else list(axes)  # type: ignore[arg-type]  # numbers
        if any(each % rank == 0 for each in axes):
            return False
        node.args = (node.args[0], [each + 1 if each > 0 else each for each in axes], *node.args[2:])
        return True
    if node.target in POINTWISE:
        return True
    return node.target in _OF_ALIKE and all(each.meta.get("rank") == rank for each in read)


def _rank_of(graph: fx.GraphModule, node: fx.Node) -> int:
    return _tensor(graph, node).ndim


def _first_of(graph: fx.GraphModule, node: fx.Node, rank: int) -> int:
    """Return a constant's size along a tensor's first dimension."""
    tensor = _tensor(graph, node)
    return int(tensor.shape[0]) if tensor.ndim == rank else 1


def _tensor(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    found: Any = graph
    for name in str(node.target).split("."):
        found = getattr(found, name)
    assert isinstance(found, torch.Tensor)
    return found


def _whole(graph: fx.GraphModule, node: fx.Node, source: fx.Node, known: _Known) -> fx.Node:
    """Return a tensor with the batch joined again, as the call ``node`` has to read it."""
    with graph.graph.inserting_before(node):
        name = f"rearrangement_{source.name}_{node.name}"
        graph.add_submodule(name, Rearrangement((_join, ())))
        whole = graph.graph.call_module(name, (source,))
    whole.meta = {key: value for key, value in source.meta.items() if key not in {"shape", "rank"}}
    known.leads[whole] = known.leads.get(source, 0)
    return whole
