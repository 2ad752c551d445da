"""Recurrent layers as people write them, captured and lowered: one form each, wholly native, close to FP32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.graph.native_model import NativeModel
from cpupack.stages.quantize.native.program import Op
from helpers.lowered import kernels, lowered, needs_kernels, program_buffers, program_layers
from helpers.tiny_models import quantized, recipe, run, samples

pytestmark = needs_kernels
# Codes of 8 bits of a step cost 44 dB (a scale of its own: the largest value is 127), weights as much. Each layer adds
# three such errors, and the linear layer after it two: some 33 dB are left of three layers.
BOUND_DB = 33.0
# Codes of 16 bits of values lose nothing beside weights of 11 bits, which cost 62 dB, in two matrices and two layers. A
# linear layer over all steps has 8 bits, though, which cost 44 dB for its values and as much for its weights.
WORDS_DB = 39.0
WIDE_INPUTS = " with inputs of 16 bits"


class Sequence(nn.Module):
    """A recurrent layer, and what ``read`` takes of its results to a linear layer."""

    def __init__(self, kind: Any, read: Callable[[torch.Tensor, Any], torch.Tensor], **how: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.steps_first = not how.setdefault("batch_first", True)
        self.r = kind(8, 20, **how)
        self.read = read
        self.fc = nn.LazyLinear(5)
        self(torch.zeros(2, 6, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, states = self.r(x.transpose(0, 1) if self.steps_first else x)
        return self.fc(self.read(y, states))


class Spread(Sequence):
    """Values of very different sizes that the net computes: those of its input would be levelled before."""

    def __init__(self, kind: Any, read: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
        self.spread = 1.0
        super().__init__(kind, read)
        self.spread = 10.0 ** torch.linspace(2, -2, 8)
        with torch.no_grad():
            self.r.weight_ih_l0 /= self.spread  # each of them matters alike

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.sqrt(x.square() + 1e-12) * self.spread)


class Cells(nn.Module):
    """A loop over cells, which export writes out."""

    def __init__(self, cell: nn.Module, *, states: bool) -> None:
        super().__init__()
        self.cell, self.states, self.fc = cell, states, nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: Any = None
        if self.states:
            zeros = x.new_zeros(x.shape[0], 20)
            state = (zeros, zeros) if isinstance(self.cell, nn.LSTMCell) else zeros
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


class FromStates(nn.Module):
    """Layers that start from what other layers computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.r = nn.LSTM(8, 20, num_layers=2, batch_first=True)
        self.one, self.two, self.fc = nn.Linear(8, 20), nn.Linear(8, 20), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.stack([self.one(x[:, 0]), self.two(x[:, 1])])
        y, (_, cells) = self.r(x, (hidden, torch.tanh(hidden)))
        return self.fc(y[:, -1] + cells[1])


class Learned(nn.Module):
    """A layer that starts from parameters, laid out for the batch."""

    def __init__(self, *, repeats: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.r, self.fc = nn.GRU(8, 20, batch_first=True, bidirectional=True), nn.Linear(40, 5)
        self.first, self.repeats = nn.Parameter(torch.randn(2, 1, 20)), repeats

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        first = self.first.repeat(1, n, 1) if self.repeats else self.first.expand(-1, n, -1).contiguous()
        return self.fc(self.r(x, first)[0][:, -1])


class AfterConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Sequential(nn.Conv1d(6, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 24, 3, stride=2))
        self.r, self.fc = nn.GRU(24, 20, batch_first=True, bidirectional=True), nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.r(self.conv(x).transpose(1, 2))[0])


class ByHand(nn.Module):
    """An LSTM as a loop over linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.x, self.h, self.fc = nn.Linear(8, 80), nn.Linear(20, 80, bias=False), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], 20)
        for step in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, step]) + self.h(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.fc(h)


class TwinRows(nn.Module):
    """One layer for two parts of the input: neither follows from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.fc = nn.Linear(8, 20), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.one(x[:, 0]).relu() + self.one(x[:, 1]).relu())


