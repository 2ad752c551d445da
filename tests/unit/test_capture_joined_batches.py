"""Batches that are joined, for one network to see them, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cpupack import accuracy
from helpers.captured import Net, captured
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

FORWARDS: dict[str, Callable[[Net, torch.Tensor], torch.Tensor]] = {
    "chunk": lambda net, x: torch.sub(*net.see(torch.cat([x, x.flip(-1)])).chunk(2)),
    "split": lambda net, x: sum(
        (at + 1) * each for at, each in enumerate(net.see(torch.cat([x, x * 2, -x])).split(len(x)))
    ),
    "slices": lambda net, x: (lambda both: both[: len(x)] * 2 - both[len(x) :])(net.see(torch.cat((x, x.flip(-2)), 0))),
    "vectors": lambda net, x: torch.cat(
        net.last(torch.cat([net.see(x).mean((2, 3)), net.see(-x).mean((2, 3))])).chunk(2), 1
    ),
}  # fmt: skip


def net_of(name: str) -> Net:
    torch.manual_seed(0)
    return Net(
        FORWARDS[name], see=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), last=nn.Linear(4, 3)
    )


@needs_kernels
@pytest.mark.parametrize("name", FORWARDS)
def test_joined_batches_run_natively(name: str) -> None:
    captured(net_of(name))
    data = samples(count=8)
    model, int8 = quantized(net_of(name), "native", spec=recipe(quantize={"observer": "minmax"}), data=data)
    assert not [fact for fact in int8.layers if fact.kernel.startswith("aten")]
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 28.0
