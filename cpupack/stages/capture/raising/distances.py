"""Handlers of distances and norms: errors of each value (losses without a reduction), and norms by another name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser

_ATEN = torch.ops.aten
_NO_REDUCTION = 0


def _error(function: Callable[..., Any], *arguments: Any) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    """Return a handler of ``F.mse_loss`` and the like with ``reduction="none"``: a function of the difference."""

    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        one, other = a["self"], a["target"]
        if a["reduction"] != _NO_REDUCTION or not (r.is_float() and r.is_float(one) and r.is_float(other)):
            raise NotRaised
        if r.is_known(one):
            one, other = other, one
        return r.call(function, r.call(torch.sub, r.activation(one), r.operand(other)), *arguments)

    return handler


def _broadcast(r: Raiser, a: dict[str, Any]) -> Any:
    """``broadcast_tensors``: where all have one shape already, as the losses ask for it."""
    shape = r.shape(a["tensors"][0])
    if any(r.shape(each) != shape or r.is_known(each) for each in a["tensors"]):
        raise NotRaised
    return [r.operand(each) for each in a["tensors"]]


def _norm(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``torch.linalg.norm`` over dimensions that are named: of vectors, or of matrices as if they were."""
    order, dims = a.get("ord"), a.get("dim")
    if a.get("dtype") is not None or not dims or not r.is_float(a["self"]) or not r.is_float():
        raise NotRaised
    if order is None or (len(dims) == 2 and order == "fro"):
        order = 2.0
    if isinstance(order, str) or (len(dims) != 1 and a.get("ord") not in {None, "fro"}):
        raise NotRaised  # a norm of matrices
    keepdim = bool(a.get("keepdim", False))
    return r.call(_ATEN.linalg_vector_norm.default, r.activation(a["self"]), float(order), list(dims), keepdim,
                  word="norm")  # fmt: skip


HANDLERS: dict[str, Any] = {
    "mse_loss": _error(torch.pow, 2),
    "l1_loss": _error(torch.abs),
    "broadcast_tensors": _broadcast,
    "linalg_norm": _norm,
}
"""By the name of an ATen operator."""
