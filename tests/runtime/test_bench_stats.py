"""Figures equal numpy's on raw values, and intervals hold the truth as often as they claim."""

from __future__ import annotations

import numpy as np
import pytest

from cpupack.runtime.bench import stats


def coverage_bounds(trials: int, share: float = 0.95) -> float:
    """Four standard deviations of a binomial share."""
    return 4 * (share * (1 - share) / trials) ** 0.5


def test_the_curve_is_numpys_on_raw_values() -> None:
    values = np.random.default_rng(0).gamma(2.0, 5.0, 20_000)
    curve = stats.percentile_curve(values)
    assert [p for p, _ in curve] == sorted(stats.CURVE)
    for percent, ms in curve:
        assert ms == pytest.approx(np.percentile(values, percent))


@pytest.mark.parametrize(
    "values",
    [np.random.default_rng(0).lognormal(0, 1, 5000), np.full(7, 3.0), np.array([2.0]), np.array([1.0, 1000.0])],
    ids=["tail", "equal", "one", "two"],
)
def test_the_histogram_counts_every_value(values: np.ndarray) -> None:
    histogram = stats.latency_histogram(values)
    edges, counts = histogram.edges_ms, histogram.counts
    assert len(edges) == len(counts) + 1 <= 49
    assert sum(counts) == len(values)
    assert edges[0] == pytest.approx(values.min())
    assert edges[-1] == pytest.approx(values.max(), rel=0.002)
    assert np.all(np.diff(edges) > 0)
    # Even with a long tail no bin has half of the values, because edges have equal ratios.
    assert len(values) < 100 or max(counts) < len(values) / 2


def test_bootstrap_intervals_of_dependent_latencies_hold_the_truth() -> None:
    """Latencies with memory (AR(1), 0.9), as in a queue: an interval that took them as independent would be a quarter
    as wide and hold the mean in 35 % of all cases."""
    trials, length, memory = 300, 3000, 0.9
    generator = np.random.default_rng(7)
    hits = dict.fromkeys(("mean", "p50", "p90"), 0)
    truth = {"mean": 20.0, "p50": 20.0, "p90": 20.0 + 1.2816}
    for _ in range(trials):
        noise = generator.normal(0, (1 - memory**2) ** 0.5, length + 200)
        series = np.zeros(length + 200)
        for number in range(1, len(series)):
            series[number] = memory * series[number - 1] + noise[number]
        found = stats.bootstrap_95(20.0 + series[200:], tuple(hits))
        for name, (low, high) in found.items():
            hits[name] += low <= truth[name] <= high
    for name, count in hits.items():
        assert count / trials > 0.95 - coverage_bounds(trials), name


def test_bootstrap_percentiles_lie_around_the_point() -> None:
    values = np.random.default_rng(1).gamma(2.0, 5.0, 5000)
    summary = stats.latency_summary(values)
    for name, (low, high) in stats.bootstrap_95(values).items():
        assert low <= summary[name] <= high
        assert high - low < 0.2 * summary[name]
    assert stats.bootstrap_95(values) == stats.bootstrap_95(values)


def test_few_values_have_the_interval_of_all_of_them() -> None:
    assert stats.bootstrap_95(np.array([1.0, 5.0, 2.0]), ("p50",)) == {"p50": (1.0, 5.0)}


@pytest.mark.parametrize("between", [0.0, stats.BETWEEN_RUNS], ids=["same state", "other state"])
def test_a_second_run_lands_where_the_first_says(between: float) -> None:
    """Windows with noise of 2 %, and runs that differ by as much as is allowed for or not at all."""
    generator = np.random.default_rng(3)
    trials, hits = 4000, 0
    for _ in range(trials):
        first, second = (
            100.0 * (1 + between * generator.standard_normal()) * (1 + 0.02 * generator.standard_normal(5))
            for _ in range(2)
        )
        low, high = stats.repeat_interval_95(float(first.mean()), first.tolist())
        hits += low <= second.mean() <= high
    assert hits / trials > 0.95 - coverage_bounds(trials)


def test_a_confidence_interval_alone_would_be_too_narrow_for_a_second_run() -> None:
    """Why there are two intervals: of equal runs, only five in six land in the first one's confidence interval."""
    generator = np.random.default_rng(4)
    trials, hits = 4000, 0
    for _ in range(trials):
        first, second = generator.normal(100.0, 2.0, (2, 5))
        low, high = stats.interval_95(first.tolist())
        hits += low <= second.mean() <= high
    assert 0.80 < hits / trials < 0.93


def test_an_interval_of_one_window_says_nothing() -> None:
    assert stats.repeat_interval_95(5.0, [5.0]) == (0.0, float("inf"))
    with pytest.raises(ValueError, match="2 to 30"):
        stats.interval_95([1.0])


def test_no_rate_is_below_zero() -> None:
    """A few slow calls on a busy host gave "95 % interval -0.3 to 6.7" samples a second."""
    assert stats.interval_95([0.4, 6.0, 3.2])[0] == 0.0


def test_window_values_split_in_order() -> None:
    assert stats.window_values(np.arange(10.0), "mean", 5) == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert stats.window_values(np.array([1.0, 3.0]), "p50", 5) == [1.0, 3.0]