def both_last(_: torch.Tensor, states: Any) -> torch.Tensor:
    hidden = states[0] if isinstance(states, tuple) else states
    return torch.cat([hidden[-2], hidden[-1]], 1)


def last_step(y: torch.Tensor, _: Any) -> torch.Tensor:
    return y[:, -1]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: Sequence(nn.LSTM, last_step),
    "LSTM, two layers both ways": lambda: Sequence(nn.LSTM, last_step, num_layers=2, bidirectional=True),
    "LSTM, last hidden values": lambda: Sequence(nn.LSTM, lambda _, s: s[0][-1], num_layers=2),
    "LSTM, last cell values": lambda: Sequence(nn.LSTM, lambda _, s: s[1][0] + s[0][0]),
    "LSTM, no bias": lambda: Sequence(nn.LSTM, last_step, bias=False),
    "GRU, steps first": lambda: Sequence(nn.GRU, lambda y, _: y[-1], batch_first=False, num_layers=2),
    "GRU, steps first, both ways": lambda: Sequence(nn.GRU, both_last, batch_first=False, bidirectional=True),
    "GRU, all steps": lambda: Sequence(nn.GRU, lambda y, _: y),
    "GRU, mean over steps": lambda: Sequence(nn.GRU, lambda y, _: y.mean(1)),
    "RNN": lambda: Sequence(nn.RNN, last_step),
    "RNN, relu": lambda: Sequence(nn.RNN, last_step, nonlinearity="relu", num_layers=2),
    "LSTM cells": lambda: Cells(nn.LSTMCell(8, 20), states=True),
    "LSTM cells from nothing": lambda: Cells(nn.LSTMCell(8, 20, bias=False), states=False),
    "GRU cells": lambda: Cells(nn.GRUCell(8, 20), states=True),
    "RNN cells": lambda: Cells(nn.RNNCell(8, 20), states=False),
    "from states": FromStates,
    "from parameters, repeated": lambda: Learned(repeats=True),
    "from parameters, expanded": lambda: Learned(repeats=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_recurrent_model_is_wholly_native_and_close_to_fp32(name: str) -> None:
    db, int8, model = lowered(MODELS[name](), (6, 8))
    assert isinstance(model, NativeModel)
    assert model.head is model.tail is None
    assert any(each.startswith("recurrent") for each in kernels(int8))
    assert "aten" not in kernels(int8)
    assert db > (BOUND_DB if "recurrent" in kernels(int8) else WORDS_DB), db


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says that it takes its own way
def test_an_lstm_with_a_projection_is_native() -> None:
    db, int8, _ = lowered(Sequence(nn.LSTM, last_step, proj_size=7, bidirectional=True), (6, 8))
    assert kernels(int8)[0] == "recurrent"
    assert db > BOUND_DB


class Decoder(nn.Module):
    """Writes its steps into a tensor that has the steps first, as tutorials of translation do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.cell, self.last = nn.GRU(8, 20, batch_first=True), nn.GRUCell(5, 20), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, y = self.encoder(x)[1][0], x[:, -1, :5]
        outputs = torch.zeros(4, x.shape[0], 5)
        for step in range(4):
            h = self.cell(y, h)
            y = self.last(h)
            outputs[step] = y
        return outputs.transpose(0, 1)


def test_steps_that_are_written_before_the_batch_are_native() -> None:
    db, int8, model = lowered(Decoder(), (6, 8))
    assert isinstance(model, NativeModel)
    assert model.head is model.tail is None
    assert "aten" not in kernels(int8)
    assert db > BOUND_DB


class Measured(nn.Module):
    """Temperatures, and pressures in pascals, brought to one range by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.means, self.spreads = torch.tensor([20.0, 101325.0]), torch.tensor([5.0, 800.0])
        self.cells, self.last = nn.LSTM(2, 20, batch_first=True), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.cells((x - self.means) / self.spreads)[0][:, -1])
        return result


