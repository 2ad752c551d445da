"""Chooses which parts of a graph the engine runs: all of it except the calls that stay FP32.

These calls stay FP32: those that ``[quantize] skip`` names, those for which the engine has no kernel, and those without
weights after the last INT8 layer, such as a softmax or a reshape. Calls between two FP32 calls also stay FP32 if there
is no layer with weights among them, because rounding them would cost accuracy and save nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from cpupack.errors import QuantizationError
from cpupack.graph.proposals import is_between_stages
from cpupack.stages.quantize.native.calls import Calls, shape_of
from cpupack.stages.quantize.native.filters import has_weights
from cpupack.stages.quantize.native.functions import is_fused_relu
from cpupack.stages.quantize.native.layouts import is_laid_out
from cpupack.stages.quantize.native.recurrent import is_recurrent
from cpupack.stages.quantize.native.rows import sums_before
from cpupack.stages.quantize.reasons import DYNAMIC

AROUND = "comes before or after the INT8 part"
AMONG = "lies among INT8 layers that take and give float32 values"
BETWEEN = "lies between layers in FP32"
_LITTLE = (torch.mean, torch.sum, torch.amax, torch.add, torch.mul, nn.ReLU, nn.Tanh, nn.Sigmoid)
BY_BATCH = "the native engine has no kernel for it: it depends on the size of the batch"


@dataclass(frozen=True)
class Segment:
    """Calls that run together, natively or in FP32, with the tensors that they read from and pass to other segments."""

    native: bool
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def split(
    calls: Calls, kept: Mapping[fx.Node, str], beyond: Collection[fx.Node], by_rows: Collection[fx.Node] = ()
) -> tuple[list[Segment], dict[fx.Node, str]]:
    """Return the segments of a recorded graph in order, and the reason of each call that stays FP32.

    ``kept`` are calls that must stay FP32, with the reason; ``beyond`` are those that the engine cannot run in FP32
    either. ``by_rows`` are those of ``kept`` that are INT8 layers which take and give float32 values. Raises
    QuantizationError if nothing is left for the engine.
    """
    nodes = [node for node in calls.graph.graph.nodes if node.op != "output"]
    reasons = dict(kept)
    for node in nodes:
        if not node.op.startswith("call") or calls.is_constant(node) or is_laid_out(calls, node):
            continue
        if calls.counts_samples(node):
            reasons.setdefault(node, BY_BATCH)
    weighted = [place for place, node in enumerate(nodes) if _has_products(calls, node) and node not in reasons]
    around = nodes
    if weighted:
        cuts = _cuts(nodes)
        begin = _begin(nodes, cuts, weighted[0], reasons)
        end = _end(calls, nodes, cuts, weighted[-1], reasons)
        around = [*nodes[: begin + 1], *nodes[end + 1 :]]
    elif not any(node in reasons for node in by_rows):
        if DYNAMIC in reasons.values():
            raise QuantizationError(f"the native engine finds no layer to run in INT8: [quantize] {DYNAMIC}")
        raise QuantizationError(
            "the native engine finds no convolution, no linear and no recurrent layer to run in INT8"
        )
    rows = [place for place, node in enumerate(nodes) if node in by_rows]
    first, last = min([*weighted, *rows]), max([*weighted, *rows])
    among = set(nodes[first : last + 1]) if rows else set()
    for node in around:
        if node.op.startswith("call"):
            reasons.setdefault(node, BETWEEN if node in among else AROUND)
    while True:
        _follow(calls, nodes, reasons)
        segments = _segments(calls, nodes, reasons)
        plain = [
            part
            for each in segments
            if each.native
            for part in _connected(each.nodes)
            if not any(_has_products(calls, node) for node in part)
        ]
        more = {node: BETWEEN for part in plain for node in part if node not in beyond}
        if not more:
            break
        reasons |= more
    if by_rows or any(is_between_stages(node) for node in nodes):
        reasons |= {node: BETWEEN for node in sums_before(calls, reasons) if node not in beyond}
    _view_floats(calls, nodes, reasons, beyond)
    reasons = {node: AMONG if why == BETWEEN and node in among else why for node, why in reasons.items()}
    by_torch = {node: reasons[node] for node in nodes if node in reasons and node in beyond}
    for node in list(by_torch):  # no program can give torch one of several results
        for source in node.all_input_nodes:
            if node.target is operator.getitem and "shape" not in source.meta and not _is_free(calls, source):
                by_torch[source] = reasons[source] = reasons[node]
    while True:
        _follow(calls, nodes, by_torch)
        segments = _segments(calls, nodes, by_torch)
        # A program takes its batch from its inputs: one of constants alone, for a call of torch's, has none.
        alone = [node for each in segments if each.native and not each.inputs for node in each.nodes]
        if not alone:
            return segments, reasons
        by_torch |= dict.fromkeys(alone, BY_BATCH)
        reasons |= dict.fromkeys(alone, BY_BATCH)


def _view_floats(
    calls: Calls, nodes: Iterable[fx.Node], reasons: dict[fx.Node, str], beyond: Collection[fx.Node]
) -> None:
    """Keep in FP32 also the calls that only see FP32 values in another order: codes are made in the order of a reader.

    The other way round, an INT8 layer that needs another order would have the codes copied byte by byte.
    """
    for node in nodes:
        if node in reasons or node in beyond or not node.op.startswith("call"):
            continue
        sources = [each for each in node.all_input_nodes if not _is_free(calls, each)]
        if not sources or not all(_gives_floats(calls, each, reasons, beyond) for each in sources):
            continue
        recurs = any(_is_recurrent_result(calls, each) for each in sources)
        if calls.rearranges(node) or (recurs and _costs_little(calls, node, sources)):
            reasons[node] = BETWEEN
    for node in reversed(list(nodes)):
        if node in reasons or node in beyond or "shape" not in node.meta or node.op == "placeholder":
            continue
        moves = calls.rearranges(node) or is_laid_out(calls, node)
        if any(
            "shape" not in each.meta and each not in reasons and not _is_free(calls, each)
            for each in node.all_input_nodes
        ):
            continue  # one of several results, which are codes
        from_caller = node.all_input_nodes and node.all_input_nodes[0].op == "placeholder"
        if from_caller and moves and node.users and all(each in reasons for each in node.users):
            reasons[node] = BETWEEN  # the caller's values need not be codes first
        if moves and node.users and all(_takes_steps(calls, each, reasons) for each in node.users):
            reasons[node] = BETWEEN


def _gives_floats(calls: Calls, node: fx.Node, reasons: Mapping[fx.Node, str], beyond: Collection[fx.Node]) -> bool:
    """Whether a call leaves float32 values: one in FP32, or a recurrent layer, whose results are never rounded."""
    return node not in beyond and (node in reasons or _is_recurrent_result(calls, node))


def _is_recurrent_result(calls: Calls, node: fx.Node) -> bool:
    return is_recurrent(calls, node) or (
        node.target is operator.getitem and any(is_recurrent(calls, each) for each in node.all_input_nodes)
    )


def _costs_little(calls: Calls, node: fx.Node, sources: list[fx.Node]) -> bool:
    """Whether a call of a recurrent layer's results, which the engine has in FP32, is small beside that layer."""
    target = calls.target(node)
    alike = len({shape_of(each) for each in sources if "shape" in each.meta}) == 1
    return target is torch.cat or (target in _LITTLE and alike)


