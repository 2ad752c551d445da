"""Batches that are joined, for one network to see them, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.errors import ModelError
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


class _Folded(nn.Module):
    """Supports and queries of each sample, ``(5, 1, 8, 8)`` in all, in one batch."""

    def __init__(self, apart: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.last, self.apart = nn.Linear(72, 6), apart

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, shown = x.shape[0], 3
        support, query = x[:, :shown].reshape(n * shown, 1, 8, 8), x[:, shown:].reshape(-1, 1, 8, 8)
        both = self.last(self.see(torch.cat([support, query], 0)))
        if self.apart == "normalized":
            both = torch.nn.functional.normalize(both, dim=1)
        if self.apart in {"split", "normalized"}:
            one, two = both.split([support.size(0), query.size(0)])
        else:
            one, two = both[: n * shown], both[n * shown :]
        prototypes = one.view(n, shown, -1).mean(1, keepdim=True)
        if self.apart == "meet":
            prototypes = prototypes + both.mean()
        return -(two.view(n, 2, -1) - prototypes).square().sum(-1)


@needs_kernels
@pytest.mark.parametrize("apart", ["slices", "split", "normalized"])
def test_unlike_batches_that_are_joined_run_natively(apart: str) -> None:
    data = samples((5, 8, 8), count=8)
    net = Net(lambda net, x: net.folded(x[:, :, None]), folded=_Folded(apart))
    captured(net, (5, 8, 8))
    spec = recipe((5, 8, 8), quantize={"observer": "minmax"})
    model, int8 = quantized(net, "native", spec=spec, data=data)
    assert not [fact for fact in int8.layers if fact.kernel.startswith("aten")]
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 28.0


def test_rows_of_unlike_batches_that_meet_are_refused() -> None:
    net = Net(lambda net, x: net.folded(x[:, :, None]), folded=_Folded("meet"))
    with pytest.raises(ModelError, match="depends on the other samples"):
        captured(net, (5, 8, 8))