def test_means_that_are_subtracted_are_no_mask() -> None:
    """A number below -10000 hides values where the others are 0; the recurrent layer was torch's."""
    data = samples((6, 2))
    data = dataclasses.replace(data, data=(data.data * [5.0, 800.0] + [20.0, 101325.0]).astype(np.float32))
    model, int8 = quantized(Measured(), "native", spec=recipe((6, 2)), data=data)
    assert "aten" not in kernels(int8)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


def test_what_comes_before_and_after_is_never_rounded_twice() -> None:
    """The convolution leaves float32 values, of which the recurrent layer makes codes of each step."""
    db, int8, _ = lowered(AfterConvolutions(), (6, 21))
    assert kernels(int8) == ["conv + relu", "conv", "recurrent with inputs of 16 bits", "linear"]
    operations = [int(each["op"]) for each in program_layers(int8)]
    assert 16 not in operations  # DEQUANTIZE
    assert db > BOUND_DB


def test_states_do_not_pass_from_sample_to_sample() -> None:
    _, int8, _ = lowered(Sequence(nn.GRU, last_step), (6, 8))
    data = samples((6, 8))
    whole = run(int8, data)
    with torch.inference_mode():
        alone = int8.module(data.tensor(slice(3, 4))).numpy()
    assert np.array_equal(whole[3:4], alone)


def test_a_skipped_layer_is_torchs_in_fp32() -> None:
    data = samples((6, 8))
    spec = recipe((6, 8), quantize={"observer": "minmax", "skip": ["r"]})
    model, int8 = quantized(Sequence(nn.LSTM, last_step), "native", spec=spec, data=data)
    fact = next(each for each in int8.layers if each.kind == "LSTM")
    assert (fact.precision, fact.kernel) == ("fp32", "aten")
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


