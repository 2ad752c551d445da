"""Models with a state at the build: which input is the next value of which output, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.artifacts import FloatModel, QuantizedModel, Samples
from cpupack.errors import CpupackError, ModelError, RecipeError
from cpupack.pipeline.data import calibration_samples
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.runtime.engine import library
from cpupack.runtime.stream import Stream
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import quantize
from helpers.lowered import needs_kernels
from helpers.tiny_models import Recorder, target

SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    def __init__(self, kind="LSTM", how="all", **more):
        super().__init__()
        torch.manual_seed(0)
        self.r = getattr(nn, kind)(8, 20, 2, batch_first=how != "steps first", **more)
        self.fc, self.how = nn.Linear(40 if more.get("bidirectional") else 20, 5), how
        self.first = nn.Parameter(torch.ones(2, 1, 20))

    def forward(self, x):
        if self.how == "steps first":
            return self.fc(self.r(x.transpose(0, 1))[0]).transpose(0, 1)
        zeros = torch.zeros(2, x.shape[0], 20)
        if self.how == "from zeros":
            return self.fc(self.r(x, (zeros, zeros))[0])
        if self.how == "from parameters":
            return self.fc(self.r(x, (self.first.expand(-1, len(x), -1).contiguous(), zeros))[0])
        y, _ = self.r(x)
        if self.how == "twice":
            return self.fc(self.r(x)[0] + y)
        return self.fc(y.mean(1) if self.how == "mean" else y[:, -1] if self.how == "last" else y)


class LookingAhead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.r = nn.Conv1d(8, 8, 3, padding=1), nn.GRU(8, 20, batch_first=True)

    def forward(self, x):
        return self.r(self.conv(x.transpose(1, 2)).transpose(1, 2))[0]


class Packing(nn.Module):
    def __init__(self):
        super().__init__()
        self.r, self.fc = nn.GRU(8, 20, batch_first=True), nn.Linear(20, 5)

    def forward(self, x, n):
        packed = nn.utils.rnn.pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
        return self.fc(self.r(packed)[1][-1])


class OfOneLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.r, self.fc = nn.GRU(8, 20, batch_first=True), nn.Linear(120, 5)

    def forward(self, x):
        return self.fc(self.r(x)[0].flatten(1))


class Cells(nn.Module):
    # One cell above the other, from no state and from zeros.
    def __init__(self, how="all"):
        super().__init__()
        torch.manual_seed(0)
        self.low, self.cells, self.fc = nn.LSTMCell(8, 20), nn.ModuleList([nn.GRUCell(20, 12)]), nn.Linear(12, 5)
        self.how = how

    def forward(self, x):
        states, h, found = None, x.new_zeros(len(x), 12), []
        for step in range(x.shape[1])[:: -1 if self.how == "backwards" else 1]:
            states = self.low(x[:, step], states)
            h = self.cells[0](states[0], h)
            if self.how == "changed":
                h = h * 0.5
            found.append(self.fc(h))
        return torch.stack(found, 1)


class Padded(nn.Module):
    # Over two dimensions, with a stride, and with results cut off.
    def __init__(self, how="all"):
        super().__init__()
        torch.manual_seed(0)
        self.pad, self.both = nn.ZeroPad2d((1, 1, 2, 0)), nn.Conv2d(1, 4, 3)
        self.thin, self.cut = nn.Conv1d(32, 12, 4, stride=2), nn.Conv1d(12, 12, 3, padding=4, dilation=2)
        self.r, self.fc, self.how = nn.GRU(12, 16, batch_first=True), nn.Linear(16, 5), how

    def forward(self, x):
        y = torch.relu(self.both(self.pad(x[:, None])))
        y = y.permute(0, 1, 3, 2).flatten(1, 2)
        y = torch.relu(self.thin(F.pad(y, (2, 0))))
        z = self.cut(y)
        y = y + torch.relu(z[:, :, 4:] if self.how == "late" else z[:, :, :-4])
        y = F.pad(y.transpose(1, 2), (1, 0))[:, :, :12]  # of values, and not of steps
        return self.fc(self.r(y)[0])


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv1d(8, 12, 5, padding=4), nn.Conv1d(12, 5, 3)

    def forward(self, x):
        y = torch.relu(self.a(x.transpose(1, 2))[:, :, :-4])
        return self.b(F.pad(y, (2, 0))).transpose(1, 2)


class JoinedToZeros(nn.Module):
    # Zeros by torch.cat, made in two ways; and a tensor of zeros that steps are written into, which is no padding.
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv1d(8, 12, 3, dilation=2), nn.Conv1d(12, 12, 2), nn.Conv1d(12, 5, 1)

    def forward(self, x):
        x = x.transpose(1, 2)
        y = torch.relu(self.a(torch.cat([torch.zeros(len(x), 8, 4, dtype=x.dtype), x], dim=2)))
        y = self.b(torch.cat((y.new_zeros(1, 12, 1).expand(len(y), -1, -1), y), -1))
        half = torch.zeros_like(y[:, :6])
        half[:] = y[:, 6:]
        return self.c(torch.cat([half, y[:, :6]], 1)).transpose(1, 2)


class NoState(nn.Linear):
    def __init__(self):
        super().__init__(8, 5)


class PaddedOnce(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv1d(8, 4, 3), nn.Linear(24, 5)

    def forward(self, x):
        return self.fc(self.conv(F.pad(x.transpose(1, 2), (2, 0))).flatten(1))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.r, self.fc = nn.LSTM(8, 20, 2, batch_first=True), nn.Linear(20, 5)

    def forward(self, x, h, c):
        y, states = self.r(x, (h, c))
        return self.fc(y), states


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv1d(8, 12, 5), nn.Conv1d(12, 5, 3)

    def forward(self, x, before, between):
        x = torch.cat([before, x], 2)
        y = torch.cat([between, torch.relu(self.a(x))], 2)
        return {"y": self.b(y), "before": x[:, :, -4:], "between": y[:, :, -2:]}
"""
CHUNK, CHUNKS = 6, 4


