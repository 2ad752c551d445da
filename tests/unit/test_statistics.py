"""Statistics of activations: the histogram against numpy's, whatever the order of the batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

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


def counted(values: np.ndarray, bin_width: float) -> np.ndarray:
    """Return the counts of bins ``[i * bin_width, (i + 1) * bin_width)``, from plain numpy in float64."""
    bins = np.floor(values.ravel().astype(np.float64) / bin_width).astype(np.int64) + HALF_BINS
    return np.bincount(bins, minlength=2 * HALF_BINS)


@pytest.mark.parametrize("name", BATCHES)
def test_the_histogram_is_numpys(name: str) -> None:
    batches = BATCHES[name]
    stats = collect(batches)
    values = np.concatenate([batch.ravel() for batch in batches])
    assert np.array_equal(stats.counts, counted(values, stats.bin_width))
    assert stats.batch_min.tolist() == [float(batch.min()) for batch in batches]
    assert stats.batch_max.tolist() == [float(batch.max()) for batch in batches]
    assert (stats.minimum, stats.maximum) == (float(values.min()), float(values.max()))
    largest = np.abs(values).max()
    if largest:  # the next power of two
        assert HALF_BINS * stats.bin_width / 2 <= largest < HALF_BINS * stats.bin_width


@pytest.mark.parametrize("name", BATCHES)
def test_the_order_of_batches_and_their_parts_changes_no_count(name: str) -> None:
    batches = BATCHES[name]
    whole, reversed_ = collect(batches), collect(batches[::-1])
    parts = StatsCollector()
    jobs = [
        (row, number, part) for number, batch in enumerate(batches) for part, row in enumerate(np.array_split(batch, 3))
    ]
    with ThreadPoolExecutor(4) as pool:
        added = [pool.submit(parts.add, torch.from_numpy(row), number, part) for row, number, part in jobs if row.size]
    assert all(each.result() for each in added)
    found = parts.finish()
    for other in (reversed_, found):
        assert other.bin_width == whole.bin_width
        assert np.array_equal(other.counts, whole.counts)
    for extreme in ("batch_min", "batch_max", "sample_min", "sample_max"):
        assert np.array_equal(getattr(found, extreme), getattr(whole, extreme))


def test_a_tensor_of_more_values_than_are_counted_at_once() -> None:
    values = normal(3, 100_003)  # chunks of 2**17 values end inside of rows
    stats = collect([values])
    assert np.array_equal(stats.counts, counted(values, stats.bin_width))
    assert np.array_equal(stats.sample_max, values.max(axis=1))


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
    assert edges[-1] == 1.0 + stats.bin_width  # a bin holds its lower edge
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


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_statistics_are_the_same_for_any_number_of_threads(threads: int) -> None:
    fused = fuse_model(
        float_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))), recipe(), SilentProgress()
    )
    data, before = samples(count=21), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = calibrate(fused, data, 8, SilentProgress()).stats
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert list(found) == list(calibrate(fused, data, 8, SilentProgress()).stats)
    with torch.inference_mode():
        values = fused.module.get_submodule("0")(data.tensor(slice(None))).numpy()
    stats = found["_0"]
    # Convolutions of other batch sizes may round differently, so extremes are compared with a tolerance.
    np.testing.assert_allclose(stats.sample_max, values.max(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(stats.batch_max, [values[row : row + 8].max() for row in (0, 8, 16)], rtol=1e-5)
    np.testing.assert_allclose(stats.channel_max, values.max(axis=(0, 2, 3)), rtol=1e-5)
    assert stats.counts.sum() == values.size


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
