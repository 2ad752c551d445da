"""Lists of moves: they do what was asked, and in few entries where there is a pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cpupack.stages.quantize.native import moves
from cpupack.stages.quantize.native.moves import APART, FILL, Joins, memory_places, moves_of
from cpupack.stages.quantize.native.program import Buffer

UNTOUCHED, FILLED = -7, -9


def buffer(height: int, width: int, channels: int) -> Buffer:
    return Buffer(height, width, channels, 1.0, 0)


def applied(found: np.ndarray, values: np.ndarray, source: Buffer, target: Buffer) -> np.ndarray:
    """Return a sample of ``target`` after moves of ``values``, as kernels/operators/moves.inc makes them."""
    result = np.full(target.size, UNTOUCHED)
    for from_row, start, to_row, to, length, count, from_step, to_step in found.tolist():
        for number in range(count):
            first = from_row * source.width * source.channels + start + number * from_step
            place = to_row * target.width * target.channels + to + number * to_step
            result[place : place + length] = FILLED if from_row == FILL else values[first : first + length]
    return result


@pytest.mark.parametrize("seed", range(40))
def test_moves_do_what_was_asked(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of places without any pattern, and of long runs, in whole buffers and in parts of them."""
    random = np.random.default_rng(seed)
    monkeypatch.setattr(moves, "_AT_ONCE", int(random.choice([1, 20, 1 << 18])))
    source, target = (buffer(*random.integers(1, 7, 3).tolist()) for _ in range(2))
    targets = random.permutation(target.size)[: int(random.integers(1, target.size + 1))]
    patterns = (
        random.integers(FILL, source.size, len(targets)),
        np.minimum(targets, source.size - 1),
        source.size - 1 - np.minimum(targets, source.size - 1),
        np.where(targets % 3 == 0, FILL, targets % source.size),
    )
    sources = patterns[seed % len(patterns)]
    values = random.integers(0, 255, source.size)
    expected = np.full(target.size, UNTOUCHED)
    expected[targets] = np.where(sources == FILL, FILLED, values[sources])
    found = moves_of(sources, targets, source, target)[0]
    np.testing.assert_array_equal(applied(found, values, source, target), expected)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("pixel_shuffle", 128 * 2 * 3),
        ("nearest", 128 * 3),
        ("reflect", 66 * 3),
        ("rolled", 64),
        ("transposed", 64 * 64),
    ],
)
def test_patterns_take_few_moves(name: str, most: int) -> None:
    """A few for each row of the result (a transposition of 64 rows: one for each position of a column)."""
    source = buffer(64, 64, 12)
    image = torch.arange(source.size, dtype=torch.float64).reshape(1, 12, 64, 64)
    made, shape = {
        "pixel_shuffle": (lambda: F.pixel_shuffle(image, 2), (128, 128, 3)),
        "nearest": (lambda: F.interpolate(image, scale_factor=2), (128, 128, 12)),
        "reflect": (lambda: F.pad(image, (1, 1, 1, 1), mode="reflect"), (66, 66, 12)),
        "rolled": (lambda: image.roll(3, 2), (64, 64, 12)),
        "transposed": (lambda: image.permute(0, 3, 2, 1), (64, 12, 64)),
    }[name]
    target = buffer(*shape)
    places = memory_places(made().long().flatten(), source), memory_places(torch.arange(target.size), target)
    found = moves_of(*places, source, target)[0]
    assert len(found) <= most
    values = np.arange(source.size)
    memory = image[0].permute(1, 2, 0).flatten().long().numpy()  # by position, as buffers are
    expected = made()[0].long().permute(1, 2, 0).flatten().numpy()
    np.testing.assert_array_equal(memory[applied(found, values, source, target)], expected)


def grid_moves(rows: int, columns: int, joins: Joins | None = None) -> tuple[np.ndarray, Joins]:
    """Return the moves of ``(4 x 4 places, 16 channels, rows x columns windows)`` to their image."""
    source, target = buffer(16, 16, rows * columns), buffer(4 * rows, 4 * columns, 16)
    sources = np.arange(source.size).reshape(4, 4, 16, rows, columns).transpose(0, 3, 1, 4, 2).ravel()
    found, joined = moves_of(sources, np.arange(target.size), source, target, joins)
    values = np.arange(source.size)
    np.testing.assert_array_equal(applied(found, values, source, target), sources)
    return found, joined


def test_narrow_images_join_the_moves_that_wide_ones_join_where_that_is_asked() -> None:
    wide, joins = grid_moves(12, 16)
    assert len(wide) == 48 * 4 * 16  # in each row, the 16 windows side by side for each place and channel
    free, _ = grid_moves(12, 5, Joins(APART))
    assert len(free) == 48 * 4 * 5 * 2  # fewer by chance: every second channel of each window
    given, again = grid_moves(12, 5, joins)
    assert len(given) == 48 * 4 * 16
    assert again.period == joins.period
