"""Handler of ``einsum``: products of two tensors after the other, as matrices, linear layers or value by value."""

from __future__ import annotations

import contextlib
import math
import string
from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.raising.raiser import Arguments, NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import permuted, reshaped
from cpupack.stages.capture.raising.side_by_side import rows_side_by_side


class _Operand:
    """A tensor with a label for each of its dimensions, its sizes, and which of these change with the batch.

    ``constant`` is its value where it does not depend on the input; then ``name`` is the user's.
    """

    def __init__(
        self, r: Raiser, node: fx.Node | None, labels: str, sizes: dict[str, int], moving: set[str],
        constant: torch.Tensor | None = None, name: str = "",
    ) -> None:  # fmt: skip
        self.r, self.labels, self.sizes, self.moving = r, labels, sizes, moving
        self.constant, self.name = constant, name
        self._node = node

    @property
    def node(self) -> fx.Node:
        """The node of the tensor as it is now."""
        if self.constant is not None:
            return self.r.attribute(self.constant, self.name)
        assert self._node is not None
        return self._node

    def in_order(self, order: str) -> fx.Node:
        """Permute to another order of the labels."""
        places = [self.labels.index(each) for each in order]
        if self.constant is not None:
            self.constant = self.constant.permute(places)
        else:
            self._node = permuted(self.r, self.node, places)
        self.labels = order
        return self.node

    def grouped(self, *groups: str) -> fx.Node:
        """Permute, then join the dimensions of each group; a group without labels is a dimension of one."""
        self.in_order("".join(groups))
        before = tuple(self.sizes[each] for each in self.labels)
        after = tuple(math.prod(self.sizes[each] for each in group) for group in groups)
        if self.constant is not None:
            return self.r.attribute(self.constant.reshape(after), self.name)
        dynamic = tuple(any(each in self.moving for each in group) for group in groups)
        return reshaped(self.r, self.node, before, after, dynamic)

    def summed(self, labels: str) -> None:
        """Sum over these dimensions."""
        if not labels:
            return
        if self.moving & set(labels):
            raise NotRaised  # samples meet
        dims = tuple(self.labels.index(each) for each in labels)
        if self.constant is not None:
            self.constant = self.constant.sum(dims)
        else:
            self._node = self.r.call(torch.sum, self.node, dims, False)
        self.labels = "".join(each for each in self.labels if each not in labels)


def _operand(r: Raiser, source: Any, labels: str) -> _Operand:
    shape = r.shape(source)
    if len(labels) != len(shape) or not r.is_float(source):
        raise NotRaised  # other numbers
    sizes = dict(zip(labels, shape, strict=True))
    if r.is_known(source):
        value = r.tensor(source)
        assert value is not None
        for one, other in _diagonals(labels):
            value = value.diagonal(0, one, other)
        return _Operand(r, None, _apart(labels), sizes, set(), value.float(), r.weight_name(source))
    moving = {label for label, each in zip(labels, r.dynamic(source), strict=True) if each}
    if any(labels.count(each) > 1 for each in moving):
        raise NotRaised  # samples meet
    node = r.operand(source)
    for one, other in _diagonals(labels):
        node = r.call(torch.ops.aten.diagonal.default, node, 0, one, other, word="diagonal")
    return _Operand(r, node, _apart(labels), sizes, moving)


def _diagonals(labels: str) -> list[tuple[int, int]]:
    """Return the pairs of dimensions with one label, one after the other: a diagonal is the last dimension then."""
    found = []
    while (again := next((each for each in labels if labels.count(each) > 1), None)) is not None:
        one = labels.index(again)
        other = labels.index(again, one + 1)
        found.append((one, other))
        labels = labels[:one] + labels[one + 1 : other] + labels[other + 1 :] + again
    return found


def _apart(labels: str) -> str:
    """Return the labels of a tensor after its diagonals are taken."""
    for one, other in _diagonals(labels):
        labels = labels[:one] + labels[one + 1 : other] + labels[other + 1 :] + labels[one]
    return labels


def _einsum(r: Raiser, a: dict[str, Any]) -> fx.Node:
    tensors = a["tensors"]
    if not r.is_float() or a.get("path"):
        raise NotRaised
    inputs, result = _labels(a["equation"], [len(r.shape(each)) for each in tensors])
    operands = [_operand(r, each, labels) for each, labels in zip(tensors, inputs, strict=True)]
    if any(len({each.sizes[label] for each in operands if label in each.sizes}) > 1 for label in set("".join(inputs))):
        raise NotRaised  # one of them is repeated
    while len(operands) > 1:  # from left to right, as torch does
        one, two, *rest = operands
        if rest:
            wanted = set(result).union(*(each.labels for each in rest))
            kept = "".join(each for each in dict.fromkeys(one.labels + two.labels) if each in wanted)
        else:
            kept = result
        operands = [_product(r, one, two, kept), *rest]
    (one,) = operands
    one.summed("".join(each for each in one.labels if each not in result))
    return one.in_order(result)


