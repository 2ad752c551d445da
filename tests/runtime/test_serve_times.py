"""What the server knows of how long calls and decoding take, and what it learns. Times are in milliseconds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cpupack.runtime.serve.times import CallTimes, PrepareTimes, Tail
from helpers.scheduling import MS, times


def test_the_corrections_follow_what_is_measured_and_a_single_stall_does_not_move_the_tail() -> None:
    table = times((1, 10, 12), (2, 15, 18))
    for number in range(400):
        table.observe(2, 0.0, 1.0 if number == 390 else 30 * MS)
    assert table.tail == pytest.approx(30 / 18)
    assert table.safe_s(1) == pytest.approx(12 * 30 / 18 * MS)
    for _ in range(400):
        table.observe(1, 0.0, 10 * MS)
    assert table.correction == pytest.approx(1.0, abs=0.01)
    assert table.tail == pytest.approx(10 / 12)


def test_a_stall_teaches_little_about_the_time_of_calls() -> None:
    table = times((1, 10, 12))
    table.observe(1, 0.0, 2.0)  # a host that stood still for two seconds
    assert table.expected_s(1) < 13 * MS


def test_a_row_that_was_measured_beside_other_work_is_learnt_anew() -> None:
    """The row of one sample says half of what it takes, that of four twice as much; decoding takes 2 ms each."""
    table = times((1, 5, 5), (2, 13, 13), (4, 32, 32))
    real = {1: 10, 2: 13, 3: 14.5, 4: 16}
    generator = np.random.default_rng(0)
    for _ in range(1200):
        size = int(generator.integers(1, 5))
        table.observe(size, 2 * size * MS, (real[size] + 2 * size) * generator.uniform(0.95, 1.05) * MS)
    for size, took in real.items():
        assert table.expected_s(size, 2 * size * MS) == pytest.approx((took + 2 * size) * MS, rel=0.08)
    assert table.worthwhile(math.inf) >= 3  # of the table alone one sample a call serves most
    assert times((1, 5, 5), (2, 13, 13), (4, 32, 32)).worthwhile(math.inf) == 1


def test_a_single_size_that_is_seen_teaches_all_others() -> None:
    table = times((1, 10, 12), (2, 15, 18))
    for _ in range(400):
        table.observe(2, 0.0, 30 * MS)
    assert table.expected_s(1) == pytest.approx(20 * MS)


def test_sizes_between_the_rows_are_interpolated_and_never_faster_than_smaller_ones() -> None:
    table = times((1, 10, 10), (4, 16, 16), (8, 12, 12))
    assert table.expected_s(2) == pytest.approx(12 * MS)
    assert table.expected_s(8) == pytest.approx(16 * MS)
    with pytest.raises(ValueError, match="empty"):
        CallTimes([])


def test_the_time_to_decode_is_learnt_by_the_byte() -> None:
    prepare = PrepareTimes()
    assert prepare.estimate_s("image", 100_000) == pytest.approx(1.5 * MS)
    prepare.observe("image", 1000, 2 * MS)
    assert prepare.estimate_s("image", 600) == pytest.approx(1.2 * MS)
    prepare.observe("image", 0, 1.0)  # says nothing
    assert prepare.estimate_s("image", 600) == pytest.approx(1.2 * MS)
    prepare.observe("tensor", 1000, 0.0)
    assert prepare.estimate_s("tensor", 100_000) == 0.0


def test_small_files_teach_nothing_about_large_ones_and_a_stall_teaches_little() -> None:
    prepare = PrepareTimes()
    for _ in range(100):
        prepare.observe("image", 60, 1.1)  # each loads a library, or is 60 bytes of a huge image
    assert prepare.estimate_s("image", 100_000) == pytest.approx(1.5 * MS)
    prepare.observe("image", 100_000, 2 * MS)
    prepare.observe("image", 100_000, 1.1)  # counts as 8 ms, a twentieth of which is learnt
    assert prepare.estimate_s("image", 100_000) == pytest.approx(2.3 * MS)


def test_the_tail_is_the_first_value_until_others_are_known() -> None:
    tail = Tail(1.0)
    for _ in range(8):
        tail.observe(5.0)
    assert tail.value == 5.0  # 8 of 200 are more than one in a hundred
