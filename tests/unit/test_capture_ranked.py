"""Medians, quantiles, places of maxima and repeated masks: calls of one piece, captured in calls that have kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.captured import Net, captured, kinds
from helpers.lowered import BOUND_DB, Calls, kernels, lowered, needs_kernels

Function = Callable[[torch.Tensor], torch.Tensor]
RANKED: dict[str, Function] = {
    "median": lambda x: x.median(2).values,
    "median of an even number": lambda x: x.median(dim=1, keepdim=True)[0],
    "place of a median": lambda x: x.median(3).indices.float(),
    "second": lambda x: x.kthvalue(2, 3)[0],
    "last but one": lambda x: x.kthvalue(8, -1, keepdim=True)[0],
    "place": lambda x: x.kthvalue(3, dim=2, keepdim=True).indices.float(),
    "quantile": lambda x: torch.quantile(x, 0.3, dim=3),
    "high quantile": lambda x: x.quantile(0.95, dim=2, keepdim=True),
    "largest": lambda x: torch.quantile(x, 1.0, dim=2),
    **{
        how: lambda x, how=how: torch.quantile(x, 0.55, dim=3, interpolation=how)
        for how in ("lower", "higher", "nearest", "midpoint")
    },
}


@pytest.mark.parametrize("name", RANKED)
def test_values_by_their_rank_are_an_end_of_the_ordered_ones(name: str) -> None:
    found = kinds(captured(Net(lambda _, x: RANKED[name](x)), (4, 5, 9)))
    assert "topk.default" in found
    assert not {"median.dim", "kthvalue.default", "quantile.scalar"} & set(found)


@needs_kernels
def test_a_median_filter_runs_natively() -> None:
    def median(x: torch.Tensor) -> torch.Tensor:
        windows = F.pad(x, [1] * 4, mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1)
        return windows.contiguous().view(*windows.shape[:4], -1).median(-1)[0]

    db, int8, _ = lowered(Calls(median))
    assert db > BOUND_DB
    assert "aten" not in kernels(int8)


class SegNet(nn.Module):
    """Pools whose places unpooling reads, one after the other."""

    def __init__(self, kernel: int | tuple[int, int]) -> None:
        super().__init__()
        self.one, self.two, self.back = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.pool, self.unpool = nn.MaxPool2d(kernel, return_indices=True), nn.MaxUnpool2d(kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, places = self.pool(torch.relu(self.one(x)))
        second, more = self.pool(torch.relu(self.two(first)))
        back = torch.relu(self.back(self.unpool(second, more)))
        return self.unpool(back, places, output_size=x.shape[2:])


@pytest.mark.parametrize(("kernel", "shape"), [(2, (3, 8, 12)), ((1, 3), (3, 5, 18)), ((3, 2), (3, 9, 8))])
def test_unpooling_has_no_numbers_of_pixels(kernel: int | tuple[int, int], shape: tuple[int, ...]) -> None:
    found = kinds(captured(SegNet(kernel), shape))
    assert not [each for each in found if "pool" in each and each != "MaxPool2d"]


def test_the_first_of_equal_values_is_the_place_of_the_largest() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        values, places = F.max_pool2d(torch.round(x), 2, return_indices=True)
        return F.max_unpool2d(values, places, 2)

    captured(Net(forward), (3, 6, 6))


@pytest.mark.parametrize("net", ["padded", "overlapping", "read"])
def test_other_places_of_maxima_stay_as_they_are(net: str) -> None:
    def forward(own: Net, x: torch.Tensor) -> torch.Tensor:
        settings = {"padded": (2, 2, 1), "overlapping": (3, 2, 0), "read": (2, 2, 0)}[net]
        values, places = F.max_pool2d(x, *settings, return_indices=True)
        if net == "read":
            return values + places.float()
        return F.max_unpool2d(values, places, settings[0], settings[1], settings[2], output_size=x.shape[2:])

    assert "max_pool2d_with_indices.default" in kinds(captured(Net(forward), (3, 9, 9) if net != "read" else (3, 8, 8)))


@needs_kernels
def test_segnet_runs_natively() -> None:
    db, int8, _ = lowered(SegNet(2), (3, 8, 8))
    assert db > 0.0  # of random scores some are as good as equal, and another one is the largest
    assert "aten" not in kernels(int8)


def test_a_mask_that_is_repeated_for_rows_is_added_once() -> None:
    """Criss-cross attention: what hides a place from itself has one copy for each column of each sample."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        columns = x.permute(0, 3, 1, 2).reshape(batch * width, channels, height)
        hidden = -torch.diag(torch.tensor(float("inf")).repeat(height), 0).unsqueeze(0).repeat(batch * width, 1, 1)
        scores = (columns.transpose(1, 2) @ columns + hidden).softmax(-1)
        return (columns @ scores).reshape(batch, width, channels, height)

    assert "repeat.default" not in kinds(captured(Net(forward), (3, 5, 4)))
