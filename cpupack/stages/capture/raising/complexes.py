"""Handlers of complex numbers: pairs of values that are multiplied with constants (rotary positions), as real ones.

``view_as_real(view_as_complex(x) * turns)`` turns pairs (a, b) to (a c - b s, a s + b c). Other complex arithmetic is
kept as it is.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser

_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mul.Tensor, _ATEN.multiply.Tensor)
_COPIES = (_ATEN.contiguous.default, _ATEN.clone.default)


def _pairs(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``view_as_complex``: the pairs themselves, where all that is done with them is a product with a constant."""
    if not r.is_float(a["self"]) or not all(_is_turn(r, user, r.node) for user in r.node.users):
        raise NotRaised
    return r.activation(a["self"])


def _is_turn(r: Raiser, product: fx.Node, source: fx.Node) -> bool:
    if product.target not in _PRODUCTS or not all(_is_real(user) for user in product.users):
        return False
    others = [each for each in product.args if each is not source]
    alike = product.meta["val"].ndim == source.meta["val"].ndim and product.meta["val"].dtype == torch.complex64
    return alike and len(others) == 1 and isinstance(others[0], fx.Node) and _will_be_known(r, others[0])


def _will_be_known(r: Raiser, node: fx.Node) -> bool:
    """Whether a tensor depends on constants alone: it may come later in the graph than the pairs."""
    pending, seen = [node], {node}
    while pending:
        each = pending.pop()
        if each in r.known:
            continue
        if each in r.made or not each.all_input_nodes:
            return False
        new = [one for one in each.all_input_nodes if one not in seen]
        seen.update(new)
        pending += new
    return isinstance(node.meta.get("val"), torch.Tensor)


def _is_real(node: fx.Node) -> bool:
    if node.target in _COPIES:
        return all(_is_real(user) for user in node.users)
    return node.target is _ATEN.view_as_real.default


def turned(r: Raiser, left: Any, right: Any) -> fx.Node:
    """Return the product of complex pairs and a constant, as pairs; raise NotRaised for other complex numbers."""
    if r.is_known(left):
        left, right = right, left
    pairs = r.activation(left)
    if left.target is not _ATEN.view_as_complex.default or pairs.target is left.target:
        raise NotRaised
    turns = r.tensor(right)
    assert turns is not None
    values = torch.view_as_real(turns.to(torch.complex64).resolve_conj())
    cosines, sines = values[..., :1].expand_as(values), values[..., 1:] * torch.tensor([-1.0, 1.0])
    name = f"{r.weight_name(right) or left.name}_turns"
    last = [slice(None)] * len(r.shape(left))
    parts = [r.call(operator.getitem, pairs, (*last, slice(at, at + 1)), word="getitem") for at in (1, 0)]
    swapped = r.call(torch.cat, parts, len(last))
    return r.call(
        torch.add,
        r.call(torch.mul, pairs, r.attribute(cosines.contiguous(), f"{name}.cosines")),
        r.call(torch.mul, swapped, r.attribute(sines.contiguous(), f"{name}.sines")),
    )


def _as_real(r: Raiser, a: dict[str, Any]) -> fx.Node:
    pairs = r.activation(a["self"])
    if pairs.target is torch.add:
        return pairs  # what `turned` made
    raise NotRaised


HANDLERS: dict[str, Any] = {"view_as_complex": _pairs, "view_as_real": _as_real}
