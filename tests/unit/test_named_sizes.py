"""Sequences of any length: each has the program that its length would be lowered to, and its answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cpupack.errors import QuantizationError
from cpupack.quantized_engine import engine
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.engine.sized import SizedPrograms
from cpupack.runtime.engine.sizes import Sizes
from cpupack.runtime.errors import RunnerError
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.stages.quantize.native.sizes import check_sides, same_program
from cpupack.stages.script import save
from helpers.lowered import needs_kernels
from helpers.named_nets import NETS, TYPICAL, opened

TAKEN = OpenSizes((1, 8), (1, 64), (1, 4), names=("time",), axes=(1,), shape=(3, 16))
PLANES = OpenSizes((8, 2), (16, 6), (4, 1), names=("rows", "time"), axes=(2, 0), shape=(3, 5, 8))


def lengths(sizes: OpenSizes) -> list[int]:
    """Return the greatest length, and some at which a net was not lowered before."""
    step = sizes.multiple[1]
    return [sizes.least[1] + 3 * step, (TYPICAL + 5) * step, sizes.most[1]]


def test_a_named_dimension_has_its_sizes() -> None:
    assert [time for time in range(80) if TAKEN.fits((3, time))] == list(range(8, 65, 4))
    assert not TAKEN.fits((2, 16))
    assert not TAKEN.fits((16,))
    assert TAKEN.shape_text((3, 16)) == "(n, 3, time)"
    assert TAKEN.text() == "time 8 to 64 in steps of 4"
    assert TAKEN.sides(0, (3, 16)) == (3, range(8, 65, 4))
    assert TAKEN.size_text((1, 12)) == "time 12"


def test_two_named_dimensions_are_in_any_order() -> None:
    assert PLANES.size_of((4, 5, 12)) == (12, 4)
    assert PLANES.shape_at((3, 5, 8), (16, 6)) == (6, 5, 16)
    assert PLANES.sides(0, (3, 5, 8)) == (range(2, 7), 5, range(8, 17, 4))
    assert PLANES.fits((6, 5, 16))
    assert not PLANES.fits((16, 5, 6))
    assert PLANES.text() == "rows 8 to 16 in steps of 4, time 2 to 6"


def test_what_is_written_is_read_back() -> None:
    for each in (TAKEN, PLANES):
        assert OpenSizes.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    for damage in ({"axes": [2]}, {"names": []}, {"names": ["a", "b"]}, {"least": [2, 8]}):
        with pytest.raises(ValueError, match="dimension"):
            OpenSizes.from_dict(TAKEN.to_dict() | damage)


@pytest.mark.parametrize("name", NETS)
def test_a_length_has_the_program_that_it_would_be_lowered_to(name: str) -> None:
    net, sizes = opened(name)
    assert Sizes.from_dict(json.loads(json.dumps(sizes.to_dict()))).to_dict() == sizes.to_dict()
    programs = SizedPrograms(np.frombuffer(net.stored(), np.uint8), sizes)
    for length in lengths(sizes.range):
        expected = net.lowered(length)
        assert same_program(programs.alone(1, length).tobytes(), expected.program, sizes.rounded), length
        assert sizes.result_shape(1, length) == expected.result


def test_lengths_beyond_the_engine_are_named() -> None:
    net, sizes = opened("levels")
    programs = SizedPrograms(np.frombuffer(net.lowered(32).program, np.uint8), sizes)
    check_sides(programs.alone(1, 96).tobytes(), "time 96")
    with pytest.raises(QuantizationError, match="time 5000000 have lists of 5000000 or more positions"):
        check_sides(programs.alone(1, 5_000_000).tobytes(), "time 5000000")


@needs_kernels
@pytest.mark.parametrize("name", NETS)
def test_answers_are_those_of_a_program_for_that_length_alone(name: str, tmp_path: Path) -> None:
    net, sizes = opened(name)
    typical, path = sizes.range.size_of(sizes.range.shape), tmp_path / "model.pt"
    with engine("native"):
        save(net.at(typical[1]).with_sizes(sizes, net.stored()), torch.zeros(1, *sizes.range.shape), path)
    with InstancePool(path, "native", 2, 2) as pool:
        for length in lengths(sizes.range)[:2]:
            shape = sizes.range.shape_at(sizes.range.shape, (1, length))
            batch = np.random.default_rng(length).standard_normal((3, *shape)).astype(np.float32)
            alone = tmp_path / f"{length}.pt"
            with engine("native"):
                save(net.at(length), torch.from_numpy(batch[:1]), alone)
            with InstancePool(alone, "native", 1, 1) as fixed:
                expected = fixed.run(batch)
            found = pool.run(batch)
            assert np.array_equal(found, expected.reshape(found.shape)), length
        with pytest.raises(RunnerError, match="it takes time"):
            pool.run(np.zeros((1, *sizes.range.shape_at(sizes.range.shape, (1, sizes.range.most[1] + 1))), np.float32))
