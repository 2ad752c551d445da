"""Recurrent layers against the same arithmetic in numpy, byte for byte, at odd sizes and extreme values."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.runtime.engine import library
from cpupack.stages.quantize.native.program import Op
from cpupack.stages.quantize.native.recurrence import GATES, Direction, Kind, Words
from cpupack.stages.quantize.native.walks import View
from helpers import kernel_process, native_reference
from helpers import recurrent_reference as reference
from helpers.float_nets import Net, same_bytes

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.skipif(not native_reference.runs_here(), reason="the native kernels do not run on this CPU")


def direction(kind: Kind, inputs: int, units: int, seed: int, projected: int = 0, scale: float = 0.5) -> Direction:
    random = np.random.default_rng(seed)

    def drawn(*shape: int) -> torch.Tensor:
        values = random.normal(0, scale, shape)
        values[random.random(shape) < 0.05] = scale * 4  # many codes of 127
        return torch.from_numpy(values.astype(np.float32))

    rows = GATES[kind] * units
    return Direction(
        drawn(rows, inputs), drawn(rows, projected or units), drawn(rows), drawn(rows),
        drawn(projected, units) if projected else None,
    )  # fmt: skip


def layer(
    kind: Kind, steps: int, inputs: int, units: int, *, directions: int = 1, projected: int = 0, states: bool = False,
    samples: int = 3, extreme: bool = False, turned: bool = False,
    words: Words = Words.NONE, lengths: bool = False,
) -> Net:  # fmt: skip
    """Return a net of one layer whose sequence, last values and last cells leave."""
    states = states or lengths
    random = np.random.default_rng(steps + inputs)
    nets = [direction(kind, inputs, units, number, projected) for number in range(directions)]
    own = directions * ((projected or units) + (units if kind is Kind.LSTM else 0)) if states else 0
    own += lengths
    values = random.normal(0, 1, (samples, own + steps * inputs)).astype(np.float32)
    if extreme:
        values[0] = 0.0
        values[1, ::7] = random.choice(np.array([1e-38, -1e-31, 1e20, -3e30, 0.0], np.float32), values[1, ::7].shape)
        values[2, -3:] = [np.nan, np.inf, -np.inf]
    if lengths:  # of none, of more than all, of a part of a step
        values[:, own - 1] = random.permutation(
            np.resize([0, steps, 1, steps + 3, steps - 1, 2.5, np.nan, -4], samples)
        )
    net = Net(values)
    first, start = net.view((own,))[0] if states else None, values[:, :own] if states else None
    view, x = net.view((steps, inputs), own)
    if turned:  # steps side by side in memory, a value at a time
        view = View(view.buffer, (steps, inputs), (1, steps), own)
        x = x.reshape(samples, inputs, steps).transpose(0, 2, 1)
    outputs, last, cells, _ = net.floats.recur(view, kind, nets, first, words=words, lengths=lengths)
    expected = (
        reference.run_lengths(kind, nets, x, start, words)
        if lengths and start is not None
        else reference.run(kind, nets, x, start, words)
    )
    net.result(outputs, expected[0])
    net.result(last, expected[1])
    if cells is not None:
        net.result(cells, expected[2])
    return net


NETS = {
    f"{kind.name.lower()} of {steps}, {inputs}, {units}": (kind, steps, inputs, units, {})
    for kind in Kind
    for steps, inputs, units in ((1, 1, 1), (5, 3, 17), (7, 64, 16), (3, 67, 65), (4, 130, 48))
} | {
    f"{kind.name.lower()}, {name}": (kind, 6, 21, 35, how)
    for kind in Kind
    for name, how in {
        "both ways": {"directions": 2},
        "from states": {"directions": 2, "states": True, "samples": 18},
        "extreme": {"extreme": True, "directions": 2},
        "turned": {"turned": True, "samples": 17},
        "many samples": {"samples": 77},
        "of words": {"words": Words.ALL, "directions": 2, "states": True},
        "of words of inputs": {"words": Words.INPUTS, "directions": 2, "states": True},
        "of words of hidden values": {"words": Words.HIDDEN, "directions": 2, "states": True, "samples": 18},
        "of words of inputs, extreme": {"words": Words.INPUTS, "extreme": True, "samples": 9},
        "of words, extreme": {"words": Words.ALL, "extreme": True, "samples": 9},
        "of lengths": {"lengths": True, "directions": 2, "samples": 75},
        "of lengths and words": {"lengths": True, "words": Words.ALL, "samples": 9},
    }.items()
} | {
    "lstm, projected": (Kind.LSTM, 5, 30, 70, {"projected": 5}),
    "lstm, projected both ways from states": (
        Kind.LSTM, 5, 30, 90, {"projected": 67, "directions": 2, "states": True},
    ),
    "lstm, long": (Kind.LSTM, 200, 40, 33, {"samples": 2}),
    "gru, long": (Kind.GRU, 300, 5, 20, {"samples": 2}),
    "lstm, projected, of words": (Kind.LSTM, 5, 31, 90, {"projected": 67, "directions": 2, "words": Words.ALL}),
    "lstm, projected, of words of inputs": (
        Kind.LSTM, 5, 31, 90, {"projected": 67, "directions": 2, "words": Words.INPUTS, "samples": 17},
    ),
    "lstm, projected, of words of hidden values": (
        Kind.LSTM, 5, 31, 90, {"projected": 67, "directions": 2, "words": Words.HIDDEN, "samples": 17},
    ),
    "gru, long, of words": (Kind.GRU, 300, 5, 20, {"samples": 2, "words": Words.ALL}),
    "lstm, projected, of lengths": (Kind.LSTM, 5, 31, 90, {"projected": 67, "directions": 2, "lengths": True}),
    "gru, long, of lengths": (Kind.GRU, 300, 5, 20, {"samples": 11, "lengths": True, "directions": 2}),
    "lstm, wide, of words": (Kind.LSTM, 2, 701, 400, {"samples": 9, "words": Words.ALL}),
    "lstm, wide": (Kind.LSTM, 2, 700, 400, {"samples": 9}),
}  # fmt: skip


def made(name: str) -> Net:
    kind, steps, inputs, units, how = NETS[name]
    with np.errstate(all="ignore"):
        return layer(kind, steps, inputs, units, **how)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    library.load()
    library.set_threads(1)


@pytest.mark.parametrize("name", NETS)
def test_each_layer_gives_what_plain_arithmetic_gives(name: str) -> None:
    net = made(name)
    x, program = net.tensors()
    found = torch.ops.cpupack.run_3(x, program, net.program.outputs).numpy()
    same_bytes(found, np.concatenate(net.expected, 1))


@pytest.mark.parametrize(
    "name", ["lstm, from states", "gru, both ways", "tanh, turned", "lstm, projected", "lstm, of lengths"]
)
def test_any_batch_and_any_number_of_threads_give_the_same_bytes(name: str) -> None:
    net = made(name)
    x, program = net.tensors()
    alone = [torch.ops.cpupack.run_3(each[None], program, net.program.outputs) for each in x]
    for threads in (1, 2, 3):
        library.set_threads(threads)
        for batch in (1, 2, 5, 70):
            found = torch.ops.cpupack.run_3(x.repeat(70, 1)[:batch].contiguous(), program, net.program.outputs)
            for sample in range(batch):
                assert torch.equal(found[sample], alone[sample % len(x)][0]), (threads, batch, sample)


def test_the_reference_itself_is_close_to_the_functions() -> None:
    x = np.linspace(-30, 30, 60001).astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    assert np.abs(reference.quotient(reference.tanh_as_fraction(x)) - exact).max() < 4e-7
    sigmoid = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(reference.quotient(reference.sigmoid_as_fraction(x)) - sigmoid).max() < 2e-7


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says that it takes its own way
@pytest.mark.parametrize("kind", list(Kind))
def test_the_reference_itself_is_torchs_layer_but_for_rounding(kind: Kind) -> None:
    """Codes of 8 bits lose 1/254 of the largest value at most; sums of some dozens of them a few times that."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    both = {"batch_first": True, "bidirectional": True}
    module: Any = {
        Kind.LSTM: lambda: torch.nn.LSTM(20, 30, proj_size=10, **both),  # type: ignore[arg-type]
        Kind.GRU: lambda: torch.nn.GRU(20, 30, **both),  # type: ignore[arg-type]
        Kind.TANH: lambda: torch.nn.RNN(20, 30, **both),  # type: ignore[arg-type]
        Kind.RELU: lambda: torch.nn.RNN(20, 30, nonlinearity="relu", **both),  # type: ignore[arg-type]
    }[kind]()
    directions = [
        Direction(*(each.detach() for each in group[:4]), group[4].detach() if len(group) > 4 else None)
        for group in module.all_weights
    ]
    x = random.normal(0, 1, (4, 9, 20)).astype(np.float32)
    with torch.inference_mode():
        expected, states = module(torch.from_numpy(x))
    found, last, cells = reference.run(kind, directions, x)
    largest = float(expected.abs().max())
    assert np.abs(found - expected.numpy()).max() < 0.02 * largest
    hidden = states[0] if kind is Kind.LSTM else states
    assert np.abs(last - hidden.transpose(0, 1).numpy()).max() < 0.02 * largest
    if kind is Kind.LSTM:
        assert np.abs(cells - states[1].transpose(0, 1).numpy()).max() < 0.02 * float(states[1].abs().max())