def write(root: Path, model: str, tables: str, data: np.ndarray[Any, Any]) -> Path:
    (root / "nets.py").write_text(SOURCE, encoding="utf-8")
    np.savez(root / "chunks.npz", x=data)
    text = f"""\
schema = 1
[package]
name = "tiny"
[model]
source = "python:nets.py:{model}"
weights = "factory"
{tables}
[calibration]
source = "arrays:chunks.npz"
samples = {len(data)}
"""
    path = root / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def made(
    root: Path, model: str, tables: str, *, channels_first: bool = False, progress: SilentProgress | None = None
) -> tuple[FloatModel, QuantizedModel, Samples]:
    """Load a model of ``SOURCE`` and quantize it for the native engine, calibrated on 40 chunks."""
    shape = (8, CHUNK) if channels_first else (CHUNK, 8)
    data = np.random.default_rng(0).standard_normal((40, *shape)).astype(np.float32)
    loaded, heard = load_recipe(write(root, model, tables, data)), progress or SilentProgress()
    loaded_model = load(loaded, heard)
    samples = calibration_samples(loaded, loaded_model, heard)
    assert samples is not None
    fused = fuse(capture(loaded_model, samples, loaded.recipe, heard), loaded.recipe, heard)
    stats = calibrate(fused, samples, 8, heard)
    return loaded_model, quantize(stats, loaded_model.module, loaded.recipe, target("native")), samples


