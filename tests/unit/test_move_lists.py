"""Lists whose rows repeat are found at a few sizes, and made for others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.loops import Row, parts_of, rows_of
from cpupack.size_terms import Fit, Ints
from cpupack.stages.quantize.native.move_lists import parts_of_lists

PRODUCTS = ((), (0,), (1,), (0, 1))
SIZES = ((6, 8), (4, 8), (6, 5), (4, 5), (5, 7))


def powers(rows: int, columns: int) -> Ints:
    return np.array([1, rows, columns, rows * columns])


def windows(rows: int, columns: int) -> Ints:
    """Pixels of windows of 3 x 3, window by window."""
    pixels = np.arange(9 * rows * columns).reshape(rows, 3, columns, 3)
    return pixels.transpose(0, 2, 1, 3).reshape(-1, 1)


def shifted(rows: int, columns: int) -> Ints:
    """The same of an image that is rolled by one pixel."""
    pixels = np.roll(np.arange(9 * rows * columns).reshape(3 * rows, 3 * columns), (-1, -1), (0, 1))
    return pixels.reshape(rows, 3, columns, 3).transpose(0, 2, 1, 3).reshape(-1, 1)


def regions(rows: int, columns: int) -> Ints:
    """Numbers of two heads for each window, others at the right, at the bottom, and in the corner."""
    kinds = np.zeros((rows, columns, 1), np.int64)
    kinds[:, -1] += 1
    kinds[-1] += 2
    return (10 * kinds - 4 * np.arange(2)).reshape(-1, 1)


def moves(rows: int, columns: int) -> Ints:
    """Two moves a row that go on at distances of their own, between a first and a last one."""
    each = [(0, row, 2 * row * columns, *[columns] * 2) for row in range(rows)]
    other = [(-1, 0, (2 * row + 1) * columns, 7, 1) for row in range(rows)]
    between = [move for both in zip(each, other, strict=True) for move in both]
    return np.array([(9, 9, 9, 9, 9), *between, (8, 8, 8, rows, columns)])


@pytest.mark.parametrize("made", [windows, shifted, regions, moves])
def test_lists_are_made_for_sizes_that_were_not_seen(made: Callable[[int, int], Ints]) -> None:
    fit = Fit(np.array(SIZES), PRODUCTS)
    found = parts_of_lists([made(*size) for size in SIZES], fit, "a list")
    read = parts_of(json.loads(json.dumps([dataclasses.asdict(each) for each in found])))
    for size in ((6, 8), (3, 4), (11, 9), (20, 31)):
        assert np.array_equal(rows_of(read, powers(*size)), made(*size))


def test_what_comes_before_a_list_is_no_part_of_it() -> None:
    fit = Fit(np.array(SIZES), PRODUCTS)
    heads = [np.array([[3], [rows], [5]]) for rows, _ in SIZES]
    found = parts_of_lists([np.arange(7, 7 + rows * columns)[:, None] for rows, columns in SIZES], fit, "a list", heads)
    assert all(isinstance(each, Row) for each in found[:3])
    assert rows_of(found, powers(9, 2)).ravel().tolist() == [3, 9, 5, *range(7, 25)]


def test_a_list_without_an_order_is_an_error() -> None:
    random = np.random.default_rng(0)
    lists = [random.permutation(rows * columns)[:, None] for rows, columns in SIZES]
    with pytest.raises(QuantizationError, match="a list of layer 3 repeats in another way"):
        parts_of_lists(lists, Fit(np.array(SIZES), PRODUCTS), "a list of layer 3")


def test_a_list_that_would_take_all_memory_is_an_error() -> None:
    (loop,) = parts_of([{"count": [1 << 40, 0, 0, 0], "body": [{"first": [[0] * 4], "steps": [[[1, 0, 0, 0]]]}]}])
    with pytest.raises(ValueError, match="1099511627776 times 1 rows"):
        rows_of([loop], powers(1, 1))
