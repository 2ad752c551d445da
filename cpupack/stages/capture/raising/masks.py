"""Masks and infinities: of scores that a softmax reads, and of what a mask replaces.

Minus infinity in scores becomes a finite number whose power is 0 as well.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import Raiser

HIDDEN = -1e30
"""What hides a score: beside it every score that float32 attention has is 0, and it is far from overflowing."""
_LEADING = frozenset(
    f"aten.{name}"
    for name in (
        "add", "sub", "mul", "div", "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose",
        "squeeze", "unsqueeze", "contiguous", "clone", "expand", "masked_fill", "where", "_to_copy", "to", "slice",
    )
)  # fmt: skip
_INFINITE_AT_ZERO = frozenset(
    f"aten.{name}" for name in ("reciprocal", "rsqrt", "log", "log2", "log10", "logit", "special_logit")
)
_ROOTS = frozenset(
    f"aten.{name}" for name in ("sqrt", "pow", "acos", "asin", "acosh", "atanh", "log1p", "exp", "expm1")
)
"""What gives NaN, or an infinity, for other values than zero."""
_QUOTIENTS = frozenset({"aten.div", "aten.divide", "aten.true_divide"})
_GUARDS = frozenset({"aten.add", "aten.clamp", "aten.clamp_min", "aten.maximum"})
_BOUNDED = frozenset({"aten.sigmoid", "aten.tanh", "aten.hardtanh", "aten.hardsigmoid", "aten.relu6", "aten.erf"})
_PARTED = frozenset(
    f"aten.{name}"
    for name in (
        "sum", "mean", "amax", "amin", "cat", "stack", "select", "chunk", "split", "split_with_sizes", "unbind",
    )
)  # fmt: skip
"""Calls that take values apart, join them, or sum them up: infinities stay."""
_SOFTMAXES = frozenset({"aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax"})


def hidden_as_finite(r: Raiser, value: Any, sign: float) -> Any:
    """Return what is added to the current call's operand (times ``sign``), minus infinity as ``HIDDEN``.

    Other values, and those that no softmax reads, stay.
    """
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.ndim:
        return value
    signed = value * sign
    if not bool((signed < HIDDEN).any()) or not leads_to_softmax(r.node):
        return value
    shown = torch.isfinite(signed)
    if bool((~shown & (signed != -torch.inf)).any()) or not bool(shown.any(-1).all()):
        return value  # a row that sees nothing: no number there, and equal parts of all with a finite one
    return torch.where(signed < HIDDEN, HIDDEN, signed) * sign


def leads_to_softmax(node: fx.Node) -> bool:
    """Whether all that is made of an exported call's result is, in the end, softmaxes."""
    pending, known = [node], {node}
    while pending:
        users = list(_readers(pending.pop()))
        if any(_name(user) not in _LEADING | _SOFTMAXES for user in users) or not users:
            return False
        new = [user for user in users if user not in known and _name(user) in _LEADING]
        known.update(new)
        pending += new
    return True


def may_be_infinite(r: Raiser, node: fx.Node) -> bool:
    """Whether an exported call's values may be infinite, for a zero: a product with a mask of zeros is no number then.

    What is divided by is taken for a number above zero where a number was added to it, or was its least value.
    """
    pending, known = [node], {node}
    while pending:
        each = pending.pop()
        if _is_infinite_at_zero(r, each):
            return True
        if each.op != "call_function" or _name(each) in _BOUNDED:
            continue
        pointwise = torch.Tag.pointwise in getattr(each.target, "tags", ())
        if pointwise or each.target is operator.getitem or _name(each) in _LEADING | _PARTED:
            new = [source for source in each.all_input_nodes if source not in known]
            known.update(new)
            pending += new
    return False


def may_be_no_number(r: Raiser, node: fx.Node) -> bool:
    """Whether an exported call's values may be infinite or NaN, by any call before it."""
    pending, known = [node], {node}
    while pending:
        each = pending.pop()
        if each.op == "call_function" and (_is_infinite_at_zero(r, each) or _name(each) in _ROOTS):
            return True
        new = [source for source in each.all_input_nodes if source not in known]
        known.update(new)
        pending += new
    return False


def _is_infinite_at_zero(r: Raiser, node: fx.Node) -> bool:
    if node in r.known:
        held = r.known[node]
        return isinstance(held, torch.Tensor) and held.is_floating_point() and not bool(torch.isfinite(held).all())
    name = _name(node)
    numbers = [each for each in node.args if isinstance(each, int | float)]
    divisor: Any
    if name in _QUOTIENTS and len(node.args) > 1:
        divisor = node.args[1]
    elif name in _INFINITE_AT_ZERO or (name == "aten.pow" and any(each < 0 for each in numbers)):
        divisor = node.args[0]
    else:
        return any(abs(each) == torch.inf for each in numbers)
    if r.is_known(divisor):
        value = r.constant(divisor)
        return isinstance(value, torch.Tensor | int | float) and bool((torch.as_tensor(value) == 0).any())
    guarded = any(isinstance(each, int | float) and each > 0 for each in [*divisor.args, *divisor.kwargs.values()])
    return not (guarded and _name(divisor) in _GUARDS)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.op == "output" or isinstance(user.meta.get("val"), torch.Tensor):
            yield user


def _name(node: fx.Node) -> str:
    return str(node.target).rpartition(".")[0]
