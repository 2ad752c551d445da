"""Sorting, the k largest, gathers, scatters, running products and images between pixels: native, and as torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.stages.quantize.native.walks import Sampling, Surroundings
from helpers.float_nets import EXTREMES
from helpers.lowered import needs_kernels
from helpers.place_nets import order_of, sample
from helpers.tiny_models import quantized, recipe, run, samples

Call = Callable[[torch.Tensor], torch.Tensor]
_SHAPE = (6, 5)


class Placing(nn.Module):
    """What ``call`` makes of the input itself, beside a layer, so that one part of the result is exact."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.call, self.layer = call, nn.Linear(30, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.call(x).float().flatten(1), self.layer(x.flatten(1))], 1)


def _numbers(x: torch.Tensor, most: int) -> torch.Tensor:
    """Places that depend on the input."""
    return (x.abs() * 3).long().clamp(0, most)


def _mean(x: torch.Tensor) -> torch.Tensor:
    base = x[:, :3].clone()
    return base.scatter_reduce(1, _numbers(x, 2), x, "mean", include_self=False)


def _joined(x: torch.Tensor) -> torch.Tensor:
    """As DGCNN picks the rows of all samples in one."""
    n, rows, channels = x.shape
    places = x[..., 0].topk(3, 1)[1] + torch.arange(n).view(-1, 1) * rows
    return x.contiguous().view(n * rows, channels)[places.view(-1)].view(n, 3, channels)


_NO_EQUALS = {
    "largest",
    "row and column of the largest",
    "smallest",
    "places of the largest",
    "order of an order",
    "by samples",
    "through the batch",
}
"""Calls of topk, which keeps no order of equal values in torch."""
CALLS: dict[str, Call] = {
    "largest": lambda x: torch.cat([each.float() for each in x.topk(3, 1)], 1),
    "smallest": lambda x: torch.cat([each.float() for each in x.topk(2, -1, largest=False)], 2),
    "places of the largest": lambda x: x.topk(4, 1)[1],
    "sort": lambda x: torch.cat([each.float() for each in x.sort(1)], 1),
    "sort down": lambda x: torch.cat([each.float() for each in torch.sort(x, dim=2, descending=True, stable=True)], 2),
    "argsort": lambda x: x.argsort(1, descending=True),
    "order of an order": lambda x: x.topk(4, 1)[1].sort(1)[0],
    "gather": lambda x: x.gather(1, x.argsort(1)[:, :3]),
    "gather of less": lambda x: x.gather(2, _numbers(x, 4)[:, :2, :3]),
    "by samples": lambda x: x[torch.arange(x.shape[0])[:, None], x[..., 1].topk(3, 1)[1] - 6],
    "through the batch": _joined,
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    "scatter a number": lambda x: x.scatter(2, x.argmax(2, keepdim=True), 7.0),
    "scatter_add": lambda x: x[:, :4].scatter_add(1, _numbers(x, 3), x * 2),
    "messages": lambda x: torch.zeros_like(x).scatter_add(1, _numbers(x[:, :, :1], 5).expand(-1, -1, 5), x),
    "largest of several": lambda x: x[:, :3].scatter_reduce(1, _numbers(x, 2), x, "amax"),
    "products": lambda x: x[:, :3].scatter_reduce(1, _numbers(x, 2), x, "prod"),
    "means of several": lambda x: x[:, :3].scatter_reduce(1, _numbers(x, 2), x, "mean"),
    "means of others": _mean,
    "counts": lambda x: torch.zeros_like(x).long().scatter_add(1, _numbers(x, 5), torch.ones_like(x).long()),
    "cumprod": lambda x: torch.cumprod(x, 1),
    "cummax": lambda x: torch.cummax(x, 2)[0],
    "cummin": lambda x: torch.cummin(x, 1)[0],
    "row and column of the largest": lambda x: torch.stack(
        [x.flatten(1).topk(3)[1] // 5, x.flatten(1).topk(3)[1] % 5, torch.fmod(x.flatten(1).topk(3)[1] - 9, 5)], 1
    ),
    "halves of places": lambda x: torch.div(x.argsort(1) - 3, 2, rounding_mode="trunc"),
    "buckets": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5])),
    "buckets from the right": lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 0.5]), x, side="right"),
    "grid": lambda x: F.affine_grid(x.flatten(1)[:, :6].view(-1, 2, 3), [x.shape[0], 1, 3, 4], align_corners=False),
    "logarithms of running sums": lambda x: (x * 40).logcumsumexp(1) + x.logcumsumexp(2),
    "sampled images of a sample": lambda x: F.grid_sample(
        x.reshape(-1, 1, 2, 5), x.flatten(1)[:, :24].reshape(-1, 2, 2, 2), align_corners=False
    ).unflatten(0, (-1, 3)),
    "grid of a volume": lambda x: F.affine_grid(
        x.flatten(1)[:, :12].view(-1, 3, 4), [x.shape[0], 1, 2, 3, 2], align_corners=True
    ),
    "sampled volume": lambda x: F.grid_sample(
        x.reshape(-1, 1, 2, 3, 5), x.flatten(1)[:, :24].reshape(-1, 2, 2, 2, 3), align_corners=False
    ),
    "nearest of a volume": lambda x: F.grid_sample(
        x.reshape(-1, 5, 3, 2, 1), x.flatten(1)[:, :24].reshape(-1, 2, 2, 2, 3) * 1.01, "nearest", "border", True
    ),
    "sampled": lambda x: F.grid_sample(x[:, None], x[:, :2, :4].reshape(-1, 2, 2, 2), align_corners=True),
}