def streamed(model: FloatModel, int8: QuantizedModel, x: np.ndarray[Any, Any], axis: int) -> list[Any]:
    """Return the answers of a stream to the chunks of sequences ``x``."""
    library.load()

    def run(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return np.asarray(int8.module(torch.from_numpy(batch)).numpy())

    stream = Stream(model.signature, run)
    return [stream(each) for each in np.split(x, CHUNKS, axis)]


def closeness_db(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


STREAM = f"stream = true\ninput_shape = [{CHUNK}, 8]"
SEQUENCES = np.random.default_rng(1).standard_normal((3, CHUNKS * CHUNK, 8)).astype(np.float32)


@needs_kernels
@pytest.mark.parametrize(
    ("kwargs", "last"),
    [
        ("", False),
        ('kwargs = {how = "last"}', True),
        ('kwargs = {how = "from zeros"}', False),
        ('kwargs = {kind = "GRU", how = "steps first"}', False),
        ('kwargs = {kind = "RNN"}', False),
    ],
)
def test_chunks_are_answered_as_the_whole_sequence_is(tmp_path: Path, kwargs: str, last: bool) -> None:
    model, int8, _ = made(tmp_path, "Plain", f"{STREAM}\n{kwargs}")
    found = streamed(model, int8, SEQUENCES, 1)
    with torch.inference_mode():
        expected = model.module.user(torch.from_numpy(SEQUENCES)).numpy()  # type: ignore[operator]  # of OneRow
    # The bound of tests/unit/test_native_recurrent.py: codes of 8 bits leave 33 dB of two layers and a linear one.
    assert closeness_db(expected, found[-1] if last else np.concatenate(found, 1)) > 33.0


@needs_kernels
@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("Cells", ["low_h", "low_c", "cells_0_h"]),
        ("Padded", ["r_h", "past_0", "past_1", "past_2"]),
        ("Convolutions", ["past_0", "past_1"]),
        ("JoinedToZeros", ["past_0", "past_1"]),
    ],
)
def test_cells_and_causal_convolutions_carry_what_they_have_seen(tmp_path: Path, name: str, states: list[str]) -> None:
    model, int8, _ = made(tmp_path, name, STREAM)
    assert [each.name for each in model.signature.inputs[1:]] == states
    found = np.concatenate(streamed(model, int8, SEQUENCES, 1), 1)
    with torch.inference_mode():
        expected = model.module.user(torch.from_numpy(SEQUENCES)).numpy()  # type: ignore[operator]
    assert closeness_db(expected, found) > 30.0


@needs_kernels
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_chunks_give_the_bytes_of_the_whole_sequence(tmp_path: Path, kind: str) -> None:
    """Each step has codes and scales of its own, and a state is passed on as float32."""
    (tmp_path / "chunks").mkdir()
    settings = f'kwargs = {{kind = "{kind}"}}\n[quantize]\nsmooth = false'  # which goes by the samples
    model, int8, _ = made(tmp_path / "chunks", "Plain", f"{STREAM}\n{settings}")
    found = np.concatenate(streamed(model, int8, SEQUENCES, 1), 1)
    loaded = load_recipe(write(tmp_path, "Plain", f"input_shape = [{CHUNKS * CHUNK}, 8]\n{settings}", SEQUENCES))
    heard = SilentProgress()
    whole = load(loaded, heard)
    samples = calibration_samples(loaded, whole, heard)
    fused = fuse(capture(whole, samples, loaded.recipe, heard), loaded.recipe, heard)
    at_once = quantize(calibrate(fused, samples, 3, heard), whole.module, loaded.recipe, target("native"))
    with torch.inference_mode():
        assert np.array_equal(at_once.module(torch.from_numpy(SEQUENCES)).numpy(), found)


OWN = f"""
[[input]]
name = "x"
shape = [{CHUNK}, 8]
[[input]]
name = "h"
shape = [2, 20]
state = "output_1_0"
[[input]]
name = "c"
shape = [2, 20]
state = "output_1_1"
"""


@needs_kernels
def test_a_model_takes_and_returns_states_as_torch_has_them(tmp_path: Path) -> None:
    model, int8, samples = made(tmp_path, "Own", OWN)
    assert [each.shape for each in model.signature.outputs] == [(CHUNK, 5), (2, 20), (2, 20)]
    found = np.concatenate(streamed(model, int8, SEQUENCES, 1), 1)
    zeros = torch.zeros(2, 3, 20)
    with torch.inference_mode():
        expected = model.module.user(torch.from_numpy(SEQUENCES), zeros, zeros)[0].numpy()  # type: ignore[operator]
    assert closeness_db(expected, found) > 33.0
    # 40 chunks without states are 16 streams of 3 or 2: all but the first of each begin with a state of FP32.
    assert int((samples.data[:, CHUNK * 8 :] != 0).any(1).sum()) == 24


