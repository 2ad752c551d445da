"""Statistics of activations: the histogram against numpy's, whatever the order of the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import statistics
from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.progress import SilentProgress
from cpupack.stages.calibrate import calibrate
from cpupack.statistics import HALF_BINS, ActivationStats, StatsCollector
from helpers.tiny_models import float_model, fuse_model, recipe, samples

RNG = np.random.default_rng(0)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


BATCHES = {
    "equal ranges": [normal(50, 7), normal(50, 7)],
    "growing": [normal(100, scale=10.0**power) for power in range(-3, 4)],
    "shrinking": [normal(100, scale=10.0**-power) for power in range(-3, 4)],
    "zeros first": [np.zeros((4, 5), np.float32), np.zeros((4, 5), np.float32), normal(4, 5)],
    "zeros last": [normal(4, 5), np.zeros((4, 5), np.float32)],
    "only zeros": [np.zeros((4, 5), np.float32)],
    "negative": [-np.abs(normal(300)), -np.abs(normal(300, scale=9.0))],
    "positive": [np.abs(normal(300))],
    "relu": [np.maximum(normal(300), 0.0), np.maximum(normal(300, scale=5.0), 0.0)],
    "one value": [np.full((3, 3), 2.5, np.float32)],
    "one negative value": [np.full((3, 3), -1e-6, np.float32)],
    "a far outlier": [normal(500), np.float32([1e6])],
    "tiny, then large": [np.float32([1e-30]), np.float32([1.0, -1.0])],
    "image": [normal(2, 3, 8, 8), normal(1, 3, 8, 8, scale=3.0)],
}


def collect(batches: list[np.ndarray]) -> ActivationStats:
    collector = StatsCollector()
    for batch in batches:
        assert collector.add(torch.from_numpy(batch))
    return collector.finish()


def check_histogram(stats: ActivationStats, values: np.ndarray) -> None:
    """Every value is in its bin; torch.histc computes bins in float32, so one at an edge may be in the next one."""
    edges = (np.arange(2 * HALF_BINS + 1) - HALF_BINS) * stats.bin_width
    assert stats.counts.sum() == values.size
    below = np.concatenate([[0], np.cumsum(stats.counts)])
    slack = 2.0 * np.finfo(np.float32).eps * edges[-1]
    ordered = np.sort(values.ravel().astype(np.float64))
    assert (below >= np.searchsorted(ordered, edges - slack, side="left"))[:-1].all()
    assert (below <= np.searchsorted(ordered, edges + slack, side="left")).all()


@pytest.mark.parametrize("name", BATCHES)
def test_the_histogram_is_numpys(name: str) -> None:
    batches = BATCHES[name]
    stats = collect(batches)
    values = np.concatenate([batch.ravel() for batch in batches])
    check_histogram(stats, values)
    assert stats.batch_min.tolist() == [float(batch.min()) for batch in batches]
    assert stats.batch_max.tolist() == [float(batch.max()) for batch in batches]
    assert (stats.minimum, stats.maximum) == (float(values.min()), float(values.max()))
    assert HALF_BINS * stats.bin_width >= np.abs(values).max()


def test_values_in_the_middle_of_bins_are_counted_exactly_as_numpy_does() -> None:
    # Odd multiples of 2**-11 below 4: the middles of the final bins, exact in float32 whatever the way through.
    first = (2 * np.arange(-1024, 1024) + 1).astype(np.float32) / 2048
    second = (2 * RNG.integers(-4096, 4096, 5000) + 1).astype(np.float32) / 2048
    stats = collect([np.append(first, np.float32(1.0)), np.append(second, np.float32(4.0))])
    limit = HALF_BINS * stats.bin_width
    assert limit == 4.0
    # As in numpy, the largest value of a range is in its last bin: 1.0 stays below the edge at 1.0 when bins merge.
    values = np.concatenate([first, second, np.float32([np.nextafter(np.float32(1.0), 0), 4.0])]).astype(np.float64)
    expected, _ = np.histogram(values, bins=2 * HALF_BINS, range=(-limit, limit))
    assert np.array_equal(stats.counts, expected)


def test_the_order_of_batches_changes_no_count_when_the_widths_agree() -> None:
    small, large = normal(1000, scale=0.25), np.clip(normal(1000), -2.0, 2.0)
    small, large = np.append(small, np.float32(1.0)), np.append(large, np.float32(4.0))
    small = np.clip(small, -1.0, 1.0)
    one, other = collect([small, large]), collect([large, small])
    assert one.bin_width == other.bin_width
    # Values at an edge may be rounded across it before the bins are merged, and after.
    assert np.abs(np.cumsum(one.counts) - np.cumsum(other.counts)).max() <= 2


def test_more_values_than_float32_can_count_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(1000)
    whole = collect([values])
    monkeypatch.setattr(statistics, "_EXACT_FLOAT32_COUNT", 7)  # chunks of 7 in place of 2**24
    assert np.array_equal(collect([values]).counts, whole.counts)


def test_a_channels_last_tensor_counts_like_any_other() -> None:
    batch = torch.from_numpy(normal(2, 3, 5, 4))
    collector = StatsCollector()
    collector.add(batch.contiguous(memory_format=torch.channels_last))
    assert np.array_equal(collector.finish().counts, collect([batch.numpy()]).counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_not_added(bad: float) -> None:
    collector = StatsCollector()
    assert collector.add(torch.tensor([1.0, -1.0]))
    assert not collector.add(torch.tensor([0.5, bad]))
    stats = collector.finish()
    assert stats.counts.sum() == 2
    assert (stats.minimum, stats.maximum) == (-1.0, 1.0)


def test_huge_values_are_counted_or_refused_but_never_crash() -> None:
    # torch.histc needs the span of its range, at most four times the largest value, as a float32: so below 2**126.
    collector = StatsCollector()
    assert collector.add(torch.tensor([1.0, 8e37, -8e37]))
    assert not collector.add(torch.tensor([float(np.finfo(np.float32).max)]))
    assert collector.finish().counts.sum() == 3


def test_occupied_covers_every_value_and_nothing_more() -> None:
    stats = collect([np.float32([-0.5, 0.25, 1.0])])
    edges, counts = stats.occupied()
    assert counts.sum() == 3
    assert counts[0] > 0
    assert counts[-1] > 0
    assert edges[0] == -0.5
    assert edges[-1] == 1.0
    assert len(edges) == len(counts) + 1


def test_an_activation_that_is_not_finite_names_the_layer_and_the_samples() -> None:
    data = samples(count=8)
    data.data[5, 0, 0, 0] = np.inf
    fused = fuse_model(float_model(nn.Sequential(nn.Conv2d(3, 4, 1))), recipe(), SilentProgress())
    with pytest.raises(CalibrationError, match=r"noise\[4\] to noise\[7\]") as caught:
        calibrate(fused, data, 4, SilentProgress())
    assert caught.value.exit_code == 4


def test_every_call_is_recorded_in_one_pass_over_the_samples() -> None:
    fused = fuse_model(
        float_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))), recipe(), SilentProgress()
    )
    data: Samples = samples(count=10)
    result = calibrate(fused, data, 4, SilentProgress())
    assert result.samples == 10
    assert len(result.stats) == 3  # the input, conv + relu, the pool
    assert all(len(each.batch_min) == 3 for each in result.stats.values())  # batches of 4, 4 and 2
    sizes = sorted(int(each.counts.sum()) for each in result.stats.values())
    assert sizes == sorted([10 * 3 * 8 * 8, 10 * 4 * 6 * 6, 10 * 4 * 3 * 3])
    assert min(each.minimum for each in result.stats.values()) == float(data.data.min())


def test_a_summand_before_a_relu_counts_as_far_as_it_passes() -> None:
    """relu(x + y) = relu(max(x, -y) + y): what x is below -y is hidden, whichever way the addition is written."""

    class Block(nn.Module):
        def __init__(self, *, inplace: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.left, self.right, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.ReLU()
            self.inplace = inplace

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.left(x)
            if self.inplace:
                y += self.right(x.abs())
            else:
                y = y + self.right(x.abs())
            return self.relu(y)

    data = samples()
    for inplace in (False, True):
        model = float_model(Block(inplace=inplace))
        found = calibrate(fuse_model(model, recipe(), SilentProgress()), data, 4, SilentProgress()).stats
        with torch.inference_mode():
            x = data.tensor(slice(None))
            left, right = model.module.left(x), model.module.right(x.abs())
        assert found["left"].minimum == pytest.approx(float(torch.maximum(left, -right).min()), rel=1e-5)
        assert found["right"].minimum == pytest.approx(float(torch.maximum(right, -left).min()), rel=1e-5)
        assert found["left"].maximum >= float(left.max()) - 1e-6