@needs_kernels
@pytest.mark.parametrize("name", CALLS)
def test_computed_places_are_native_and_those_of_torch(name: str) -> None:
    data = samples(_SHAPE, count=6)
    data.data[:] = np.round(data.data * 2) / 4  # so that many values are equal
    data.data[0, :, 0] = 0.0
    if name in _NO_EQUALS:
        data.data[:] += np.linspace(0, 0.1, data.data[0].size, dtype=np.float32).reshape(_SHAPE)
    model, int8 = quantized(Placing(CALLS[name]), "native", spec=recipe(_SHAPE), data=data)
    assert [each.kernel for each in int8.layers if not each.kernel.startswith("cpupack")] == []
    wanted, found = run(model, data)[:, :-4], run(int8, data)[:, :-4]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


class Choosing(nn.Module):
    """The rows with the largest scores, by a router that is one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.layer, self.out = nn.Linear(8, 1), nn.Linear(8, 10), nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.router(x)[..., 0].topk(4, 1)[1]
        return self.out(self.layer(x).relu()[torch.arange(x.shape[0])[:, None], places].flatten(1))


@needs_kernels
def test_what_is_chosen_by_order_is_what_fp32_chooses() -> None:
    data = samples((16, 8), count=32)
    model, int8 = quantized(Choosing(), "native", spec=recipe((16, 8)), data=data)
    reasons = {each.name: each.reason for each in int8.layers}
    assert "chosen by order" in reasons["router"]
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 35.0


@needs_kernels
def test_a_place_that_is_not_there_is_an_error() -> None:
    data = samples(_SHAPE, count=6)
    module = Placing(lambda x: x.gather(1, (x[:, :2] * 0 + x[:, :1].abs().clamp(max=1) * 5).long()))
    _, int8 = quantized(module, "native", spec=recipe(_SHAPE), data=data)
    wrong = data.tensor(slice(None)).clone()
    wrong[3] = torch.nan
    with torch.inference_mode(), pytest.raises(RuntimeError, match="a tensor that it indexes"):
        int8.module(wrong)


def test_equal_values_keep_their_order_and_what_is_no_number_is_the_largest() -> None:
    values = np.random.default_rng(0).choice(EXTREMES, (20, 40))
    for down in (False, True):
        expected = torch.sort(torch.from_numpy(values), dim=-1, descending=down, stable=True)[1].numpy()
        np.testing.assert_array_equal(order_of(values, down=down), expected)


@pytest.mark.parametrize("corners", [False, True])
def test_an_image_between_its_pixels_is_what_torch_says(corners: bool) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(2, 3, 5, 6)).astype(np.float32)
    grid = random.uniform(-2, 2, (2, 7, 4, 2)).astype(np.float32)
    grid[0, 0] = np.array([[np.nan, 0.3], [-1, np.inf], [1, -1], [0, 0]])
    for how, around in itertools.product(Sampling, Surroundings):
        wanted = F.grid_sample(
            torch.from_numpy(x), torch.from_numpy(grid), ["bilinear", "nearest", "bicubic"][how],
            ["zeros", "border", "reflection"][around], corners,
        )  # fmt: skip
        with np.errstate(invalid="ignore"):  # no number among the places
            found = sample(x, grid, how, around, corners=corners)
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)
