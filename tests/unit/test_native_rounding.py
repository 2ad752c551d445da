"""How the native engine rounds: slopes before rounding, scales of parts, the steps before a table, results in FP32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.stages.quantize.native.builder import covering
from cpupack.stages.quantize.native.functions import results_of, table_of, useful_range
from cpupack.stages.quantize.native.program import Flag, Size
from cpupack.stages.quantize.native.tables import input_grid
from cpupack.statistics import StatsCollector
from helpers.lowered import BOUND_DB, kernels, lowered, needs_kernels, program_layers


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def slopes(count: int) -> nn.PReLU:
    """Slopes of either sign, some above one."""
    module = nn.PReLU(count)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.7, 1.6, count))
    return module


@needs_kernels
@pytest.mark.parametrize("channels", [1, 2, 8, 40])
def test_slopes_are_part_of_the_convolution_before_them(channels: int) -> None:
    """One rounding, not two: the values below zero are multiplied before they become codes."""
    net = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), slopes(channels), nn.Flatten(), nn.Linear(64 * channels, 5)
    )
    sqnr_db, int8, _ = lowered(net)
    assert kernels(int8) == ["conv + prelu", "conv"]
    assert sqnr_db > BOUND_DB
    assert bool(program_layers(int8)[1]["flags"] & Flag.SLOPES) == (channels > 1)  # a single slope is a table


class Shared(nn.Module):
    """A result that two calls read, so that its own values are needed too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.slopes, self.last = nn.Conv2d(3, 8, 1), slopes(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.last(self.slopes(y) + y)


@needs_kernels
@pytest.mark.parametrize(
    "net",
    [
        Shared(),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), slopes(8), nn.Conv2d(8, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, 2), slopes(6), nn.Conv2d(6, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2), nn.Linear(64, 8), slopes(8), nn.Linear(8, 4)),
        nn.Sequential(nn.Conv2d(3, 8, 1), slopes(8)),
    ],
    ids=["shared", "depthwise", "transposed", "of positions", "last"],
)
def test_slopes_elsewhere_are_right(net: nn.Module) -> None:
    sqnr_db, _, _ = lowered(nn.Sequential(net))
    assert sqnr_db > BOUND_DB


class Grown(nn.Module):
    """Features of very different sizes side by side, which norms bring to one size."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small, self.tiny = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(14, 5, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in (8, 14, 19))
        self.last = nn.Conv2d(19, 4, 1)
        sizes = torch.cat([torch.ones(8), torch.full((6,), 1 / 400), torch.full((5,), 1 / 30000)])
        with torch.no_grad():
            for layer, size in ((self.small, 1 / 400), (self.tiny, 1 / 30000)):
                layer.weight *= size
                layer.bias *= size
            for norm in self.norms:
                norm.running_var.copy_(sizes[: len(norm.running_var)] ** 2 * 0.25)
                norm.eps = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [F.relu(self.large(x))]
        for norm, layer in zip(self.norms, (self.small, self.tiny, self.last), strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return features[-1]


@needs_kernels
def test_parts_that_norms_alone_read_keep_their_scale() -> None:
    """In the range of the largest part, the others would be less than one of its 255 steps: nothing would be left."""
    sqnr_db, int8, _ = lowered(nn.Sequential(Grown()))
    assert sqnr_db > BOUND_DB
    scales = {fact.name: fact.scale for fact in int8.layers}
    large, small, tiny = (scales[f"0.{name}"] for name in ("large", "small", "tiny"))
    assert large is not None
    assert small is not None
    assert tiny is not None
    assert large / small > 100.0
    assert small / tiny > 20.0
    assert [fact.scale for fact in int8.layers if fact.kind == "cat"][-1] is None


@pytest.mark.parametrize("function", [F.silu, F.hardswish, F.gelu, F.mish], ids=lambda each: each.__name__)
@pytest.mark.parametrize("spread", [0.7, 1.3, 2.0, 3.1])
def test_errors_of_a_table_cancel_out(function: nn.Module, spread: float) -> None:
    """A rounding error has a spread of 0.29 steps; what all values have in common is a small part of that."""
    collector = StatsCollector()
    values = torch.randn(4, 16, 32, 32) * spread
    collector.add(values)
    stats = collector.finish()
    limits = float(values.min()), float(values.max())
    results = function(values)
    result = covering(Size(1, 1, 1), (float(results.min()), float(results.max())))
    grid = input_grid(function, stats, limits, result)
    codes = np.clip(np.rint(values.numpy() / grid.scale) + grid.zero_point, 0, 255).astype(int)
    errors = (
        table_of(function, grid, result)[codes].astype(float) - result.zero_point
    ) - results.numpy() / result.scale
    assert abs(errors.mean()) < 0.04
    narrow = covering(Size(1, 1, 1), useful_range(function, limits, result))
    assert 1.0 <= grid.scale / narrow.scale < 1.13
    assert np.isfinite(results_of(function, np.array([-1e3, 1e3]))).all()


class Heads(nn.Module):
    """A detector's: what each place is, as shares, beside where it is."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.conv, self.what, self.where, self.axis = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1), axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv(x))
        shares = torch.softmax(self.what(y), 1)
        return torch.cat([self.where(y), shares] if self.axis == 1 else [self.where(y)[:, :2], shares], self.axis)


@needs_kernels
@pytest.mark.parametrize("axis", [1, 2])
def test_parts_of_a_result_leave_without_a_copy(axis: int) -> None:
    sqnr_db, _, model = lowered(nn.Sequential(Heads(axis)))
    assert sqnr_db > BOUND_DB
    assert model.operators["cpupack::float_map"] == (2 if axis == 1 else 3)  # else both to a tensor, and that
