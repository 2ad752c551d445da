"""SQNR, cosine, agreement and top-k on arrays whose answers follow by hand."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest

from cpupack.accuracy import (
    agreement,
    bootstrap_interval,
    cosine,
    median_interval,
    paired_interval,
    samples_needed,
    sqnr_db,
    sqnr_interval_db,
    top_k,
    wilson_interval,
)
from cpupack.runtime import accuracy as runtime_accuracy
from cpupack.runtime import signature

REFERENCE = np.float32([[3.0, 4.0], [0.0, -5.0]])


def test_sqnr_of_a_known_noise() -> None:
    # Signal 9 + 16 + 25 = 50; noise four times 0.5^2 = 1.
    assert sqnr_db(REFERENCE, REFERENCE + np.float32(0.5)) == pytest.approx(10.0 * math.log10(50.0))


def test_sqnr_of_equal_arrays_and_of_no_signal() -> None:
    assert sqnr_db(REFERENCE, REFERENCE) == math.inf
    assert sqnr_db(np.zeros(3, np.float32), np.ones(3, np.float32)) == -math.inf


def test_large_values_do_not_overflow() -> None:
    large = np.float32([1e30, -1e30])
    assert sqnr_db(large, large * np.float32(1.1)) == pytest.approx(20.0, abs=1e-3)  # 10 % noise
    assert cosine(large, large) == pytest.approx(1.0)


def test_cosine_of_known_angles() -> None:
    assert cosine(REFERENCE, REFERENCE * 2.0) == pytest.approx(1.0)
    assert cosine(REFERENCE, -REFERENCE) == pytest.approx(-1.0)
    assert cosine(np.float32([1.0, 0.0]), np.float32([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 1.0
    assert cosine(np.zeros(2, np.float32), np.ones(2, np.float32)) == 0.0


def test_agreement_is_the_share_of_equal_choices() -> None:
    other = np.float32([[5.0, 4.0], [0.0, -5.0]])
    assert agreement(REFERENCE, other) == 0.5
    assert agreement(REFERENCE, REFERENCE) == 1.0


def test_top_k_counts_labels_among_the_largest() -> None:
    outputs = np.float32([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    labels = np.array([2, 1, 0])
    assert top_k(outputs, labels, 1) == pytest.approx(1 / 3)
    assert top_k(outputs, labels, 2) == pytest.approx(2 / 3)
    assert top_k(outputs, labels, 3) == 1.0
    assert top_k(outputs, labels, 5) == 1.0  # fewer classes than k


Z = NormalDist().inv_cdf(0.975)


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (1, 10), (81, 263), (148, 148), (15, 148), (9999, 10000)])
def test_wilsons_interval_is_where_the_score_test_turns(successes: int, count: int) -> None:
    share = successes / count
    for end in wilson_interval(successes, count):
        if 0.0 < end < 1.0:  # the score statistic with the variance under the hypothesis is the quantile
            assert abs(share - end) / math.sqrt(end * (1.0 - end) / count) == pytest.approx(Z)
    assert wilson_interval(successes, count)[0] <= share <= wilson_interval(successes, count)[1]


def test_wilsons_interval_as_published() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def score(lost: int, won: int, count: int, d: float) -> float:
    """Tango's statistic with the maximum of the multinomial likelihood under the difference ``d`` searched for."""

    def surprise(only_second: float) -> float:
        only_first = only_second + d
        cells = ((lost, only_first), (won, only_second), (count - lost - won, 1.0 - only_first - only_second))
        return -sum(number * math.log(max(share, 1e-300)) for number, share in cells if number)

    low, high = max(0.0, -d), (1.0 - d) / 2.0
    for _ in range(200):  # ternary search: the likelihood is concave
        third = (high - low) / 3.0
        low, high = (low, high - third) if surprise(low + third) < surprise(high - third) else (low + third, high)
    variance = (2.0 * low + d - d**2) / count
    return ((lost - won) / count - d) / math.sqrt(variance)


@pytest.mark.parametrize(("lost", "won", "count"), [(12, 2, 50), (1, 0, 44), (3, 3, 100), (0, 7, 30), (25, 10, 2000)])
def test_the_paired_interval_is_where_tangos_score_test_turns(lost: int, won: int, count: int) -> None:
    low, high = paired_interval(lost, won, count)
    assert low < (lost - won) / count < high
    assert score(lost, won, count, low) == pytest.approx(Z, rel=1e-4)
    assert score(lost, won, count, high) == pytest.approx(-Z, rel=1e-4)


