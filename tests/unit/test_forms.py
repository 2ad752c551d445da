"""A form: from the programs of a few lengths to those of all, run together, and what has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpupack.runtime.engine import library
from cpupack.runtime.engine.forms import Form
from cpupack.runtime.engine.lengths import Lengths, every, fields
from cpupack.runtime.engine.program import Program, _parse_lengths
from cpupack.runtime.engine.program_format import HEADER
from cpupack.runtime.engine.prototypes import Piece
from cpupack.runtime.engine.session import Session
from cpupack.stages.quantize.native.forms import NoFormError, block_of
from cpupack.stages.quantize.native.walks import UNUSED, Fixed, Function, Grid, Instruction, View
from helpers.float_nets import Net, functions
from helpers.lowered import needs_kernels
from helpers.row_nets import linear

LONGEST, LENGTH, COLUMNS = 12, 33, 40


def net(rows: int) -> Net:
    return linear(rows, LENGTH, COLUMNS)


def programs(*lengths: int) -> dict[int, bytes]:
    return {each: net(each).program.to_bytes() for each in lengths}


def formed(block: bytes, form: Form) -> tuple[Program, Lengths]:
    """Return the programs of all lengths, as they are read from a file."""
    inputs = fields([(LONGEST, LENGTH), (LONGEST, 2 * COLUMNS)], [0, 0], [0.0, 0.0])
    results = len(net(1).expected)
    outputs = fields([(LONGEST, COLUMNS)] * results, [0] * results, [0.0] * results)
    lengths = every(1, LONGEST, inputs, outputs, form)
    room = form.room(len(lengths.values))
    memory = np.concatenate([np.zeros(room, np.uint8), np.frombuffer(block, np.uint8)])
    return _parse_lengths(memory, lengths), lengths


@needs_kernels
def test_samples_of_all_lengths_in_one_call_have_the_bytes_of_numpy() -> None:
    """Each is padded with zeros, which no sample has at its end."""
    program, lengths = formed(*block_of(programs(7, 9, LONGEST)))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(1, LONGEST + 1), 3))
    rows = np.zeros((len(order), LONGEST * (LENGTH + 2 * COLUMNS)), np.float32)
    expected = np.zeros((len(order), program.outputs), np.float32)
    taken = dict.fromkeys(range(1, LONGEST + 1), 0)
    for row, wanted, length in zip(rows, expected, order.tolist(), strict=True):
        own = net(length)
        sample, taken[length] = taken[length], taken[length] + 1
        given = own.samples[sample]
        row[: length * LENGTH] = given[: length * LENGTH]
        row[LONGEST * LENGTH :][: length * 2 * COLUMNS] = given[length * LENGTH :]
        for number, result in enumerate(own.expected):
            first = number * LONGEST * COLUMNS
            wanted[first : first + length * COLUMNS] = result[sample]
    assert np.array_equal(lengths.ends(rows), order)
    for threads in (1, 3):
        session = Session(program, threads)
        session.make_ready(all_lengths=True)
        assert np.array_equal(session(rows), expected)
        assert np.array_equal(np.concatenate([session(row[None]) for row in rows]), expected)
        session.close()


def test_any_lengths_give_the_same_form() -> None:
    assert block_of(programs(7, 9, LONGEST)) == block_of(programs(8, 10, 11, LONGEST))


def test_constants_that_all_share_are_in_the_block_once() -> None:
    block, _ = block_of(programs(7, 9, LONGEST))
    assert len(block) < 1.5 * len(net(LONGEST).program.to_bytes())


def pairs(rows: int) -> Net:
    """A constant for pairs of positions is added to a sum of pairs, and the length to each of the positions."""
    net = Net(np.random.default_rng(rows).normal(size=(2, rows)).astype(np.float32))
    net.floats.grid, net.program.filler = Grid(rows, 16), UNUSED.tobytes()
    view, x = net.view((rows,))
    bias = np.arange(LONGEST**2, dtype=np.float32).reshape(LONGEST, LONGEST)[:rows, :rows] + 3
    turned = View(view.buffer, (2, rows, 1), (0, *view.steps, 0), view.first)
    add = [Instruction(Function.ADD)]
    found = net.floats.map(net.floats.new((2, rows, rows)), turned, Fixed(torch.from_numpy(bias.copy())), add)
    net.result(found, np.broadcast_to((x[:, :, None] + bias)[:, None], (2, 2, rows, rows)))
    length = [Instruction(Function.NUMBER, 1, number=float(rows)), *add]
    places = Fixed(torch.arange(rows, dtype=torch.float32))
    counted = net.floats.map(net.floats.like(view), view, places, add)
    net.result(
        net.floats.map(net.floats.like(view), counted, None, length), x + np.arange(rows, dtype=np.float32) + rows
    )
    return net


@needs_kernels
def test_pairs_of_positions_and_the_length_itself_have_a_form() -> None:
    """Sizes are products of two lengths, a constant is cut in both of its dimensions, and a float32 is the length."""
    made = {each: pairs(each).program.to_bytes() for each in (4, 7, 9, 11, LONGEST)}
    block, form = block_of(made)
    assert form.bends
    assert form.rates
    memory = np.concatenate([np.zeros(form.room(LONGEST), np.uint8), np.frombuffer(block, np.uint8)])
    form.spread(memory, tuple(range(1, LONGEST + 1)))
    kernels = library.open_library()
    session = kernels.cpupack_new_session(1)
    for rows in range(2, LONGEST + 1):  # one position has fewer dimensions
        net, own = pairs(rows), memory[form.size * (rows - 1) :]
        found = np.zeros((len(net.samples), net.program.outputs), np.float32)
        piece = (Piece * 1)((own.ctypes.data, own.size, len(net.samples)))
        code = kernels.cpupack_run_pieces(session, piece, 1, net.samples.ctypes.data, found.ctypes.data, 1)
        assert kernels.cpupack_error(code).decode() == "no error"
        assert np.array_equal(found, np.concatenate(net.expected, 1))
    kernels.cpupack_close_session(session)


def test_two_lengths_prove_nothing() -> None:
    with pytest.raises(NoFormError, match="2 lengths"):
        block_of(programs(7, LONGEST))


def test_programs_that_do_not_follow_have_no_form() -> None:
    with pytest.raises(NoFormError, match="layers"):
        block_of({**programs(7, 9), LONGEST: functions().program.to_bytes()})
    with pytest.raises(NoFormError, match="step"):
        block_of({7: programs(7)[7], 10: programs(9)[9], LONGEST: programs(LONGEST)[LONGEST]})


def test_a_damaged_form_is_an_error() -> None:
    block, form = block_of(programs(7, 9, LONGEST))
    for damage in (Form(form.size, form.steps + 4096), Form(form.size + 64 * 1024, form.steps + 64 * 1024)):
        with pytest.raises(ValueError, match="beyond its end"):
            formed(block, damage)


@needs_kernels
def test_the_kernels_refuse_what_is_of_no_network_and_what_is_damaged() -> None:
    program, _ = formed(*block_of(programs(7, 9, LONGEST)))
    other = np.frombuffer(functions().program.to_bytes(), np.uint8)
    damaged = program.parts[3].memory.copy()
    damaged[: HEADER.itemsize].view(HEADER)["layers"] = 1 << 15
    kernels = library.open_library()
    session = kernels.cpupack_new_session(1)
    given, found = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float32)

    def call(*memory: np.ndarray, count: int | None = None) -> str:
        pieces = (Piece * max(1, len(memory)))(*((each.ctypes.data, each.size, 1) for each in memory))
        number = len(memory) if count is None else count
        code = kernels.cpupack_run_pieces(session, pieces, number, given.ctypes.data, found.ctypes.data, 1)
        return kernels.cpupack_error(code).decode()

    first = program.parts[0].memory
    assert call(first, program.parts[5].memory) == "no error"
    assert "input" in call(first, other)
    assert "damaged" in call(first, damaged)
    assert "damaged" in call(first[: HEADER.itemsize - 1], first)
    assert "input" in call(first, count=0)
    assert "input" in call(first, count=129)
    kernels.cpupack_close_session(session)
    assert "closed" in call(first)
    kernels.cpupack_end_session(session)
