"""Places that are computed of bounded floats are whole numbers that float32 has: no call on them is left to torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers.captured import Net
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

BOUNDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clamp": lambda x: x.clamp(0.0, 0.999) * 8,
    "sigmoid": lambda x: torch.floor(torch.sigmoid(x) * 7.5),
    "tanh": lambda x: (torch.tanh(x) + 1.0) / 2.0 * 7.9,
    "where": lambda x: torch.where(x >= 1.0, torch.full_like(x, 0.99), x).clamp(min=0.0) * 8,
    "relu6": lambda x: nn.functional.relu6(x) - 0.0,
}


def splatted(net: Net, x: torch.Tensor, bound: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sum values into a grid of 8 by 8, as networks of points do."""
    at = bound(x.flatten(2)).long()
    cells = at[:, 0] + 8 * at[:, 1]
    return torch.zeros(len(x), 64).scatter_add(1, cells, net.a(x).flatten(2)[:, 0])


@needs_kernels
@pytest.mark.parametrize("name", BOUNDS)
def test_places_in_a_grid_need_no_torch(name: str) -> None:
    torch.manual_seed(0)
    module = Net(lambda net, x: splatted(net, x, BOUNDS[name]), a=nn.Conv2d(3, 4, 1))
    data = samples(count=8)
    model, int8 = quantized(module, "native", spec=recipe(quantize={"observer": "minmax"}), data=data)
    assert not [fact for fact in int8.layers if fact.kernel.startswith(("aten", "torch"))]
    error = run(model, data) - run(int8, data)
    assert math.sqrt(float((error**2).mean())) < 0.1
