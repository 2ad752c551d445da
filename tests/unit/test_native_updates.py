"""Parts of float32 values that a model writes over: native, and as torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cpupack import accuracy
from helpers.captured import Net
from helpers.lowered import BOUND_DB, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

_SHAPE = (9, 8)


def _rows(net: Any, y: torch.Tensor) -> torch.Tensor:
    y[:, ::2] = torch.tanh(y[:, 1:6])
    return y


def _block(net: Any, y: torch.Tensor) -> torch.Tensor:
    y[:, 3:7, 4:] = net.two(y)[:, 3:7, 4:]
    return y


def _one(net: Any, y: torch.Tensor) -> torch.Tensor:
    y[:, -2] = y[:, 0] * 2
    y[..., 3] = 0.5
    return y


def _new(net: Any, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty(y.shape[0], y.shape[1], y.shape[2])
    out[:, 1::2], out[:, ::2] = torch.relu(y[:, 1::2]), net.two(y)[:, ::2]
    out[:, 2:4] *= net.row
    return out


def _whole(net: Any, y: torch.Tensor) -> torch.Tensor:
    y[:] = y[:, :1].softmax(-1)
    return y


WRITES: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "every other row": _rows, "a block": _block, "one row and one column": _one, "a new tensor": _new, "all": _whole,
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", WRITES)
def test_parts_that_are_written_over_are_native(name: str) -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.last(WRITES[name](net, net.norm(net.one(x)))), one=nn.Linear(8, 8), two=nn.Linear(8, 8),
        norm=nn.LayerNorm(8), last=nn.Linear(8, 4), row=torch.linspace(0.5, 2.0, 8),
    )  # fmt: skip
    spec = recipe(_SHAPE, quantize={"observer": "minmax"})
    model, int8 = quantized(net, "native", spec=spec)
    assert [each.kernel for each in int8.layers if each.kernel.startswith("aten")] == []
    data = samples(_SHAPE, seed=1)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