def _takes_steps(calls: Calls, node: fx.Node, reasons: Mapping[fx.Node, str]) -> bool:
    return is_recurrent(calls, node) or (node in reasons and calls.rearranges(node))


def _has_products(calls: Calls, node: fx.Node) -> bool:
    return has_weights(calls, node) or is_recurrent(calls, node)


def _follow(calls: Calls, nodes: Iterable[fx.Node], reasons: dict[fx.Node, str]) -> None:
    """Keep in FP32 also the calls that select one of several results of an FP32 call."""
    for node in nodes:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source in reasons and "shape" not in source.meta:
            reasons.setdefault(node, reasons[source])


def _is_free(calls: Calls, node: fx.Node) -> bool:
    """Whether a node belongs to the graph, or is a size: it has no place of its own."""
    return node.op == "get_attr" or calls.is_constant(node)


def _segments(calls: Calls, nodes: list[fx.Node], reasons: Collection[fx.Node]) -> list[Segment]:
    """Group calls so that each group needs only groups before it: FP32 ones have even levels, native ones odd."""
    level: dict[fx.Node, int] = {}
    for node in nodes:
        if _is_free(calls, node):
            continue
        before = max((level[each] for each in node.all_input_nodes if each in level), default=0)
        native = node.op != "placeholder" and node not in reasons
        level[node] = before if before % 2 == native else before + 1
    result = next(node for node in calls.graph.graph.nodes if node.op == "output")
    segments = []
    for number in sorted(set(level.values())):
        own = [node for node in nodes if level.get(node) == number]
        inputs = dict.fromkeys(
            each for node in own for each in node.all_input_nodes if each in level and level[each] != number
        )
        outputs = [
            node for node in own if any(user is result or level.get(user, number) != number for user in node.users)
        ]
        calls_of = tuple(node for node in own if node.op != "placeholder")
        if calls_of:
            segments.append(Segment(bool(number % 2), calls_of, tuple(inputs), tuple(outputs)))
    return segments