def test_the_paired_interval_without_a_difference_and_at_the_ends() -> None:
    assert paired_interval(0, 0, 100) == pytest.approx((-(Z**2) / (100 + Z**2), Z**2 / (100 + Z**2)))
    low, high = paired_interval(20, 0, 20)
    assert high == pytest.approx(1.0)
    assert 0.5 < low < 1.0
    assert paired_interval(2, 9, 40) == pytest.approx(tuple(-end for end in reversed(paired_interval(9, 2, 40))))


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.03, 0.01, 0.96])  # only FP32, only INT8, both or neither: a drop of 2 points
    drawn = random.multinomial(200, shares, size=2000)
    covered = [low <= 0.02 <= high for low, high in (paired_interval(a, b, 200) for a, b, _ in drawn)]
    assert 0.93 < np.mean(covered) < 0.98


def test_the_interval_of_the_sqnr_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        reference = random.normal(size=(80, 4)) * random.uniform(0.5, 2.0, (80, 1))
        interval = sqnr_interval_db(reference, reference + random.normal(size=(80, 4)) * 0.1)
        assert interval is not None
        # The mean square of the signal is E[u^2] = (8 - 0.125) / 4.5 for u in [0.5, 2], that of the noise 0.01.
        covered.append(interval[0] <= 10.0 * math.log10((8.0 - 0.125) / 4.5 / 0.01) <= interval[1])
    assert 0.91 < np.mean(covered) < 0.985


def test_the_sqnr_has_no_interval_on_one_sample_or_without_signal() -> None:
    assert sqnr_interval_db(np.ones((1, 3)), np.zeros((1, 3))) is None
    assert sqnr_interval_db(np.zeros((4, 3)), np.ones((4, 3))) is None
    assert sqnr_interval_db(REFERENCE, REFERENCE) == (math.inf, math.inf)


def test_six_rounds_hold_their_median_and_five_do_not() -> None:
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) == (1.0, 6.0)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_the_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(size=500)
    low, high = bootstrap_interval(lambda rows: float(values[rows].mean()), 500)
    half = Z * values.std() / math.sqrt(500)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_the_least_number_of_samples_is_found() -> None:
    assert samples_needed(lambda count: count >= 3838, 100) == 3838
    assert samples_needed(lambda count: False, 100) is None


def test_no_bit_depends_on_the_number_of_threads() -> None:
    """A locked wheel holds these figures. numpy's BLAS adds long vectors and products of matrices up in parts."""
    code = """if True:
        import numpy as np
        from cpupack.accuracy import cosine
        from cpupack.meaning import meaning_of
        rng = np.random.default_rng(0)
        one, two = rng.standard_normal((2, 500, 200)).astype(np.float32)
        print([cosine(one + two * each, one) for each in (0.1, 0.2, 0.3)], meaning_of(one, one + two / 10))
    """
    found = set()
    for threads in ("1", "2"):
        environ = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", code]
        found.add(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


def test_measures_of_many_values_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of classes are taken a few samples at a time: the sums are the same up to rounding, some 1e-16 of each."""
    random = np.random.default_rng(0)
    reference = random.standard_normal((7, 3, 5)).astype(np.float32)
    actual = (reference + 0.1 * random.standard_normal(reference.shape)).astype(np.float32)
    measures = (sqnr_db, cosine, sqnr_interval_db)
    whole = [measure(reference, actual) for measure in measures]  # type: ignore[operator]  # of one signature
    scores = signature.softmax(reference, 1), signature.sigmoid(reference)
    for together in (1, 31, 45):  # a sample, two, three
        monkeypatch.setattr(runtime_accuracy, "_TOGETHER", together)
        assert len(reference[next(runtime_accuracy.parts(reference))]) == max(1, together // 15)
        again = [measure(reference, actual) for measure in measures]  # type: ignore[operator]  # of one signature
        np.testing.assert_allclose(np.hstack(again), np.hstack(whole), rtol=1e-12)  # type: ignore[arg-type]  # no None
        assert np.array_equal(signature.softmax(reference, 1), scores[0])
        assert np.array_equal(signature.sigmoid(reference), scores[1])
