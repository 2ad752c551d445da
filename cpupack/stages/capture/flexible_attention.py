"""Has torch.export take ``flex_attention`` as the matrix products, functions and softmax that it stands for.

torch runs it as one call that holds the user's functions of a score and of its place (``score_mod`` and the mask of a
block mask). They go element by element, so they are called once, with the numbers of samples, heads, queries and keys
laid out to be broadcast.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch.nn.attention import flex_attention as library


@contextlib.contextmanager
def written_out_flexible_attention() -> Iterator[None]:
    """While it holds, what ``flex_attention`` calls is written out, under whatever name a model has it."""
    held: Any = library
    kept = held.flex_attention_hop, held._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    held.flex_attention_hop, held._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = _attend, True
    try:
        yield
    finally:
        held.flex_attention_hop, held._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = kept


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Callable[..., torch.Tensor],
    block_mask: Sequence[Any],
    scale: float,
    *_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what torch/_higher_order_ops/flex_attention.py gives: values, logarithms of sums and largest scores.

    ``query`` is ``(n, heads, queries, channels)``, ``key`` and ``value`` ``(n or 1, heads or less, keys, channels)``.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    mask_mod: Callable[..., torch.Tensor] = block_mask[-1]
    sizes = query.shape[0], query.shape[1], query.shape[2], key.shape[2]
    places = [
        torch.arange(size).reshape([-1 if axis == own else 1 for axis in range(4)]) for own, size in enumerate(sizes)
    ]
    masked = mask_mod is not library.noop_mask
    mask = mask_mod(*places) if masked else None
    if mask is not None and mask.ndim < 4:
        mask = mask.reshape([1] * (4 - mask.ndim) + list(mask.shape))
    scores = query @ key.transpose(-2, -1) * scale
    changed = score_mod(scores, *places)
    shown = changed if mask is None else torch.where(mask, changed, -math.inf)
    if score_mod is library._identity:
        result = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    elif mask is None:
        result = shown.softmax(-1) @ value
    else:
        # Of a query that sees no key the softmax would be no number, and torch gives zeros.
        sees = mask.any(-1, keepdim=True)
        powers = torch.where(mask | ~sees, changed, -math.inf).softmax(-1)
        result = (powers * sees) @ value
    return result, shown.logsumexp(-1) / math.log(2), shown.amax(-1) / math.log(2)
