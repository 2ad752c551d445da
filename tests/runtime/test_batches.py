"""Batch sizes that keep every instance busy to the end."""

from __future__ import annotations

import pytest

from cpupack.runtime.engine.batches import FILE_TURNS, HAND_OVER_S, even_size

SLOW_S = 1.0


@pytest.mark.parametrize(
    ("count", "size", "instances", "expected"),
    [
        (96, 32, 2, 24),  # three of 32 would leave one instance without work in the second turn
        (33, 32, 1, 17),
        (64, 32, 2, 32),
        (8, 32, 2, 4),
        (3, 32, 4, 1),
        (1, 32, 4, 32),  # one sample is one call in any case
        (10, 2, 2, 2),
    ],
)
def test_instances_end_together(count: int, size: int, instances: int, expected: int) -> None:
    assert even_size(count, size, instances, SLOW_S) == expected


@pytest.mark.parametrize("count", range(1, 200, 7))
@pytest.mark.parametrize("instances", [1, 2, 3, 16])
@pytest.mark.parametrize("turns", [1, FILE_TURNS])
def test_no_more_turns_than_the_largest_batches_or_turns_need(count: int, instances: int, turns: int) -> None:
    for size in (1, 4, 5, 32):
        found = even_size(count, size, instances, SLOW_S, turns)
        assert 1 <= found <= size
        rounds = -(-count // (found * instances))
        assert rounds <= max(turns, -(-count // (size * instances)))
        assert count <= found * rounds * instances


def test_files_go_by_small_batches_so_that_the_first_need_not_wait_for_many() -> None:
    assert even_size(96, 32, 2, SLOW_S, FILE_TURNS) == 6
    assert even_size(20, 32, 2, SLOW_S, FILE_TURNS) == 4, "weights are read for so many at least"
    assert even_size(10_000, 32, 2, SLOW_S, FILE_TURNS) == 32


def test_what_wins_less_than_handing_over_costs_is_left() -> None:
    assert even_size(8, 8, 2, HAND_OVER_S / 5) == 8
    assert even_size(8, 8, 2, HAND_OVER_S / 3) == 4
