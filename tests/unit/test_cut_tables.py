"""Constants that are cut from a table of the largest size."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import numpy.typing as npt
import pytest

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.cuts import Cut
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.size_terms import Fit
from cpupack.stages.quantize.native.cuts import Shaped, shaped
from cpupack.stages.quantize.native.largest import Tables
from helpers.named_nets import opened

SIZES = OpenSizes((1, 2), (1, 40), (1, 1), names=("time",), axes=(0,), shape=(8, 3))
LENGTHS = (8, 2, 5)


def words(values: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(values, np.float32).ravel().view("<u4")


def found(make: object, lengths: tuple[int, ...] = LENGTHS) -> Shaped | None:
    """Return a constant that ``make`` returns for each length, and that is filled up to 64 bytes."""
    assert callable(make)
    contents = [words(make(length)) for length in lengths]
    filled = [np.append(each, np.zeros(-len(each) % 16, np.uint32)) for each in contents]
    fit = Fit(np.array([(1, length) for length in lengths]), SIZES.products)
    return shaped(filled, [list(lengths), [3] * len(lengths)], fit)


def terms(*numbers: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """Return terms of sums of a number and so many times the length."""
    place = SIZES.products.index((1,))
    return tuple(tuple(a * (at == 0) + b * (at == place) for at in range(len(SIZES.products))) for a, b in numbers)


def values(rule: Cut, table: npt.ArrayLike, length: int) -> npt.NDArray[np.float32]:
    """Return the constant for a length; the table has another constant before it."""
    memory = np.append(np.zeros(16, np.uint32), words(table)).view(np.uint8)
    powers = np.array(SIZES.powers((1, length)), np.int64)
    return dataclasses.replace(rule, begin=64).values(powers, memory).view("<f4")


def test_a_constant_is_the_first_places_of_its_table() -> None:
    table = np.arange(40 * 3).reshape(40, 3)
    rule = Cut(0, "scales", 0, (40, 3), terms((0, 1), (3, 0)))
    for length in (1, 7, 40):
        assert np.array_equal(values(rule, table, length), table[:length])


def test_a_table_of_distances_has_a_number_for_each() -> None:
    line = np.arange(-39, 40)
    rule = Cut(0, "scales", 0, (1, 79), terms((2, 0), (0, 1), (0, 1)), rows=40)
    for length in (1, 7, 40):
        place = np.arange(length)
        assert np.array_equal(values(rule, line, length), np.stack([place - place[:, None]] * 2))


def test_constants_of_positions_are_found_and_others_are_not() -> None:
    assert found(lambda n: np.tril(np.ones((n, n)))) is not None
    assert found(lambda n: np.where(np.tri(n), 0, -np.inf)) is not None
    assert found(lambda n: np.sin(np.arange(n))[:, None] * [1, 2, 3]) is not None
    assert found(lambda n: np.linspace(0, 1, n)) is None
    assert found(lambda n: np.tri(n)[::-1]) is None
    assert found(lambda n: np.arange(n * n)) is None


def test_a_table_that_the_largest_size_does_not_have_is_refused() -> None:
    """What is alike at a few lengths may be another thing far away."""
    net, _ = opened("masked")
    largest = net.lowered(48)
    number, name = next((each.layer, each.name) for each in opened("masked")[1].constants if isinstance(each, Cut))
    seen = found(lambda n: np.full((n, n), 7.0))
    assert seen is not None
    with pytest.raises(QuantizationError, match="no way"):
        Tables(largest, net.sizes).cut(number, name, seen, 0, QuantizationError("there is no way"))


def test_masks_and_distances_of_attention_are_lines_and_not_squares() -> None:
    net, sizes = opened("masked")
    cuts = [each for each in sizes.constants if isinstance(each, Cut)]
    # Distances and the mask are one constant of 95 numbers; the mean of what came before is 48 x 48.
    assert [(each.rows, each.nbytes) for each in cuts] == [(48, 4 * 95), (0, 4 * 48 * 48)]
    assert len(net.stored()) - len(net.lowered(16).program) < 4 * (95 + 48 * 48) + 128


@pytest.mark.parametrize("damage", [{"begin": -4}, {"begin": 2}, {"shape": [0, 3]}, {"rows": 3}, {"name": "places"}])
def test_a_damaged_cut_is_refused(damage: dict[str, object]) -> None:
    _, sizes = opened("masked")
    raw = json.loads(json.dumps(sizes.to_dict()))
    place = [each["kind"] for each in raw["constants"]].index("cut")
    raw["constants"][place] |= damage
    if "rows" in damage:
        raw["constants"][place]["shape"] += [1]
    with pytest.raises((ValueError, KeyError)):
        type(sizes).from_dict(raw)
