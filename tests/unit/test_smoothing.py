"""Channels are brought to nearer sizes before they become codes, where a linear layer loses less so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cpupack.stages.calibrate.smoothing import divisors_of
from helpers.lowered import lowered, needs_kernels

CHANNELS = 32


def rows(factor: float, channel: int = 5) -> torch.Tensor:
    """Return normal rows, with a channel that is so many times as large as the others."""
    found = torch.randn(512, CHANNELS, generator=torch.Generator().manual_seed(0))
    found[:, channel] *= factor
    return found


def weight() -> torch.Tensor:
    return torch.randn(24, CHANNELS, generator=torch.Generator().manual_seed(1))


def test_a_large_channel_is_divided_by_more_than_the_others() -> None:
    found = divisors_of(rows(50.0), weight())
    assert found is not None
    others = torch.cat([found[:5], found[6:]])
    assert float(found[5] / others.median()) > 3.0  # 50 to the power of the share that tokens give away, 0.35 at least
    assert float(others.max() / others.min()) < 3.0
    assert torch.allclose((rows(50.0) / found) @ (weight() * found).T, rows(50.0) @ weight().T, atol=1e-2)


@pytest.mark.parametrize("values", [rows(1.0), torch.zeros(9, CHANNELS), rows(float("inf")), rows(float("nan"))])
def test_nothing_is_divided_where_it_does_not_help(values: torch.Tensor) -> None:
    assert divisors_of(values, weight()) is None


def test_channels_without_values_or_weights_stay_finite() -> None:
    values, weights = rows(50.0), weight()
    values[:, 7], weights[:, 9] = 0.0, 0.0
    found = divisors_of(values, weights)
    assert found is not None
    assert bool(torch.isfinite(found).all())
    assert float(found.min()) > 0.0


class Tokens(nn.Module):
    """A norm with a channel of large gain, and layers that read it, some beside a sum: as in a BERT."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.one, self.two = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 24), nn.Linear(CHANNELS, CHANNELS)
        self.alone = alone
        with torch.no_grad():
            self.norm.weight[3] = 60.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return torch.cat([self.one(x), self.two(x) if self.alone else self.two(x) + x], 2)


@needs_kernels
@pytest.mark.parametrize("alone", [True, False])
def test_the_engine_divides_with_the_norm_or_while_it_makes_codes(*, alone: bool) -> None:
    smooth, int8, _ = lowered(Tokens(alone=alone), (6, CHANNELS))
    plain, other, _ = lowered(Tokens(alone=alone), (6, CHANNELS), smooth=False)
    assert smooth > plain + 3.0  # dB: codes of 31 channels have 60 ** 0.35 = 4 times as many steps, and weights fewer
    assert sum("smoothed" in each.kernel for each in int8.layers) == 2
    assert not any("smoothed" in each.kernel for each in other.layers)


class Pooled(nn.Module):
    """Shares of a signal that are above a number, beside its maxima, which are much larger: as ROCKET has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(1, 16, 9), nn.Linear(32, 4)
        with torch.no_grad():
            self.conv.weight *= 20.0
            self.head.weight[:, :16] *= 40.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.head(torch.cat([(y > 2.0).float().mean(2), y.amax(2)], 1))


@needs_kernels
def test_channels_of_one_row_are_divided_too_where_the_layer_reads_float32_values() -> None:
    smooth, int8, _ = lowered(Pooled(), (1, 48))
    plain, _, _ = lowered(Pooled(), (1, 48), smooth=False)
    assert smooth > plain + 3.0
    assert any("smoothed" in each.kernel for each in int8.layers)


def test_features_that_few_rows_show_are_not_divided_by_what_these_rows_say() -> None:
    """A feature that is zero in eight rows was divided by next to nothing: 19 dB on other rows in place of 40."""
    generator = torch.Generator().manual_seed(8)
    features = torch.randn(8, 512, generator=generator).relu()
    assert divisors_of(features, torch.randn(5, 512, generator=generator)) is None
    shares = torch.rand(8, 64, generator=generator)
    weight = torch.randn(5, 128, generator=generator) * torch.cat([torch.full((64,), 20.0), torch.ones(64)])
    assert divisors_of(torch.cat([shares, 20 * torch.rand(8, 64, generator=generator)], 1), weight) is not None
    assert divisors_of(features[:3], torch.randn(5, 512, generator=generator)) is None
