"""Packed sequences: captured as padded ones with their lengths, native, and the same alone and in a batch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from cpupack.artifacts import FloatModel, QuantizedModel
from cpupack.errors import ModelError, RecipeError
from cpupack.graph.native_model import NativeModel
from cpupack.model.one_row import OneRow
from cpupack.model.packed import padded_sequences
from cpupack.pipeline.data import calibration_samples
from cpupack.progress import SilentProgress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.file import load_recipe
from cpupack.runtime.engine import library
from cpupack.runtime.errors import InputError
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.rows import pack
from cpupack.runtime.signature import Signature
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import quantize
from helpers.lowered import needs_kernels
from helpers.tiny_models import target

STEPS, COUNT = 6, 24
SOURCE = """
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class Packs(nn.Module):
    def __init__(self, kind="LSTM", read="last", batch_first=True, enforce_sorted=False, layers=2):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.sorted, self.read = batch_first, enforce_sorted, read
        self.r = getattr(nn, kind)(8, 20, layers, batch_first=batch_first, bidirectional=True)
        self.fc = nn.Linear(40, 5)

    def forward(self, x, lengths):
        if not self.first:
            x = x.transpose(0, 1)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=self.first, enforce_sorted=self.sorted)
        y, states = self.r(packed)
        if self.read == "last":
            hidden = states[0] if isinstance(states, tuple) else states
            return self.fc(torch.cat([hidden[-2], hidden[-1]], 1))
        if self.read == "cells":
            return self.fc(torch.cat([states[1][0], states[1][-1]], 1))
        if self.read == "whole mean":
            y, counts = pad_packed_sequence(y, batch_first=True, total_length=6)
            return self.fc(y.sum(1) / counts[:, None].to(y))
        y, _ = pad_packed_sequence(y, batch_first=True)
        return self.fc({"steps": lambda: y, "mean": lambda: y.mean(1), "end": lambda: y[:, -1]}[self.read]())


