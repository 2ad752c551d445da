"""What does nothing, and what moves values twice, is dropped."""

from __future__ import annotations

import math
import operator
from typing import TypeGuard

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.vocabulary import ACTIVATIONS, ARITHMETIC, POINTWISE
from cpupack.stages.capture.rewrites.tools import constant_of, is_a, module_of, new_call, only_reader, replace, shape


def drop_noops(graph: fx.GraphModule) -> bool:
    """Drop sums with 0, products with 1, pooling of one position, and shape operations that change nothing."""
    changed = False
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and shape(source) == shape(node) and _does_nothing(graph, node):
            replace(node, source)
            changed = True
    return changed


def _does_nothing(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
        maxima = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
        return is_a(graph, node, *pools, *maxima, nn.Identity)
    if node.op != "call_function":
        return False
    if node.target in {torch.add, torch.sub}:
        return _is_constantly(graph, node.args[1], 0.0)
    if node.target in {torch.mul, torch.div}:
        return _is_constantly(graph, node.args[1], 1.0)
    if node.target is torch.permute:
        return list(node.args[1]) == sorted(node.args[1])  # type: ignore[arg-type]  # numbers
    return node.target in {torch.reshape, torch.flatten}


def drop_expansions(graph: fx.GraphModule) -> bool:
    """Drop an expansion that arithmetic alone reads, beside a tensor of the whole shape: it repeats values itself.

    ``F.normalize`` divides by an expanded norm, gates multiply by ``gate.expand_as(x)``.
    """
    changed = False
    for node in list(graph.graph.nodes):
        if node.target is not torch.ops.aten.expand.default or not node.users:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or len(shape(source)) != len(shape(node)):
            continue
        if all(reader.target in ARITHMETIC and _has_whole(reader, node) for reader in node.users):
            replace(node, source)
            changed = True
    return changed


def _has_whole(reader: fx.Node, node: fx.Node) -> bool:
    """Whether a call of two operands reads a computed tensor of the shape of ``node`` beside it."""
    others = [each for each in reader.args[:2] if each is not node]
    return len(others) == 1 and shape(others[0]) == shape(node) and getattr(others[0], "op", "get_attr") != "get_attr"


def _is_constantly(graph: fx.GraphModule, operand: object, number: float) -> bool:
    if isinstance(operand, int | float):
        return operand == number
    value = constant_of(graph, operand)
    return value is not None and bool((value == number).all())


def merge_shape_operations(graph: fx.GraphModule) -> bool:
    """Join reshapes in a row, and permutations in a row."""
    changed = False
    for node in list(graph.graph.nodes):
        inner = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(inner, fx.Node) or inner.op != "call_function":
            continue
        reshapes = {torch.reshape, torch.flatten}
        if node.target in reshapes and inner.target in reshapes:
            source = inner.args[0]
            assert isinstance(source, fx.Node)
            if node.target is torch.flatten and (len(shape(source)) < 2 or shape(source)[0] != shape(node)[0]):
                node.target, node.args = torch.reshape, (source, (-1, shape(node)[1]))  # the batch is not first there
            else:
                node.args = (source, *node.args[1:])
            changed = True
        elif node.target is torch.permute and inner.target is torch.permute:
            outer, first = node.args[1], inner.args[1]
            assert isinstance(outer, tuple)
            assert isinstance(first, tuple)
            node.args = (inner.args[0], tuple(first[each] for each in outer))
            changed = True
    return changed


def split_before_permutations(graph: fx.GraphModule) -> bool:
    """Turn reshape, permutation and a reshape that only splits dimensions into one reshape and one permutation.

    ``nn.MultiheadAttention`` joins batch and heads, turns, and parts them again: ``(rows, batch x heads, length)``.
    Where the batch has windows or frames, joining them means moving all values.
    """
    changed = False
    for node in tuple[fx.Node, ...](graph.graph.nodes):
        turned = node.args[0] if node.target is torch.reshape else None
        if not isinstance(turned, fx.Node) or turned.target is not torch.permute or only_reader(turned) is not node:
            continue
        inner, order = turned.args
        if not isinstance(inner, fx.Node) or inner.target is not torch.reshape:
            continue
        groups = _split(shape(turned), shape(node))
        joined, parted = inner.args[1], node.args[1]
        if groups is None or not (_is_plain(order) and _is_plain(joined) and _is_plain(parted)):
            continue
        # The dimension that follows the batch must be the same one, or part of it.
        place = next((place for place, group in enumerate(groups) if any(parted[axis] == -1 for axis in group)), None)
        if place is None or joined[order[place]] != -1:
            continue
        before = [axis for _, group in sorted(zip(order, groups, strict=True)) for axis in group]
        sizes = tuple(parted[axis] for axis in before)
        whole = tuple(shape(node)[axis] for axis in before)
        apart = new_call(graph, torch.reshape, (inner.args[0], sizes), node, "", whole)
        back = tuple(before.index(axis) for axis in range(len(before)))
        replace(node, new_call(graph, torch.permute, (apart, back), node, "", shape(node)))
        changed = True
    return changed


def _is_plain(sizes: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(sizes, tuple) and all(isinstance(size, int) for size in sizes)


def _split(whole: tuple[int, ...], parts: tuple[int, ...]) -> list[list[int]] | None:
    """Return which dimensions of ``parts`` each of ``whole`` became, None where some were joined or none was split."""
    groups, axis = list[list[int]](), 0
    for size in whole:
        group, product = [axis], parts[axis] if axis < len(parts) else 0
        while 0 < product < size and axis + len(group) < len(parts):
            product *= parts[axis + len(group)]
            group.append(axis + len(group))
        if product != size:
            return None
        groups.append(group)
        axis += len(group)
    return groups if axis == len(parts) > len(whole) else None


def delay_squeezes(graph: fx.GraphModule) -> bool:
    """Have functions of one value, and sums and products with numbers, come before the step from (n, 1) to (n,).

    ``head(x).squeeze(1) * 120 + 340`` scales a column then, which becomes part of the layer.
    """
    changed = False
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.target in {torch.reshape, torch.flatten} else None
        if not isinstance(source, fx.Node) or shape(source)[1:] != (1,) or len(shape(node)) != 1:
            continue
        reader = only_reader(node)
        while reader is not None and _works_alike(graph, reader):
            reader.replace_input_with(node, source)
            reader.replace_all_uses_with(node)
            node.replace_input_with(source, reader)
            reader.append(node)
            reader.meta["shape"] = shape(source)
            source, reader, changed = reader, only_reader(node), True
    return changed


def _works_alike(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call computes each value alone, whatever the shape, and reads nothing but numbers beside."""
    if len(node.all_input_nodes) != 1 or node.kwargs:
        return False
    module = module_of(graph, node)
    if module is not None:
        return type(module) in ACTIVATIONS and not isinstance(module, nn.PReLU | nn.Softmax | nn.LogSoftmax)
    return node.target in POINTWISE or node.target in ARITHMETIC


def name_pixel_shuffles(graph: fx.GraphModule) -> bool:
    """Turn the reshape, permutation and reshape of a pixel shuffle or unshuffle into the function."""
    changed = False
    for node in list(graph.graph.nodes):
        if node.target is not torch.reshape or len(shape(node)) != 4:
            continue
        turned = node.args[0]
        if not isinstance(turned, fx.Node) or turned.target is not torch.permute or len(shape(turned)) != 6:
            continue
        spread = turned.args[0]
        if not isinstance(spread, fx.Node) or spread.target is not torch.reshape:
            continue
        source = spread.args[0]
        if not isinstance(source, fx.Node) or len(shape(source)) != 4:
            continue
        changed |= _shuffle(node, turned, spread, source)
    return changed


def _shuffle(node: fx.Node, turned: fx.Node, spread: fx.Node, source: fx.Node) -> bool:
    n, channels, height, width = shape(source)
    _, *after = shape(node)
    middle, order = shape(spread), turned.args[1]
    factor = math.isqrt(channels // after[0]) if after[0] <= channels else 0
    spread_out = middle == (n, after[0], factor, factor, height, width) and order == (0, 1, 4, 2, 5, 3)
    if factor > 1 and spread_out and after == [channels // factor**2, height * factor, width * factor]:
        node.target, node.args = F.pixel_shuffle, (source, factor)
        return True
    factor = height // after[1] if after[1] else 0
    gathered = middle == (n, channels, after[1], factor, after[2], factor) and order == (0, 1, 3, 5, 2, 4)
    if factor > 1 and gathered and after == [channels * factor**2, height // factor, width // factor]:
        node.target, node.args = F.pixel_unshuffle, (source, factor)
        return True
    return False


def drop_unread_parts(graph: fx.GraphModule) -> bool:
    """Turn a split of which one part alone is read into a slice."""
    changed = False
    for node in list(graph.graph.nodes):
        if node.target is not torch.chunk or len(node.users) != 1:
            continue
        (reader,) = node.users
        source, parts, dim = node.args
        if reader.target is not operator.getitem or not isinstance(source, fx.Node):
            continue
        assert isinstance(parts, int)
        assert isinstance(dim, int)
        size = shape(source)[dim] // parts
        index = reader.args[1]
        assert isinstance(index, int)
        first = index * size
        reader.args = (source, (*[slice(None)] * dim, slice(first, first + size)))
        changed = True
    return changed