@needs_kernels
def test_a_causal_convolution_takes_and_returns_what_it_has_seen(tmp_path: Path) -> None:
    tables = f"""
[[input]]
name = "x"
shape = [8, {CHUNK}]
[[input]]
name = "before"
shape = [8, 4]
state = "before"
[[input]]
name = "between"
shape = [12, 2]
state = "between"
[[output]]
name = "between"
rename = "next"
"""
    model, int8, _ = made(tmp_path, "Causal", tables, channels_first=True)
    x = np.ascontiguousarray(SEQUENCES.transpose(0, 2, 1))
    found = np.concatenate(streamed(model, int8, x, 2), 2)
    with torch.inference_mode():
        start = torch.zeros(3, 8, 4), torch.zeros(3, 12, 2)
        expected = model.module.user(torch.from_numpy(x), *start)["y"].numpy()  # type: ignore[operator]
    # Ranges of 8 bits for the input, the first layer and the second one's result leave some 40 dB each.
    assert closeness_db(expected, found) > 30.0


PACKED = f"""
stream = true
[[input]]
name = "x"
shape = [{CHUNK}, 8]
[[input]]
name = "n"
shape = []
dtype = "int64"
"""


@pytest.mark.parametrize(
    ("model", "tables", "kind", "message"),
    [
        (
            "Plain",
            STREAM + '\nkwargs = {how = "mean"}',
            ModelError,
            'the output "output" .* another one for two chunks',
        ),
        ("Plain", STREAM + "\nkwargs = {bidirectional = true}", ModelError, "r is bidirectional"),
        ("Plain", STREAM + '\nkwargs = {how = "twice"}', ModelError, "calls r more than once"),
        ("Plain", STREAM + '\nkwargs = {how = "from parameters"}', ModelError, "begin with states that are not zeros"),
        ("LookingAhead", STREAM, ModelError, "another one for two chunks"),
        ("Cells", STREAM + '\nkwargs = {how = "changed"}', ModelError, "gives the cell cells.0 another state"),
        ("Cells", STREAM + '\nkwargs = {how = "backwards"}', ModelError, "another one for two chunks"),
        ("Padded", STREAM + '\nkwargs = {how = "late"}', ModelError, "another one for two chunks"),
        ("PaddedOnce", STREAM, ModelError, "runs on chunks of one length alone, so nobody knows"),
        ("Packing", PACKED, ModelError, "packs its sequences by their lengths; the chunks of a stream have none"),
        ("NoState", STREAM, ModelError, "has no LSTM, GRU or RNN layer and no convolution with padding"),
        ("Own", OWN.replace('"output_1_0"', '"output_1_O"'), RecipeError, 'did you mean "output_1_1"|"output_1_0"'),
        (
            "Own",
            OWN.replace('[2, 20]\nstate = "output_1_1', '[2, 19]\nstate = "output_1_1'),
            ModelError,
            "does not run",
        ),
        ("Own", OWN.replace('state = "output_1_1"', 'state = "output_0"'), RecipeError, 'its state "output_0" is'),
        ("Own", OWN.replace('state = "output_1_1"', 'state = "output_1_0"'), RecipeError, "of another input too"),
        ("Own", OWN.replace("[2, 20]", '[2, 20]\ndtype = "int64"', 1), RecipeError, "is no dtype of a state"),
        ("Own", OWN + '[[output]]\nname = "output_1_0"\ndrop = true', RecipeError, "has drop in its"),
    ],
)
def test_a_model_that_cannot_stream_is_refused(
    tmp_path: Path, model: str, tables: str, kind: type[CpupackError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        load(load_recipe(write(tmp_path, model, tables, SEQUENCES)), SilentProgress())


def test_a_model_of_one_length_is_not_compared_and_the_build_says_so(tmp_path: Path) -> None:
    heard = Recorder()
    load(load_recipe(write(tmp_path, "OfOneLength", STREAM, SEQUENCES)), heard)
    assert any("runs on chunks of one length alone" in each for each in heard.warnings)
