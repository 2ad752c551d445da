"""Calls on values in FP32: whole powers, and what meets truth values, indices or several results of torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from helpers.lowered import BOUND_DB, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

SHAPE = (3, 8, 8)


class AfterNorm(nn.Module):
    """A convolution, a LayerNorm, whose result stays FP32, ``(n, 64, 16)``, and a function of that."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(F.layer_norm(self.conv(x).flatten(2).transpose(1, 2), (16,)))


# All are continuous, so that a small error of the convolution leaves a small one.
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a power above 8, of negative values": lambda x: x**10,
    "an odd power above 8": lambda x: x**9,
    "a high power": lambda x: (0.4 * x) ** 20,
    "a negative power": lambda x: (x.abs() + 1.0) ** -3,
    "a choice": lambda x: torch.where(x > 0, x, 0.1 * x),
    "a product with a mask": lambda x: x * (x > 0),
    "a mask as numbers": lambda x: (x > 0).float() * x + 1.0,
    "a mask that is turned over": lambda x: x.masked_fill(~(x > 0), 0.0),
    "one of several results": lambda x: x.topk(3, 2)[0],
    "several results that meet FP32 again": lambda x: torch.cat([x.topk(3, 2)[0], x.softmax(2)], 2),
    "a sorted row": lambda x: x.sort(2)[0].softmax(2),
    "values at the place of the largest": lambda x: x.gather(2, x.argmax(2, keepdim=True)),
    "a mask of sums over positions": lambda x: torch.where(x.cumsum(1) > 1e9, x, 2.0 * x),
}


@needs_kernels
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_as_in_torch(name: str) -> None:
    torch.manual_seed(0)
    data = samples(SHAPE)
    spec = recipe(SHAPE, quantize={"observer": "minmax"})
    model, int8 = quantized(AfterNorm(FUNCTIONS[name]), "native", spec=spec, data=data)
    # A power makes relative errors several times as large. What is wrong leaves 10 dB at most.
    bound_db = BOUND_DB - 10.0 if "power" in name else BOUND_DB
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > bound_db
    few = samples(SHAPE, count=3, seed=1)
    assert run(int8, few).shape == run(model, few).shape