def case(name: str) -> kernel_process.Case:
    net = made(name)
    return (*net.tensors(), net.program.outputs)


def digests() -> dict[str, str]:
    return kernel_process.digests({name: partial(case, name) for name in NETS})


@pytest.mark.parametrize("isa", ["vnni", "avx2"])
def test_lesser_instruction_sets_give_the_same_bytes(isa: str) -> None:
    kernel_process.same_digests_with(isa, "test_recurrent_kernels", digests())


# --- damaged programs

_HEADER, _BUFFER, _LAYER, _NUMBERS = 64, 48, 160, 15
DAMAGED = ("lstm, from states", "gru, both ways", "tanh, turned", "lstm, projected", "lstm, of lengths")


def damage(seed: int) -> tuple[int, int]:
    """Run programs with numbers of their buffers, layers and recurrences changed; return how many ran, how many not."""
    library.load()
    random = np.random.default_rng(seed)
    extremes = [-(2**31), -1, 0, 1, 2, 3, 15, 17, 64, 255, 4096, 2**15, 2**16, 2**22, 2**24, 2**30, 2**31 - 1]
    ran = refused = 0
    for name in DAMAGED:
        net = made(name)
        x, whole = net.tensors()
        program = whole.numpy()
        header = program[:_HEADER].view("<i4")
        layers_at = _HEADER + _BUFFER * int(header[2])
        end, constants = layers_at + _LAYER * int(header[3]), int(program[56:64].view("<i8")[0])
        layers = [layers_at + _LAYER * number for number in range(int(header[3]))]
        own = next(at for at in layers if int(program[at : at + 4].view("<i4")[0]) == Op.RECURRENT)
        numbers = constants + int(program[own + 112 : own + 120].view("<i8")[0])
        places = [*random.choice(range(36, end, 4), 150), *random.choice(range(own, own + _LAYER, 4), 100)]
        places += [numbers + 4 * int(each) for each in random.integers(0, _NUMBERS, 250)]
        library.set_threads(int(random.integers(1, 3)))
        for place in places:
            data = program.copy()
            if random.random() < 0.5:
                data[place : place + 4].view("<i4")[0] = random.choice(extremes)
            else:
                data[place : place + 4].view("<i4")[0] += random.integers(-4, 5)
            data[40:48] = random.integers(0, 256, 8)  # another identity, so the kernels know nothing of the program
            try:
                torch.ops.cpupack.run_3(x, torch.from_numpy(data), int(data[32:36].view("<i4")[0]))
                ran += 1
            except RuntimeError:
                refused += 1
    return ran, refused


@pytest.mark.parametrize("seed", range(2))
def test_damaged_programs_are_refused_or_run_but_never_crash(seed: int) -> None:
    # what runs: numbers that are only data, or that name other values of the same buffer
    kernel_process.damage_survived("test_recurrent_kernels", seed, ran=50, refused=500)
