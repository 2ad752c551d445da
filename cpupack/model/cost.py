"""What a call of a model takes: multiply-adds, which are its time, and its largest tensor, which is its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one sample, and the values of the largest tensor that it has on the way."""

    macs: int
    values: int


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of operations, twice the multiply-adds, with the attention that it leaves out on CPUs."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    return FlopCounterMode(display=False, custom_mapping=attention)


def counted(module: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, Cost]:
    """Return a model's answer to a batch, and what one sample took."""
    seen, counter = _Largest(), flop_counter()
    try:
        # Not in inference mode: parametrizations (weight_norm, spectral_norm) fail there under the counter.
        with torch.no_grad(), counter, seen:
            answer: torch.Tensor = module(batch.clone())
    except Exception:  # noqa: BLE001 - the model or the counter failed: run without the counter to find out
        with torch.no_grad():
            answer = module(batch)
    return answer, Cost(counter.get_total_flops() // 2 // len(batch), seen.values // len(batch))


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count the products of attention by the kernel for CPUs."""
    return int(sdpa_flop_count(query, key, value))


class _Largest(TorchDispatchMode):
    """Keeps how many values the largest result has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = (each for each in tree_leaves(result) if isinstance(each, torch.Tensor))
        self.values = max(self.values, *(each.numel() for each in tensors), 0)
        return result
