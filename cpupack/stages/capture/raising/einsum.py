"""Handler of ``einsum``: of two tensors a product of matrices or a linear layer, of one a permutation."""

from __future__ import annotations

import math
import string
from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import permuted, reshaped


class _Operand:
    """A node with a label for each of its dimensions, its sizes, and which of these change with the batch."""

    def __init__(self, r: Raiser, source: Any, labels: str) -> None:
        self.r, self.node, self.labels = r, r.operand(source), labels
        self.source, self.known = source, r.tensor(source) if r.is_known(source) else None
        shape, moves = r.shape(source), r.dynamic(source)
        if len(labels) != len(shape) or len(set(labels)) != len(labels) or not r.is_float(source):
            raise NotRaised  # a diagonal, or other numbers
        self.sizes = dict(zip(labels, shape, strict=True))
        self.moving = {label for label, each in zip(labels, moves, strict=True) if each}

    def in_order(self, order: str) -> fx.Node:
        """Permute to another order of the labels."""
        if self.known is not None:
            self.known = self.known.permute([self.labels.index(each) for each in order])
            self.labels = order
            return self.r.made_of(self.source, self.known)
        self.node = permuted(self.r, self.node, [self.labels.index(each) for each in order])
        self.labels = order
        node: fx.Node = self.node
        return node

    def grouped(self, *groups: str) -> fx.Node:
        """Permute, then join the dimensions of each group; a group without labels is a dimension of one."""
        self.in_order("".join(groups))
        before = tuple(self.sizes[each] for each in self.labels)
        after = tuple(math.prod(self.sizes[each] for each in group) for group in groups)
        if self.known is not None:
            return self.r.made_of(self.source, self.known.reshape(after))
        dynamic = tuple(any(each in self.moving for each in group) for group in groups)
        node: fx.Node = reshaped(self.r, self.node, before, after, dynamic)
        return node


def _einsum(r: Raiser, a: dict[str, Any]) -> fx.Node:
    tensors = a["tensors"]
    if not r.is_float() or a.get("path") or len(tensors) > 2:
        raise NotRaised
    inputs, result = _labels(a["equation"], [len(r.shape(each)) for each in tensors])
    if len(tensors) == 1:
        (one,) = (_Operand(r, each, labels) for each, labels in zip(tensors, inputs, strict=True))
        if sorted(result) != sorted(one.labels):
            raise NotRaised  # a sum over a dimension
        return one.in_order(result)
    if r.is_known(tensors[0]):
        tensors, inputs = tensors[::-1], inputs[::-1]
    left, right = (_Operand(r, each, labels) for each, labels in zip(tensors, inputs, strict=True))
    shared = [each for each in left.labels if each in right.labels]
    if any(left.sizes[each] != right.sizes[each] for each in shared):
        raise NotRaised  # one of them is repeated
    both = "".join(each for each in result if each in shared)
    summed = "".join(each for each in shared if each not in result)
    rows = "".join(each for each in result if each in left.labels and each not in shared)
    columns = "".join(each for each in result if each in right.labels and each not in shared)
    if len(both + summed + rows) != len(left.labels) or len(both + summed + columns) != len(right.labels) or not summed:
        raise NotRaised  # a sum over a dimension of one of them alone, or products without a sum
    if r.is_known(tensors[1]) and not both:
        return _linear(r, left, right, rows, summed, columns, result, tensors[1])
    if right.known is not None:  # the same matrices for each sample, and the samples stay in front
        front = "".join(each for each in rows if each in left.moving)
        rest = "".join(each for each in rows if each not in left.moving)
        product = r.call(torch.matmul, left.grouped(*front, *both, rest, summed), right.grouped(*both, summed, columns))
        return _spread(r, product, left, right, (front + both, rest, columns), result)
    return _product(r, left, right, (both, rows, summed, columns), result)


def _labels(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Return the labels of each operand and of the result, with letters of their own for an ellipsis."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    parts = given.split(",")
    if len(parts) != len(ranks):
        raise NotRaised
    free = iter(each for each in string.ascii_letters if each not in equation)
    hidden = {rank - len(part) + 3 for part, rank in zip(parts, ranks, strict=True) if "..." in part}
    if len(hidden) > 1 or min(hidden, default=0) < 0:
        raise NotRaised  # ellipses of different lengths
    more = "".join(next(free) for _ in range(hidden.pop())) if hidden else ""
    if not arrow:
        counted = "".join(parts).replace("...", "")
        result = "..." * ("..." in given) + "".join(sorted(each for each in set(counted) if counted.count(each) == 1))
    return [part.replace("...", more) for part in parts], result.replace("...", more)


def _linear(
    r: Raiser, left: _Operand, right: _Operand, rows: str, summed: str, columns: str, result: str, source: Any
) -> fx.Node:
    """A product with a constant is a linear layer over the last dimension."""
    x = left.grouped(*rows, summed)
    weight = r.tensor(source)
    assert weight is not None
    order = [right.labels.index(each) for each in columns + summed]
    wide = math.prod(right.sizes[each] for each in columns)
    linear = nn.Linear(math.prod(right.sizes[each] for each in summed), wide, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.permute(order).reshape(wide, -1).clone().float(), requires_grad=False)
    y = r.module(linear, x, word="linear", owner=r.weight_name(source))
    return _spread(r, y, left, right, (rows, columns), result)


def _product(r: Raiser, left: _Operand, right: _Operand, groups: tuple[str, str, str, str], result: str) -> fx.Node:
    both, rows, summed, columns = groups
    one, two = left.grouped(*both, rows, summed), right.grouped(*both, summed, columns)
    if not both and (left.moving | right.moving) & set(rows + columns):
        raise NotRaised  # samples meet
    return _spread(r, r.call(torch.matmul, one, two), left, right, (both, rows, columns), result)


def _spread(r: Raiser, y: fx.Node, left: _Operand, right: _Operand, groups: tuple[str, ...], result: str) -> fx.Node:
    """Give joined dimensions their own sizes again, in the order of the result."""
    sizes, moving, order = right.sizes | left.sizes, left.moving | right.moving, "".join(groups)
    joined = [*groups[0], *groups[1:]]
    before = tuple(math.prod(sizes[each] for each in group) for group in joined)
    after = tuple(sizes[each] for each in order)
    y = reshaped(r, y, before, after, tuple(each in moving for each in order))
    return permuted(r, y, [order.index(each) for each in result])


HANDLERS: dict[str, Any] = {"einsum": _einsum}
