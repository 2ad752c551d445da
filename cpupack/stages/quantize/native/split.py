"""Which part of a graph the engine runs: all of it, but for what stays FP32 before and behind.

The parts meet at calls that alone are read behind them. Layers with weights in ``[quantize] skip`` may be the first or
the last; behind the last INT8 layer torch does what has no weights: softmax, a reshape.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx, nn

from cpupack.errors import QuantizationError
from cpupack.graph.names import is_within, scoped_name
from cpupack.stages.quantize.native.calls import MEANS, Calls, shape_of
from cpupack.stages.quantize.native.dense import has_weights
from cpupack.stages.quantize.native.functions import is_fused_relu


@dataclass(frozen=True)
class Split:
    """The parts of a graph; node names are those of the whole. ``head`` and ``tail`` are None where nothing is.

    ``head_calls`` and ``tail_calls`` are the calls of the whole that they hold.
    """

    body: fx.GraphModule
    head: fx.GraphModule | None
    tail: fx.GraphModule | None
    head_calls: tuple[fx.Node, ...]
    tail_calls: tuple[fx.Node, ...]


def split(calls: Calls, skip: Collection[str]) -> Split:
    """Split a recorded graph. Raises QuantizationError where ``skip`` leaves no such part, or nothing at all."""
    nodes = [node for node in calls.graph.graph.nodes if node.op != "output"]
    skipped = {node for node in nodes if node.op != "placeholder" and is_within(scoped_name(node), skip)}
    weighted = [place for place, node in enumerate(nodes) if has_weights(calls, node) and node not in skipped]
    if not weighted:
        raise QuantizationError("the native engine finds no convolution and no linear layer to run in INT8")
    cuts = _cuts(nodes)
    begin = _begin(nodes, cuts, weighted[0], skipped)
    end = _end(calls, nodes, cuts, weighted[-1], skipped)
    inside = next((node for node in nodes[begin + 1 : end + 1] if node in skipped), None)
    if inside is not None:
        raise QuantizationError(
            f"the native engine keeps FP32 what comes first and last, and [quantize] skip names {scoped_name(inside)}, "
            "which lies between INT8 layers",
            hint='use engine = "auto" or one of torch\'s engines for it',
        )
    head_calls, tail_calls = nodes[: begin + 1], nodes[end + 1 :]
    result = next(node for node in calls.graph.graph.nodes if node.op == "output").args[0]
    head_calls = head_calls if begin > 0 else []
    return Split(
        body=_part(calls, nodes[begin], nodes[begin + 1 : end + 1], nodes[end]),
        head=_part(calls, nodes[0], head_calls[1:], nodes[begin]) if head_calls else None,
        tail=_part(calls, nodes[end], tail_calls, result) if tail_calls else None,
        head_calls=tuple(each for each in head_calls if each.op != "placeholder"),
        tail_calls=tuple(tail_calls),
    )


def _cuts(nodes: list[fx.Node]) -> set[int]:
    """Return the places of the calls that alone are read behind them."""
    place = {node: number for number, node in enumerate(nodes)}
    last = [max((place.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes]
    cuts, alive = set(), set[int]()
    for number in range(len(nodes)):
        alive = {each for each in alive if last[each] > number}
        if last[number] > number:
            alive.add(number)
        if alive == {number} and "shape" in nodes[number].meta:
            cuts.add(number)
    return cuts


def _begin(nodes: list[fx.Node], cuts: set[int], first: int, skipped: set[fx.Node]) -> int:
    """Return the place of the call whose FP32 result the body reads: the input where nothing before it is skipped."""
    if not any(node in skipped for node in nodes[:first]):
        return 0
    return max((place for place in cuts if place < first), default=0)


def _end(calls: Calls, nodes: list[fx.Node], cuts: set[int], last: int, skipped: set[fx.Node]) -> int:
    """Return the place of the call whose result leaves the body, where it loses least: in FP32 if that can be."""
    stop = next((place for place in range(last, len(nodes)) if nodes[place] in skipped), len(nodes))
    behind = sorted(place for place in cuts if last <= place < stop)
    if not behind:
        raise QuantizationError(
            f"the native engine returns one tensor; this model's result needs {scoped_name(nodes[last])} and others"
        )
    if behind[0] == last and _is_vector(nodes[last]) and not is_fused_relu(calls.module(nodes[last])):
        return last
    averages = [place for place in behind if _averages(calls, nodes[place])]
    if averages:
        return averages[0]
    # Codes of an activation are finer than those of what goes into it.
    while len(behind) > 1 and behind[1] == behind[0] + 1 and calls.is_activation(nodes[behind[1]]):
        behind.pop(0)
    return behind[0]


def _is_vector(node: fx.Node) -> bool:
    shape = shape_of(node)
    return len(shape) == 2 or tuple(shape[2:]) == (1, 1)


def _averages(calls: Calls, node: fx.Node) -> bool:
    target = calls.target(node)
    adaptive = getattr(target, "__name__", "") in {"AdaptiveAvgPool2d", "adaptive_avg_pool2d"}
    return (adaptive or target in MEANS) and _is_vector(node)


def _part(calls: Calls, source: fx.Node, nodes: list[fx.Node], result: object) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {source: graph.placeholder(source.name)}
    copies[source].meta = dict(source.meta)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    assert isinstance(result, fx.Node)  # the load stage lets models of one tensor through
    graph.output(copies[result])
    module = fx.GraphModule(nn.ModuleDict() if not nodes else calls.graph, graph)
    return module.eval()
