"""Memory for results: a large one's is used again, but only when nobody holds it any more."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from cpupack.runtime.engine import results
from cpupack.runtime.engine.results import LARGE_BYTES, ResultMemory

VALUES = LARGE_BYTES // 4


def test_the_memory_of_a_dropped_result_is_used_again() -> None:
    memory = ResultMemory()
    first = memory.take(2, VALUES)
    assert first.shape == (2, VALUES)
    assert first.dtype == np.float32
    address = first.ctypes.data
    del first
    assert memory.kept_bytes == 2 * LARGE_BYTES
    smaller = memory.take(1, VALUES)
    assert smaller.ctypes.data == address
    assert memory.kept_bytes == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array,
        lambda array: array[1, 5:],
        lambda array: array.reshape(2, 4, -1).transpose(0, 2, 1),
        lambda array: memoryview(array),
        lambda array: torch.from_numpy(array)[1],
    ],
    ids=["array", "slice", "transposed", "memoryview", "tensor"],
)
def test_a_result_that_is_held_in_any_way_keeps_its_values(view: object) -> None:
    memory = ResultMemory()
    first = memory.take(2, VALUES)
    first[:] = 7
    assert callable(view)
    held = view(first)
    address = first.ctypes.data
    del first
    other = memory.take(2, VALUES)
    other[:] = 1
    assert other.ctypes.data != address
    assert np.all(np.asarray(held) == 7)
    del held
    assert memory.kept_bytes == 2 * LARGE_BYTES


def test_blocks_that_are_too_small_are_given_up_and_small_results_are_numpys() -> None:
    memory = ResultMemory()
    memory.take(1, VALUES)
    assert memory.kept_bytes == LARGE_BYTES
    memory.take(3, VALUES)
    assert memory.kept_bytes == 3 * LARGE_BYTES
    assert memory.take(1, VALUES - 1).base is None


def test_no_more_than_a_bound_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MOST_KEPT_BYTES", 3 * LARGE_BYTES)
    memory = ResultMemory()
    held = [memory.take(1, VALUES) for _ in range(5)]
    held.clear()
    assert memory.kept_bytes == 3 * LARGE_BYTES


def test_threads_never_share_a_block() -> None:
    memory, wrong = ResultMemory(), []

    def work(number: int) -> None:
        for _ in range(300):
            mine = memory.take(1, VALUES)
            mine[0, ::4096] = number
            if not np.all(mine[0, ::4096] == number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
