"""Has torch.export take the experts of transformers as layers that all tokens go through, each with its share.

The library sorts the tokens of all samples by their experts and multiplies each group with its own matrices. How many
tokens a group has depends on the values, and on the other samples of the batch, so no program of the engine has such a
tensor. Where the experts are not many times as many as each token has, all of them are computed for all tokens: a token
has a share of 0 of the experts that it was not sent to.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads

_MOST_TIMES = 8
"""So many times the products of the experts that a token is sent to, in INT8: torch's way takes less time beyond."""

_FACTS = ("num_experts", "has_gate", "has_bias", "is_transposed", "act_fn")
"""What a module of experts says of itself. Of a release that has other names its experts stay as it computes them; one
that lacks the others that are asked for below has no such experts yet."""


@contextlib.contextmanager
def computed_experts() -> Iterator[None]:
    """While it holds, transformers' modules of experts are written out, whichever of its ways a model asks for."""
    library: Any = sys.modules.get("transformers.integrations.moe")
    kind: Any = getattr(library, "ExpertsInterface", None)
    plain: Any = getattr(kind, "get_interface", None)
    if plain is None:
        yield
        return

    def chosen(self: Any, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return _written_out(plain(self, name, default))

    kind.get_interface = chosen
    try:
        yield
    finally:
        kind.get_interface = plain


def _written_out(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, tokens: torch.Tensor, places: torch.Tensor, shares: torch.Tensor, **more: Any) -> Any:
        known = all(hasattr(self, each) for each in _FACTS)
        few = known and self.num_experts <= _MOST_TIMES * places.shape[-1]
        if not few or getattr(self, "_is_expert_parallel", False) or more or tokens.ndim != 2:
            return otherwise(self, tokens, places, shares, **more)
        return _all(self, tokens, places, shares)

    return run


def _all(experts: Any, tokens: torch.Tensor, places: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return ``(tokens, values)``: of each token the sum of what its experts give, times its shares ``(tokens, k)``."""
    of_each = shares.new_zeros(shares.shape[0], experts.num_experts).scatter(1, places, shares)
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    total: Any = 0.0
    for number in range(experts.num_experts):
        y = _layer(experts, first, number, tokens)
        y = experts._apply_gate(y) if experts.has_gate else experts.act_fn(y)
        y = _layer(experts, "down_proj", number, y)
        if getattr(experts, "has_post_expert_norm", False):
            y = experts.post_expert_norm(y)
        total = total + y * of_each[:, number : number + 1]
    result: torch.Tensor = total
    return result


def _layer(experts: Any, name: str, number: int, x: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, name)[number]
    bias = getattr(experts, f"{name}_bias")[number] if experts.has_bias else None
    return F.linear(x, weight.t() if experts.is_transposed else weight, bias)