def _product(r: Raiser, left: _Operand, right: _Operand, result: str) -> _Operand:
    """Return the product of two tensors, summed over the labels that ``result`` has not."""
    left.summed("".join(each for each in left.labels if each not in right.labels and each not in result))
    right.summed("".join(each for each in right.labels if each not in left.labels and each not in result))
    sizes, moving = right.sizes | left.sizes, left.moving | right.moving
    if left.constant is not None and right.constant is not None:
        value = torch.einsum(f"{left.labels},{right.labels}->{result}", left.constant, right.constant)
        return _Operand(r, None, result, sizes, moving, value, left.name)
    if left.constant is not None:
        left, right = right, left
    shared = [each for each in left.labels if each in right.labels]
    both = "".join(each for each in result if each in shared)
    summed = "".join(each for each in shared if each not in result)
    rows = "".join(each for each in result if each in left.labels and each not in shared)
    columns = "".join(each for each in result if each in right.labels and each not in shared)
    if not summed:
        node = _by_value(r, left, right, result)
    elif right.constant is not None and not both:
        node = _linear(r, left, right, rows, summed, columns, result)
    elif right.constant is not None:  # the same matrices for each sample, and the samples stay in front
        front = "".join(each for each in rows if each in left.moving)
        rest = "".join(each for each in rows if each not in left.moving)
        node = _spread(
            r, _of_samples(r, left, right, (front, both, rest, summed, columns)), left, right,
            (front + both, rest, columns), result,
        )  # fmt: skip
    else:
        node = _matrices(r, left, right, (both, rows, summed, columns), result)
    return _Operand(r, node, result, sizes, moving)


def _by_value(r: Raiser, left: _Operand, right: _Operand, result: str) -> fx.Node:
    """A product without a sum: each tensor has a dimension of one for the labels that it has not."""
    if left.moving | right.moving and not left.moving & right.moving and right.constant is None:
        raise NotRaised  # samples meet
    one, two = (each.grouped(*(label if label in each.labels else "" for label in result)) for each in (left, right))
    return r.call(torch.mul, one, two)


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


def _linear(r: Raiser, left: _Operand, right: _Operand, rows: str, summed: str, columns: str, result: str) -> fx.Node:
    """A product with a constant is a linear layer over the last dimension."""
    x = left.grouped(*rows, summed)
    weight = right.constant
    assert weight is not None
    order = [right.labels.index(each) for each in columns + summed]
    wide = math.prod(right.sizes[each] for each in columns)
    linear = nn.Linear(math.prod(right.sizes[each] for each in summed), wide, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.permute(order).reshape(wide, -1).clone().float(), requires_grad=False)
    y = r.module(linear, x, word="linear", owner=right.name)
    return _spread(r, y, left, right, (rows, columns), result)


def _of_samples(r: Raiser, left: _Operand, right: _Operand, groups: tuple[str, ...]) -> fx.Node:
    """The products of each sample with the same matrices: layers side by side, where they have many values."""
    front, both, rest, summed, columns = groups
    one = left.grouped(*front, *both, rest, summed)
    weight = right.constant
    assert weight is not None
    if len(front) == len(both) == 1:
        sizes = tuple(math.prod(left.sizes[each] for each in group) for group in (front, both, rest, summed))
        order = [right.labels.index(each) for each in both + summed + columns]
        matrices = weight.permute(order).reshape(sizes[1], sizes[3], -1)
        with contextlib.suppress(NotRaised):
            return rows_side_by_side(r, one, sizes, matrices, right.name)
    return r.call(torch.matmul, one, right.grouped(*both, summed, columns))


def _matrices(r: Raiser, left: _Operand, right: _Operand, groups: tuple[str, str, str, str], result: str) -> fx.Node:
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


def _tensordot(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``tensordot``: the labels of the dimensions that are summed are the same in both tensors."""
    one, two = a["self"], a["other"]
    return _summed(
        r, one, two, [_labels_of(r, each, dims) for each, dims in ((one, a["dims_self"]), (two, a["dims_other"]))]
    )


def _inner(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``inner``: the last dimensions are summed."""
    if not r.shape(a["self"]) or not r.shape(a["other"]):
        raise NotRaised
    return _summed(r, a["self"], a["other"], [[len(r.shape(a[name])) - 1] for name in ("self", "other")])


def _labels_of(r: Raiser, source: Any, dims: list[int]) -> list[int]:
    return [each % len(r.shape(source)) for each in dims]


def _summed(r: Raiser, one: Any, two: Any, dims: list[list[int]]) -> fx.Node:
    """Return the product of two tensors, summed over these dimensions of each, as an equation."""
    free = iter(string.ascii_letters)
    summed = [next(free) for _ in dims[0]]
    labels = []
    for source, own in zip((one, two), dims, strict=True):
        named = dict(zip(own, summed, strict=True))
        labels.append("".join(named.get(place) or next(free) for place in range(len(r.shape(source)))))
    result = "".join(each for part in labels for each in part if each not in summed)
    return _einsum(
        r, Arguments({"tensors": [one, two], "equation": f"{labels[0]},{labels[1]}->{result}", "path": None})
    )


def _bilinear(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``bilinear``: each result is a matrix between two vectors."""
    one, two, weight = a["input1"], a["input2"], a["weight"]
    front = string.ascii_lowercase[: len(r.shape(one)) - 1]
    equation = f"{front}X,OXY,{front}Y->{front}O"
    y = _einsum(r, Arguments({"tensors": [one, weight, two], "equation": equation, "path": None}))
    return y if a.get("bias") is None else r.call(torch.add, y, r.operand(a["bias"]))


HANDLERS: dict[str, Any] = {
    "einsum": _einsum, "tensordot": _tensordot, "inner": _inner, "bilinear": _bilinear
}  # fmt: skip
