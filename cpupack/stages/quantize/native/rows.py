"""Chooses which linear layers get a scale for each row of activations while the program runs."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping

import torch
from torch import fx, nn

from cpupack.errors import QuantizationError
from cpupack.graph.names import core, is_named
from cpupack.recipe import Quantize
from cpupack.stages.quantize.native.calls import Calls, shape_of
from cpupack.stages.quantize.native.filters import has_weights
from cpupack.stages.quantize.native.measured import Forms
from cpupack.stages.quantize.native.recurrent import is_recurrent
from cpupack.stages.quantize.native.row_codes import fits_rows

_JOINS: tuple[object, ...] = (
    torch.add, torch.sub, torch.cat, "expand", torch.ops.aten.expand.default, torch.ops.aten.expand_as.default,
)  # fmt: skip
_FEW = 32
"""A layer with so many times fewer products than others takes next to none of the time, also in FP32."""
_CLOSE_DB = 0.5
"""Forms of a layer that differ by less are as good: then that which takes less time is chosen."""


def layers_by_rows(
    calls: Calls,
    recipe: Quantize,
    kept: Collection[fx.Node],
    forms: Mapping[str, Forms],
    floats: Collection[fx.Node],
) -> list[fx.Node]:
    """Return these layers: with ``mode = "dynamic"`` all linear ones, with ``auto`` those that lose less so
    (``forms``), those of a loop, and those that read what recurrent layers or loops give.

    A token's values lie in a range of their own, and a few channels may be far larger than all others: one range for
    all tokens has few codes for the most of them. What a recurrent layer gives is float32, so a scale for each row
    costs nothing. In a loop each rounding would be in all later steps. Layers in ``kept`` stay as they are; ``floats``
    are the other calls that have no INT8 kernel. What the recipe says of a layer by its name comes first; raises
    QuantizationError for a name without such a layer.
    """
    static, dynamic = _named(calls, "static", recipe.static), _named(calls, "dynamic", recipe.dynamic)
    nodes, mode = calls.graph.graph.nodes, recipe.mode
    if mode == "static":
        return [node for node in nodes if node in dynamic and node not in kept]
    loops = _loops(calls)
    values = {*kept, *floats}
    found: list[fx.Node] = []
    for node in nodes:
        if node in kept or node in static or not _fits(calls, node):
            continue
        named = mode == "dynamic" or node in dynamic or node in loops or _reads(calls, node, loops)
        if named or _pays(calls, node, forms.get(node.name), values):
            found.append(node)
            values.add(node)
    return found


def _pays(calls: Calls, node: fx.Node, forms: Forms | None, floats: Collection[fx.Node]) -> bool:
    """Whether a layer over tokens, or one that reads float32 values, is better with a scale for each row.

    Codes for each row of float32 tokens take no more time than others, and what comes before and after the layer is in
    the same pass. So one range has to be better by more than half a decibel there. Elsewhere it is faster: INT8 layers
    hand on codes, and of a sample with one row the pass is short. There a scale for each row has to be better by that.
    """
    reads = _comes_from(calls, node, floats)
    if not (reads or _of_tokens(node)):
        return False
    if forms is None:
        return _of_tokens(node)
    return forms.rows_db - forms.range_db > (-_CLOSE_DB if reads and _of_tokens(node) else _CLOSE_DB)


def _comes_from(calls: Calls, node: fx.Node, floats: Collection[fx.Node]) -> bool:
    """Whether what one of ``floats`` gives reaches a call with no other layer with weights between them."""
    seen, waiting = {node}, list(node.all_input_nodes)
    while waiting:
        each = waiting.pop()
        if each in seen or not each.op.startswith("call") or calls.is_constant(each):
            continue
        if each in floats:
            return True
        seen.add(each)
        waiting += [] if has_weights(calls, each) else each.all_input_nodes
    return False


def _named(calls: Calls, key: str, names: Collection[str]) -> set[fx.Node]:
    """Return the linear layers that these modules are, or hold. Raises QuantizationError for one without any."""
    found: set[fx.Node] = set()
    for name in names:
        own = {node for node in calls.graph.graph.nodes if _fits(calls, node) and is_named(node, [name])}
        if not own:
            raise QuantizationError(
                f"[quantize] {key}: there is no linear layer in {name!r}",
                hint="activations of other layers always have ranges from the calibration data; leave the name out",
            )
        found |= own
    return found


def _loops(calls: Calls) -> set[fx.Node]:
    """Return the calls of linear layers that are called several times in a model in which one of them follows from its
    own result: a recurrence written by hand, whose steps capture writes out, each with a copy of the layer.
    """
    alike: dict[tuple[object, ...], list[list[fx.Node]]] = {}
    for node in calls.graph.graph.nodes:
        if _fits(calls, node):
            weight = _weight(calls, node)
            groups = alike.setdefault((weight.shape, float(weight[0].double().sum())), [])
            same = next((group for group in groups if torch.equal(_weight(calls, group[0]), weight)), None)
            if same is None:
                groups.append([node])
            else:
                same.append(node)
    repeated = [group for groups in alike.values() for group in groups if len(group) > 1]
    if not any(_leads_to(group[0], group[-1]) for group in repeated):
        return set()
    return {node for group in repeated for node in group}


def _weight(calls: Calls, node: fx.Node) -> torch.Tensor:
    module = calls.module(node)
    assert module is not None
    weight = core(module).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def _leads_to(first: fx.Node, last: fx.Node) -> bool:
    seen, waiting = {first}, list(first.users)
    while waiting:
        each = waiting.pop()
        if each is last:
            return True
        if each not in seen:
            seen.add(each)
            waiting += each.users
    return False


def small_heads(calls: Calls, recipe: Quantize, kept: Collection[fx.Node]) -> list[fx.Node]:
    """Return with ``auto`` the linear layers over one row of what recurrent layers give that have few products beside
    them. There INT8 saves nothing, and it would lose more than the recurrent layers do.

    Layers in ``kept`` do not count, nor do those that the recipe names.
    """
    nodes = [node for node in calls.graph.graph.nodes if node not in kept]
    recurrent = sum(_products(calls, node) for node in nodes if is_recurrent(calls, node))
    if recipe.mode != "auto" or not recurrent:
        return []
    return [
        node
        for node in nodes
        if _fits(calls, node)
        and not is_named(node, [*recipe.static, *recipe.dynamic])
        and not _of_tokens(node)
        and _reads(calls, node)
        and _FEW * _products(calls, node) <= recurrent
    ]


def _products(calls: Calls, node: fx.Node) -> int:
    """Return how many products of a weight and a value a linear or recurrent layer has for a sample."""
    module = calls.module(node)
    assert module is not None
    weights = sum(each.numel() for each in module.parameters() if each.ndim > 1)
    return weights * (shape_of(node.all_input_nodes[0])[1] if is_recurrent(calls, node) else 1)


def is_static(calls: Calls, node: fx.Node) -> bool:
    """Whether a call would need a range from calibration data: not where it is of a recurrent layer, or selects."""
    if not node.op.startswith("call") or is_recurrent(calls, node):
        return False
    return not any(is_recurrent(calls, each) for each in node.all_input_nodes if node.target is operator.getitem)


def sums_before(calls: Calls, floats: Collection[fx.Node]) -> list[fx.Node]:
    """Return the sums, concatenations and views whose values only calls in FP32 read, in the end.

    A class token and the places of tokens are added before the first block of a transformer. In 8 bits their error
    would be in all that follows, since the residual stream is never rounded.
    """
    found: list[fx.Node] = []
    known = set(floats)
    for node in reversed(calls.graph.graph.nodes):
        free = node.op.startswith("call") and (calls.target(node) in _JOINS or calls.rearranges(node))
        readers = [user for user in node.users if not calls.is_constant(user)]
        if free and node not in known and readers and all(user in known for user in readers):
            known.add(node)
            found.append(node)
    return found


def _fits(calls: Calls, node: fx.Node) -> bool:
    """Whether a call is of a linear layer that can go by rows."""
    module = calls.module(node)
    if module is None or type(core(module)) is not nn.Linear:
        return False
    return fits_rows(shape_of(node.all_input_nodes[0])[1:])


def _of_tokens(node: fx.Node) -> bool:
    return len(shape_of(node.all_input_nodes[0])) > 2


def _reads(calls: Calls, node: fx.Node, loops: Collection[fx.Node] = ()) -> bool:
    """Whether what a recurrent layer or a loop gives reaches a call with no layer with weights between them."""
    recurrent = {each for each in calls.graph.graph.nodes if is_recurrent(calls, each)}
    return _comes_from(calls, node, {*recurrent, *loops})
