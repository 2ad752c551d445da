"""Each observer's range against its definition: torch's own observers, numpy, or a plain implementation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

from cpupack.stages.quantize.ranges import choose_range, quantization_mse
from cpupack.stages.quantize.tails import lower_tail, upper_tail
from cpupack.statistics import HALF_BINS, ActivationStats, StatsCollector

SEEN_ONLY = ("minmax", "moving_average", "histogram", "percentile", "mse", "entropy")
OBSERVERS = (*SEEN_ONLY, "tail_mse")
SEEDS = range(3)


def draw(kind: str, rng: np.random.Generator, size: int = 4000) -> np.ndarray:
    values = rng.standard_normal(size) * 10.0 ** rng.uniform(-3, 3)
    match kind:
        case "relu":
            values = np.maximum(values, 0.0)
        case "negative":
            values = -np.abs(values) - 0.1
        case "heavy tails":
            values = values**3
        case "far from zero":
            values = 5.0 * np.abs(values).max() + values
        case "uniform":
            values = rng.uniform(-2.0, 3.0, size)
        case "sparse":
            values = values * (rng.random(size) < 0.02)
    return values.astype(np.float32)


KINDS = ("normal", "relu", "negative", "heavy tails", "far from zero", "uniform", "sparse")


def collect(*batches: np.ndarray) -> ActivationStats:
    collector = StatsCollector()
    for batch in batches:
        assert collector.add(torch.from_numpy(batch))
    return collector.finish()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observer", SEEN_ONLY)
def test_a_range_holds_zero_and_stays_inside_what_was_seen(observer: str, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [draw(kind, rng, 500) for _ in range(3)]
    stats = collect(*batches)
    for levels in (128, 256):
        low, high = choose_range(stats, observer, levels)
        assert min(stats.minimum, 0.0) <= low <= 0.0 <= high <= max(stats.maximum, 0.0)
        assert high > low


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("values", [[0.0, 0.0], [1.5], [-1.5], [0.0, 3.0], [1e-30], [-2.0, 2.0]])
def test_few_values_are_kept_whole(observer: str, values: list[float]) -> None:
    low, high = choose_range(collect(np.float32(values)), observer, 256)
    assert low == pytest.approx(min(*values, 0.0), rel=2.0 / HALF_BINS)
    assert high == pytest.approx(max(*values, 0.0), rel=2.0 / HALF_BINS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("observer", "theirs"), [("minmax", MinMaxObserver), ("moving_average", MovingAverageMinMaxObserver)]
)
def test_extremes_are_those_of_torchs_observer(observer: str, theirs: type[MinMaxObserver], seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [draw("normal", rng, 200) for _ in range(7)]
    reference = theirs()
    for batch in batches:
        reference(torch.from_numpy(batch))
    low, high = choose_range(collect(*batches), observer, 256)
    assert low == pytest.approx(float(reference.min_val), rel=1e-5)
    assert high == pytest.approx(float(reference.max_val), rel=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "sparse"])
def test_histogram_is_torchs_search_on_the_same_bins(kind: str, seed: int) -> None:
    values = draw(kind, np.random.default_rng(seed), 20_000)
    values[0], values[1] = np.abs(values).max(), -np.abs(values).max()  # both histograms then have the very same bins
    reference = HistogramObserver(bins=2 * HALF_BINS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference(torch.from_numpy(values))
        theirs = [float(end) for end in reference._non_linear_param_search()]
    stats = collect(values)
    low, high = choose_range(stats, "histogram", 256)
    assert low == pytest.approx(theirs[0], abs=2.0 * stats.bin_width)
    assert high == pytest.approx(theirs[1], abs=2.0 * stats.bin_width)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "relu", "negative"])
def test_percentile_is_numpys(kind: str, percentile: float, seed: int) -> None:
    values = draw(kind, np.random.default_rng(seed), 20_000)
    stats = collect(values)
    low, high = choose_range(stats, "percentile", 256, percentile)
    outside = 100.0 - percentile
    one_sided = kind in {"relu", "negative"}
    share = outside if one_sided else outside / 2.0
    slack = 2.0 * stats.bin_width  # the end of the bin that holds the percentile, one bin for histc's rounding
    for end, exact, rank in ((low, kind == "relu", share), (high, kind == "negative", 100.0 - share)):
        if exact:
            assert end == 0.0
            continue
        # Between two values of the sample numpy's percentile could be either.
        below, above = (float(np.percentile(values, rank, method=method)) for method in ("lower", "higher"))
        assert below - slack <= end <= above + slack


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "relu", "uniform", "sparse"])
@pytest.mark.parametrize("levels", [128, 256])
def test_mse_is_within_a_percent_of_the_best_range_there_is(levels: int, kind: str, seed: int) -> None:
    values = draw(kind, np.random.default_rng(seed), 2000).astype(np.float64)
    low, high = choose_range(collect(values.astype(np.float32)), "mse", levels)
    weights = np.ones_like(values)
    lows = np.linspace(0.0, min(values.min(), 0.0), 41)
    highs = np.linspace(0.0, max(values.max(), 0.0), 41)
    best = min(quantization_mse(values, weights, a, b, levels) for a in np.unique(lows) for b in np.unique(highs)[1:])
    assert quantization_mse(values, weights, low, high, levels) <= 1.05 * best


def test_quantization_mse_is_the_error_of_torchs_own_quantization() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    low, high = -1.7, 2.1
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    tensor = torch.from_numpy(values.astype(np.float32))
    theirs = torch.fake_quantize_per_tensor_affine(tensor, scale, zero_point, 0, 255).numpy()
    expected = float(np.mean((theirs - values) ** 2))
    assert quantization_mse(values, np.ones_like(values), low, high, 256) == pytest.approx(expected, rel=1e-3)


def tensorrt_divergence(counts: np.ndarray, keep: int, levels: int) -> float:
    """Return KL(P || Q) of keeping the first ``keep`` bins: the pseudocode of Migacz (GTC 2017), loop by loop."""
    reference = counts[:keep].copy()
    reference[-1] += counts[keep:].sum()
    candidate = np.zeros(keep)
    for step in np.array_split(np.arange(keep), levels):
        filled = [number for number in step if counts[number] > 0]
        for number in filled:
            candidate[number] = counts[step].sum() / len(filled)
    p, q = reference / reference.sum(), candidate / candidate.sum()
    return float(sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("seed", range(3))
def test_entropy_keeps_as_much_information_as_tensorrts_search_over_every_threshold(seed: int) -> None:
    bins, levels = 512, 64  # few, so that the plain search is quick
    rng = np.random.default_rng(seed)
    values = np.abs(np.append(rng.standard_normal(50_000) * 0.1, rng.uniform(0.9, 1.0, 5)))
    counts = np.zeros(2 * HALF_BINS, dtype=np.int64)
    counts[HALF_BINS : HALF_BINS + bins], _ = np.histogram(values, bins=bins, range=(0.0, 1.0))
    low, high = choose_range(
        ActivationStats(np.float32([0.0]), np.float32([1.0]), counts, 1.0 / bins), "entropy", levels
    )
    histogram = counts[HALF_BINS : HALF_BINS + bins].astype(np.float64)
    histogram[0] = histogram[1]  # NVIDIA's rule for the bin at zero
    every = {keep: tensorrt_divergence(histogram, keep, levels) for keep in range(levels, bins + 1)}
    assert low == 0.0
    assert high < 0.6  # the outliers are given up
    # 200 of the 449 thresholds are tried, and neighbours differ by how their bins fall into steps.
    better = sum(divergence < every[int(np.ceil(high * bins - 1e-6))] for divergence in every.values())
    assert better <= 0.02 * len(every)


def test_entropy_clips_a_far_outlier_and_keeps_a_flat_distribution_whole() -> None:
    rng = np.random.default_rng(0)
    flat = rng.uniform(-1.0, 1.0, 200_000).astype(np.float32)
    stats = collect(flat)
    assert choose_range(stats, "entropy", 256) == (stats.minimum, stats.maximum)
    spiked = np.append(rng.standard_normal(50_000), [40.0]).astype(np.float32)
    _, high = choose_range(collect(spiked), "entropy", 256)
    assert high < 10.0


def test_observers_that_clip_do_so_and_minmax_does_not() -> None:
    spiked = np.append(np.random.default_rng(0).standard_normal(100_000), [50.0]).astype(np.float32)
    stats = collect(spiked)
    assert choose_range(stats, "minmax", 256)[1] == 50.0
    # For squared errors one outlier in 100 000 is worth little clipping: rounding costs range^2 / (12 * 255^2) a value,
    # clipping it (50 - high)^2 / 100 000, and the sum is least at about 0.9 of the range.
    for observer, bound in (("histogram", 49.0), ("mse", 49.0), ("percentile", 6.0), ("entropy", 10.0)):
        assert choose_range(stats, observer, 256)[1] < bound, observer


def test_an_unknown_observer_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown observer 'median'"):
        choose_range(collect(np.float32([1.0])), "median", 256)


def test_a_tail_has_the_excess_of_the_distribution_that_it_was_fitted_to() -> None:
    """The excess of a generalized Pareto distribution over any threshold is one again, with the same shape."""
    rng = np.random.default_rng(0)
    shape = 0.15

    def draw_two_sided(*size: int) -> np.ndarray:
        magnitude = ((1.0 - rng.random(size)) ** -shape - 1.0) / shape
        return (magnitude * rng.choice([-1.0, 1.0], size)).astype(np.float32)

    size = 20_000_000
    future = draw_two_sided(size).astype(np.float64)
    future = future[np.abs(future) > 3.0]  # all thresholds are above that
    ratios: dict[tuple[float, float], list[float]] = {}
    for _ in range(10):  # a tail has about 1000 values: the excess of one is off by a third
        batches = [draw_two_sided(2000, 50) for _ in range(10)]
        stats = collect(*batches)
        for tail, sign in ((upper_tail(stats), 1.0), (lower_tail(stats), -1.0)):
            assert tail is not None
            drawn = sum(int((sign * each > tail.threshold).sum()) for each in batches)
            assert 900 < tail.count <= 1000
            assert tail.threshold > 3.0
            assert tail.count == pytest.approx(drawn, rel=0.01)
            for factor in (1.1, 1.5):
                excess = np.maximum(sign * future - factor * tail.threshold, 0.0)
                expected = float((excess**2).sum()) / size * sum(each.size for each in batches)
                ratios.setdefault((sign, factor), []).append(tail.squared_excess(factor * tail.threshold) / expected)
    for found in ratios.values():
        assert float(np.mean(found)) == pytest.approx(1.0, abs=0.25)


def test_what_is_bounded_has_no_tail() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 300)).astype(np.float32)
    stats = collect(pixels)
    assert lower_tail(stats) is None
    assert choose_range(stats, "tail_mse", 256)[1] == pytest.approx(255.0, rel=0.02)


def test_tail_mse_loses_less_than_the_others_on_data_that_was_not_calibrated_on() -> None:
    """Each sample has a strength of its own, as the deep layers of a classifier have."""
    rng = np.random.default_rng(0)

    def features(samples: int) -> np.ndarray:
        strength = rng.exponential(1.0, (samples, 1))
        return np.maximum(strength * rng.standard_normal((samples, 40)), 0.0).astype(np.float32)

    unseen = features(20_000).astype(np.float64).ravel()
    losses = dict.fromkeys(OBSERVERS, 0.0)
    for _ in range(10):
        stats = collect(features(100), features(100))
        for observer in OBSERVERS:
            low, high = choose_range(stats, observer, 256)
            losses[observer] += quantization_mse(unseen, np.ones_like(unseen), low, high, 256)
    others = [loss for observer, loss in losses.items() if observer != "tail_mse"]
    assert losses["tail_mse"] < 0.5 * min(others)


def test_tail_mse_believes_many_values_that_end_where_the_strongest_samples_do() -> None:
    """Maps of a U-Net: each sample has thousands of values above what most samples reach, and none far beyond.

    A tail over all of these values (the shape is at least 0.1, so it never ends) promised values up to twice the
    largest. Here the true end is 1: values are uniform up to a sample's strength, which is uniform up to 1.
    """
    rng = np.random.default_rng(0)
    for samples in (24, 48, 96):
        strength = rng.uniform(0.3, 1.0, (samples, 1))
        stats = collect((strength * rng.random((samples, 20_000))).astype(np.float32))
        assert 0.9 < choose_range(stats, "tail_mse", 256)[1] < 1.15 * stats.maximum


def test_tail_mse_is_mse_where_the_data_show_everything() -> None:
    """Many values a sample, none of them special: the tail is what a larger draw from the same distribution shows."""
    values = np.random.default_rng(0).standard_normal((64, 20_000)).astype(np.float32)
    for ours, theirs in zip(
        choose_range(collect(values), "tail_mse", 256), choose_range(collect(values), "mse", 256), strict=True
    ):
        assert ours == pytest.approx(theirs, rel=0.06)
