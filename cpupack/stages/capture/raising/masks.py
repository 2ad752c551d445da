"""Masks of scores that a softmax reads: minus infinity becomes a finite number whose power is 0 as well.

A calibration of values that are not finite says nothing, so other infinities are errors there.
"""

from __future__ import annotations

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


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.op == "output" or isinstance(user.meta.get("val"), torch.Tensor):
            yield user


def _name(node: fx.Node) -> str:
    return str(node.target).rpartition(".")[0]