def _connected(nodes: Collection[fx.Node]) -> list[list[fx.Node]]:
    """Return the parts of a segment between which no value goes: branches of the graph that have the same level."""
    parts: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        own = [node]
        for other in {id(parts[each]): parts[each] for each in node.all_input_nodes if each in parts}.values():
            own += other
        parts |= dict.fromkeys(own, own)
    return list({id(each): each for each in parts.values()}.values())


def _cuts(nodes: list[fx.Node]) -> set[int]:
    """Return the positions of the calls that are the only ones read after them."""
    place = {node: number for number, node in enumerate(nodes)}
    last = [max((place.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes]
    cuts, alive = set(), set[int]()
    for number in range(len(nodes)):
        if nodes[number].op == "get_attr":
            continue  # wherever it is read, it is there
        alive = {each for each in alive if last[each] > number}
        if last[number] > number:
            alive.add(number)
        if alive == {number} and "shape" in nodes[number].meta:
            cuts.add(number)
    return cuts


def _begin(nodes: list[fx.Node], cuts: set[int], first: int, kept: Collection[fx.Node]) -> int:
    """Return the position of the call whose FP32 result the body reads: the input if nothing before it stays FP32."""
    if not any(node in kept for node in nodes[:first]):
        return next(place for place, node in enumerate(nodes) if node.op == "placeholder")
    return max((place for place in cuts if place < first), default=0)


def _end(calls: Calls, nodes: list[fx.Node], cuts: set[int], last: int, kept: Collection[fx.Node]) -> int:
    """Return the position of the call whose result the body returns, chosen for the least loss: FP32 if possible."""
    stop = next((place for place in range(last, len(nodes)) if nodes[place] in kept), len(nodes))
    later = sorted(place for place in cuts if last <= place < stop)
    if not later:
        return len(nodes) - 1  # several results, or an FP32 call parallel to the last layer: segments handle these
    if later[0] == last and _is_vector(nodes[last]) and not is_fused_relu(calls.module(nodes[last])):
        return last
    averages = [place for place in later if _averages(calls, nodes[place])]
    if averages:
        return averages[0]
    return later[-1]


def _is_vector(node: fx.Node) -> bool:
    shape = shape_of(node)
    return len(shape) == 2 or all(length == 1 for length in shape[2:])


def _averages(calls: Calls, node: fx.Node) -> bool:
    target = calls.target(node)
    return target in {nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, torch.mean} and _is_vector(node)