@pytest.mark.parametrize("engine", ["fbgemm", "onednn"])
def test_torchs_engines_keep_a_recurrent_layer_in_fp32(engine: str) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {engine}")
    data = samples((6, 8))
    spec = recipe((6, 8), quantize={"observer": "minmax"})
    model, int8 = quantized(Sequence(nn.LSTM, last_step, num_layers=2), engine, spec=spec, data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_layer_whose_inputs_lose_much_in_8_bits_has_16_for_them(kind: Any) -> None:
    """Steps with values of very different sizes, as spectra have: codes of 8 bits hold the largest only."""
    data = samples((6, 8))
    model = Spread(kind, lambda y, _: y[:, -1])
    fp32, int8 = quantized(model, "native", spec=recipe((6, 8)), data=data)
    (layer,) = [each for each in int8.layers if each.kernel.startswith("cpupack::recurrent")]
    # Of an RNN, whose values no gate holds back, the hidden values of 8 bits would leave less than 55 dB.
    assert layer.kernel == f"cpupack::recurrent{' of 16 bits' if kind is nn.RNN else WIDE_INPUTS}"
    # The largest code is 32767 for values that are 10^4 times as large as the smallest: 3 steps for these, an error of
    # a tenth, in values and in weights. They are an eighth of the sum, so some 25 dB are left, where 8 bits leave 3.
    assert accuracy.sqnr_db(run(fp32, data), run(int8, data)) > 20.0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_layer_whose_hidden_values_lose_much_in_8_bits_has_16_for_all(kind: Any) -> None:
    """Half of the hidden values are some 1000 times as small as the others, and count as much in the next step."""
    data = samples((6, 8))
    model = Sequence(kind, last_step)
    sizes = torch.ones(20)
    sizes[::2] = 1e-3
    with torch.no_grad():
        if kind is nn.RNN:  # tanh is a line there; gates of the others are 1/2 and more or less
            model.r.weight_ih_l0 *= sizes[:, None]
            model.r.bias_ih_l0 *= sizes
            model.r.bias_hh_l0 *= sizes
            model.r.weight_hh_l0 *= sizes[:, None]
        else:  # the cell's or the new value's gate
            first = 40
            model.r.weight_ih_l0[first : first + 20] *= sizes[:, None]
            model.r.bias_ih_l0[first : first + 20] *= sizes
            model.r.bias_hh_l0[first : first + 20] *= sizes
            model.r.weight_hh_l0[first : first + 20] *= sizes[:, None]
        model.r.weight_hh_l0 /= sizes
        model.fc.weight /= sizes
    fp32, int8 = quantized(model, "native", spec=recipe((6, 8), quantize={"mode": "auto"}), data=data)
    (layer,) = [each for each in int8.layers if each.kernel.startswith("cpupack::recurrent")]
    assert layer.kernel == "cpupack::recurrent of 16 bits"
    # Codes up to 32767 leave the small values 33 steps each: an error of 1/66 at most, half of that in the mean, and
    # the weights as much. 8 bits leave them no step.
    assert accuracy.sqnr_db(run(fp32, data), run(int8, data)) > 30.0


def test_layers_that_other_engines_have_in_fp32_have_16_bits() -> None:
    """With 8 bits a GRU keeps some 40 dB, and an LSTM too, which is INT8 everywhere.

    What has 16 bits keeps 55 dB on the samples that calibrate, and about as much on others.
    """
    for kind, bits, least in ((nn.LSTM, "", 40.0), (nn.GRU, WIDE_INPUTS, 53.0), (nn.RNN, " of 16 bits", 56.0)):
        db, int8, _ = lowered(Sequence(kind, last_step), (6, 8), mode="auto")
        assert kernels(int8)[0] == f"recurrent{bits}"
        assert db > least, (kind, db)


@pytest.mark.parametrize(
    ("mode", "outputs", "kernel"),
    [("auto", 5, "windows"), ("auto", 400, "linear"), ("dynamic", 5, "linear"), ("static", 5, "conv")],
)
def test_a_small_layer_after_a_recurrent_one_stays_fp32(mode: str, outputs: int, kernel: str) -> None:
    """The LSTM has 6 x 4 x 20 x 28 = 13 440 products. 20 x 5 are few of them, 20 x 400 are not."""
    model = Sequence(nn.LSTM, last_step)
    model.fc = nn.Linear(20, outputs)
    db, int8, _ = lowered(model, (6, 8), mode=mode)
    assert kernels(int8) == ["recurrent", kernel]
    assert int8.layers[-1].precision == ("fp32" if kernel == "windows" else "int8")
    assert db > BOUND_DB


def test_a_recurrence_by_hand_has_a_scale_for_each_step() -> None:
    """Values of a loop stay float32, as those of a recurrent layer, and its steps share their weights."""
    db, int8, model = lowered(ByHand(), (6, 8), mode="auto")
    layers = [each for each in kernels(int8) if each != "map"]
    assert len(layers) == 12  # the first state is zero
    assert {each.split(" ")[0] for each in layers} == {"linear"}
    assert db > 38.0  # an LSTM's 8 bits
    assert isinstance(model.program, torch.Tensor)
    weights = 80 * 8 + 80 * 20 + 20 * 5
    assert model.program.numel() < 6 * 8 * weights  # six copies, with scales and layers, were more
    _, int8, _ = lowered(TwinRows(), (6, 8), mode="auto")
    assert not any(each.startswith("linear") for each in kernels(int8))


@pytest.mark.parametrize("steps", [6, 400])
def test_the_results_of_a_longer_sequence_have_more_rows(steps: int) -> None:
    """Their buffer has no other shape, so that sequences of any length ([sizes]) have one program. A cell value a unit
    follows the rows of an LSTM: one row of two directions more.
    """
    net = Sequence(nn.LSTM, lambda y, _: y.mean(1), bidirectional=True)
    _, int8, _ = lowered(net, (steps, 8))
    (layer,) = (each for each in program_layers(int8) if each["op"] == Op.RECURRENT)
    buffer = program_buffers(int8)[int(layer["output"])]
    assert (int(buffer["height"]), int(buffer["width"]), int(buffer["channels"])) == (steps + 1, 1, 4 * 40)
