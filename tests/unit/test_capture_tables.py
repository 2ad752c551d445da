"""Rows of constants by computed numbers, however the look-up is written: native, and exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

TABLE = torch.arange(10 * 4, dtype=torch.float32).reshape(10, 4).sin()
WIDE = torch.arange(3 * 10 * 2, dtype=torch.float32).reshape(3, 10, 2).cos()
LOOK_UPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "index_select of rows": lambda places: TABLE.index_select(0, places),
    "an identity": lambda places: torch.eye(10).index_select(0, places),
    "index_select of columns": lambda places: TABLE.t().index_select(1, places).t(),
    "an index of columns": lambda places: TABLE.t()[:, places].t(),
    "in the middle": lambda places: WIDE[:, places].permute(1, 0, 2),
    "in the middle, from the end": lambda places: WIDE.index_select(-2, places).transpose(0, 1),
    "several of a sample": lambda places: TABLE.t()[:, torch.stack([places, places - 3], 1)].permute(1, 2, 0),
    "take": lambda places: torch.take(TABLE, places * 4 + 1),
}


class Chosen(nn.Module):
    """What is looked up at the place of the largest value, beside what a layer makes of the input."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.layer = function, nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.layer(x), self.function(x.argmax(1)).flatten(1)], 1)


@needs_kernels
@pytest.mark.parametrize("name", LOOK_UPS)
def test_rows_of_constants_are_looked_up(name: str) -> None:
    function = LOOK_UPS[name]
    net = Chosen((lambda places: function(places)[:, None]) if name == "take" else function)
    data = samples((6,), 24)
    model, int8 = quantized(net, "native", spec=recipe((6,)), data=data)
    assert not [each for each in int8.layers if each.kernel == "aten"]
    np.testing.assert_allclose(run(int8, data)[:, 10:], run(model, data)[:, 10:], rtol=0, atol=0)