class OwnStart(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.start, self.two = nn.Linear(8, 20), nn.GRU(14, 16, batch_first=True)
        self.one = nn.LSTM(8, 20, batch_first=True, bidirectional=True, proj_size=7)
        self.fc = nn.Linear(16, 5)

    def forward(self, x, lengths):
        c = torch.tanh(self.start(x[:, 0]))
        c = torch.stack([c, -c])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = self.one(packed, (c[..., :7].contiguous(), c))
        y = PackedSequence(torch.relu(y.data), y.batch_sizes, y.sorted_indices, y.unsorted_indices)
        y, _ = pad_packed_sequence(self.two(y)[0], batch_first=True, padding_value=-1.0)
        return self.fc(y)


class OfIds(nn.Module):
    def __init__(self, listed=False):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.r, self.fc = nn.Embedding(50, 8, padding_idx=0), nn.GRU(8, 40), nn.Linear(40, 5)
        self.listed = listed

    def forward(self, ids):
        lengths = (ids != 0).sum(1).cpu()
        lengths = lengths.tolist() if self.listed else lengths
        _, h = self.r(pack_padded_sequence(self.words(ids).transpose(0, 1), lengths, enforce_sorted=False))
        return self.fc(h[-1])
"""
SEQUENCES = '[[input]]\nname = "x"\nshape = [6, 8]\n[[input]]\nname = "lengths"\nshape = []\ndtype = "int64"'
IDS = '[[input]]\nname = "ids"\nshape = [6]\ndtype = "int64"'
LENGTHS = np.random.default_rng(0).integers(1, STEPS + 1, COUNT)
INPUTS = {
    "x": np.random.default_rng(1).standard_normal((COUNT, STEPS, 8)).astype(np.float32),
    "lengths": LENGTHS,
    "ids": np.random.default_rng(2).integers(1, 50, (COUNT, STEPS)) * (np.arange(STEPS) < LENGTHS[:, None]),
}


def recipe_of(root: Path, model: str, kwargs: str, tables: str) -> LoadedRecipe:
    (root / "nets.py").write_text(SOURCE, encoding="utf-8")
    np.savez(root / "data.npz", **INPUTS)  # type: ignore[arg-type]  # its stub takes one kind of array
    path = root / "recipe.toml"
    text = f'schema = 1\n[package]\nname = "tiny"\n[model]\nsource = "python:nets.py:{model}"\nweights = "factory"\n'
    text += f'kwargs = {{{kwargs}}}\n{tables}\n[calibration]\nsource = "arrays:data.npz"\nsamples = {COUNT}\n'
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def loaded(root: Path, model: str, kwargs: str, tables: str) -> FloatModel:
    return load(recipe_of(root, model, kwargs, tables), SilentProgress())


def made(root: Path, model: str, kwargs: str, tables: str) -> tuple[FloatModel, QuantizedModel]:
    given, silent = recipe_of(root, model, kwargs, tables), SilentProgress()
    found = load(given, silent)
    samples = calibration_samples(given, found, silent)
    fused = fuse(capture(found, samples, given.recipe, silent), given.recipe, silent)
    return found, quantize(calibrate(fused, samples, 8, silent), found.module, given.recipe, target("native"))


def run(int8: QuantizedModel, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    library.load()
    with torch.inference_mode():
        return np.asarray(int8.module(torch.from_numpy(rows.astype(np.float32))).numpy())


CASES = {
    "LSTM, last states": ("Packs", ""),
    "LSTM, last cell values": ("Packs", 'read = "cells"'),
    "LSTM, sorted": ("Packs", "enforce_sorted = true"),
    "LSTM, all steps": ("Packs", 'read = "steps"'),
    "GRU, steps first": ("Packs", 'kind = "GRU", batch_first = false'),
    "GRU, mean": ("Packs", 'kind = "GRU", read = "whole mean", layers = 1'),
    "RNN, steps first, all steps": ("Packs", 'kind = "RNN", batch_first = false, read = "steps"'),
    "from states": ("OwnStart", ""),
}


@needs_kernels
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says that it takes its own way
@pytest.mark.parametrize("name", CASES)
def test_each_sequence_is_answered_as_torch_answers_it_alone(tmp_path: Path, name: str) -> None:
    model, int8 = made(tmp_path, *CASES[name], SEQUENCES)
    assert isinstance(int8.module, NativeModel)
    assert all(each.kernel != "aten" for each in int8.layers)
    rows = np.concatenate([INPUTS["x"].reshape(COUNT, -1), LENGTHS[:, None]], 1)
    found = run(int8, rows)
    garbage = rows.copy()
    for row, length in zip(garbage, LENGTHS, strict=True):
        row[length * 8 : STEPS * 8] = 99.0
    padded = run(int8, garbage)
    signal = noise = 0.0
    assert isinstance(model.module, OneRow)
    for number, length in enumerate(LENGTHS):
        with torch.inference_mode():
            x = torch.from_numpy(INPUTS["x"][number : number + 1])
            expected = model.module.user(x, torch.tensor([length]))[0].numpy()
        part = slice(len(expected) if expected.ndim == 2 else None)
        assert np.array_equal(found[number][part], padded[number][part])  # whatever the padding is
        assert np.array_equal(found[number], run(int8, rows[number : number + 1])[0])
        signal += float((expected**2).sum())
        noise += float(((expected - found[number][part]) ** 2).sum())
    assert 10 * np.log10(signal / noise) > 33.0  # as tests/unit/test_native_recurrent.py derives it


@needs_kernels
def test_lengths_may_be_counted_from_ids(tmp_path: Path) -> None:
    model, int8 = made(tmp_path, "OfIds", "", IDS)
    assert model.signature.inputs[0].vocabulary == 50
    assert all(each.kernel != "aten" for each in int8.layers)
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(INPUTS["ids"].astype(np.float32))).numpy()
    found = run(int8, INPUTS["ids"])
    assert 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()) > 33.0
    # torch takes no sequence without steps; the wheel answers from the states with which it begins, zeros.
    assert np.allclose(run(int8, np.zeros((1, STEPS)))[0], model.module.user.fc.bias, atol=1e-2)  # type: ignore[operator,union-attr]


@pytest.mark.parametrize(
    ("model", "kwargs", "tables", "message"),
    [
        ("Packs", 'read = "mean"', SEQUENCES, "depends on the greatest length of its batch.*total_length"),
        ("Packs", 'read = "end"', SEQUENCES, "depends on the greatest length of its batch"),
        ("OfIds", "listed = true", IDS, "depends on the values of a tensor.*pass the tensor itself"),
    ],
)
def test_a_model_that_a_wheel_could_not_answer_for_is_refused(
    tmp_path: Path, model: str, kwargs: str, tables: str, message: str
) -> None:
    with pytest.raises(ModelError, match=f"(?s){message}"):
        made(tmp_path, model, kwargs, tables)


def test_a_length_beyond_the_steps_is_refused(tmp_path: Path) -> None:
    model, _ = made(tmp_path, "Packs", "", SEQUENCES)
    assert model.signature.inputs[1].vocabulary == STEPS + 1


def test_torchs_own_functions_come_back_and_other_threads_keep_them() -> None:
    layer = nn.GRU(3, 4, batch_first=True)
    x, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])

    def sizes() -> tuple[int, ...]:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return tuple(rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)[0].shape) + tuple(packed.data.shape)

    torchs = sizes()
    elsewhere: list[tuple[int, ...]] = []
    with padded_sequences() as use:
        assert sizes() == (2, 5, 4, 2, 5, 3)
        assert use.packs
        thread = threading.Thread(target=lambda: elsewhere.append(sizes()))
        thread.start()
        thread.join()
    assert torchs == sizes() == elsewhere[0] == (2, 5, 4, 7, 3)


def test_a_sample_that_leaves_a_packed_sequence_no_step_is_refused(tmp_path: Path) -> None:
    """torch refuses it too. Without an error the first states would go on, and a mean would be NaN."""
    lengths = loaded(tmp_path, "Packs", "", SEQUENCES).signature
    inputs = {"x": INPUTS["x"][:3], "lengths": np.array([6, 0, 2])}
    assert "lengths int64 (n,) from 1 to 6" in lengths.inputs_text()
    with pytest.raises(InputError, match=r'input "lengths": sample 1 has 0, .* length of at least 1'):
        pack(lengths, inputs)
    assert pack(lengths, {**inputs, "lengths": np.array([6, 1, 2])}).shape == (3, STEPS * 8 + 1)
    random = random_rows(lengths.inputs, np.random.default_rng(0), 200)[:, -1]
    assert (random.min(), random.max()) == (1, STEPS)
    assert Signature.from_dicts(**lengths.to_dicts()) == lengths

    ids = loaded(tmp_path, "OfIds", "", IDS).signature
    with pytest.raises(InputError, match=r'input "ids": sample 1 has 0 in every place, .* length of at least 1'):
        pack(ids, {"ids": np.array([[0, 0, 3, 0, 0, 0], [0] * STEPS])})
    with pytest.raises(RecipeError, match='"lengths": default = 0, and the model packs'):
        loaded(tmp_path, "Packs", "", f"{SEQUENCES}\ndefault = 0")
