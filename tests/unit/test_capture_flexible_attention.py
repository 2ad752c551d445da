"""``flex_attention``: the user's functions of a score and of its place, captured as products and a softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from cpupack import accuracy
from helpers.captured import captured
from helpers.lowered import BOUND_DB, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

_SHAPE, _HEADS = (16, 24), 4
_SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
_WINDOW = create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < 5), None, None, 16, 16, device="cpu")
_SOME_SEE_NONE = create_block_mask(lambda b, h, q, k: (q % 3 > 0) & (k < 9), None, None, 16, 16, device="cpu")


def _less(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return score - _SLOPES[h] * (q - k).abs()


def _capped(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return 3.0 * torch.tanh(score / 3.0)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "slopes": {"score_mod": _less},
    "a window": {"block_mask": _WINDOW},
    "a window of capped scores": {"score_mod": _capped, "block_mask": _WINDOW, "scale": 0.7},
    "queries that see nothing": {"score_mod": _capped, "block_mask": _SOME_SEE_NONE},
    "queries that see nothing, plain": {"block_mask": _SOME_SEE_NONE},
    "fewer heads of keys": {"score_mod": _less, "enable_gqa": True},
}


class _Attending(nn.Module):
    def __init__(self, attend: Callable[..., Any], **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = _HEADS // 2 if settings.get("enable_gqa") else _HEADS
        self.q, self.kv, self.out = nn.Linear(24, 24), nn.Linear(24, 12 * self.heads), nn.Linear(24, 4)
        self.attend, self.settings = attend, settings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, _ = x.shape
        q = self.q(x).view(n, tokens, _HEADS, -1).transpose(1, 2)
        k, v = (each.view(n, tokens, self.heads, -1).transpose(1, 2) for each in self.kv(x).chunk(2, -1))
        y = self.attend(q, k, v, **self.settings)
        result: torch.Tensor = self.out(y.transpose(1, 2).reshape(n, tokens, -1))
        return result


@needs_kernels
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", CALLS)
def test_flexible_attention_is_captured_and_runs_natively(name: str) -> None:
    net = _Attending(flex_attention, **CALLS[name])
    captured(net, _SHAPE)
    data = samples(_SHAPE)
    spec = recipe(_SHAPE, quantize={"observer": "minmax"})
    model, int8 = quantized(net, "native", spec=spec, data=data)
    assert [each.kernel for each in int8.layers if each.kernel.startswith("aten")] == []
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
