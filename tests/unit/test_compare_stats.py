"""Ratios of paired rounds, and the order of rounds."""

from __future__ import annotations

import pytest

from cpupack.comparison.rounds import SearchClock, order
from cpupack.comparison.stats import paired_ratio


def test_the_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians() -> None:
    ratio = paired_ratio([10.0, 40.0, 30.0], [10.0, 20.0, 10.0])
    assert ratio.rounds == (1.0, 2.0, 3.0)
    assert ratio.median == 2.0  # the medians are 30 and 10


def test_drift_that_both_engines_share_does_not_widen_the_interval() -> None:
    drift = [1.0, 0.5, 2.0, 1.3, 0.7]
    ratio = paired_ratio([3.0 * each for each in drift], [2.0 * each for each in drift])
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_holds_the_median_and_lies_within_the_rounds() -> None:
    ratio = paired_ratio([1.0, 1.1, 1.2, 1.3, 5.0], [1.0] * 5)
    assert 1.0 <= ratio.low <= ratio.median == 1.2 <= ratio.high <= 5.0
    assert ratio == paired_ratio([1.0, 1.1, 1.2, 1.3, 5.0], [1.0] * 5)


def test_one_round_has_an_interval_of_no_width() -> None:
    ratio = paired_ratio([3.0], [2.0])
    assert (ratio.low, ratio.median, ratio.high) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [float("nan")])])
def test_rounds_that_cannot_be_paired_are_refused(above: list[float], below: list[float]) -> None:
    with pytest.raises(ValueError, match="round"):
        paired_ratio(above, below)


def test_every_other_round_goes_backward() -> None:
    assert [order("abc", number) for number in range(3)] == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_the_search_clock_counts_measuring_and_not_starting() -> None:
    now = [0.0]
    clock = SearchClock(10.0, lambda: now[0])
    now[0] = 30.0
    assert clock() == 0.0
    clock.add(4.0)
    assert clock() == 4.0


def test_the_search_clock_ends_a_search_that_only_starts_processes() -> None:
    now = [0.0]
    clock = SearchClock(10.0, lambda: now[0])
    now[0] = 1000.0
    assert clock() > 10.0
