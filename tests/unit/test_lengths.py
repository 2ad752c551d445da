"""Programs for several lengths: which one a sample takes, and that its result depends on nothing but the sample."""

from __future__ import annotations

import json
from pathlib import Path
from platform import machine

import numpy as np
import pytest
import torch

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import Contender
from cpupack.errors import ModelError
from cpupack.graph.native_model import NativeModel
from cpupack.pipeline.prepare import Prepared
from cpupack.pipeline.run import stage_untuned
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.runtime.engine.forms import Form
from cpupack.runtime.engine.lengths import Lengths, every, fields, ladder
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.engine.program_format import HEADER
from helpers.lowered import needs_kernels
from helpers.tiny_models import Recorder
from helpers.tiny_text import write_project

LONGEST = 24


def lengths(*values: int) -> Lengths:
    inputs = fields([(12,), (12, 2), (3,)], [0, 0, None], [1.0, 0.0, 0.0])
    outputs = fields([(5,), (2, 12)], [None, 1], [0.0, 0.0])
    return Lengths(values, (0,) * len(values), inputs, outputs)


def rows(*own: int) -> np.ndarray:
    """Return rows whose samples have so many positions: ids that are not 1, pairs, and three numbers for all."""
    found = np.zeros((len(own), 12 + 24 + 3), np.float32)
    found[:, :12] = 1.0
    found[:, 36:] = 9.0
    for row, count in zip(found, own, strict=True):
        row[:count] = np.arange(2, 2 + count)
        row[12 : 12 + 2 * count] = 0.5
    return found


def test_a_sample_takes_the_least_length_that_holds_it() -> None:
    some = lengths(4, 8, 12)
    assert [some.values[place] for place in some.own(rows(1, 4, 5, 8, 9, 12, 0))] == [4, 4, 8, 8, 12, 12, 4]


def test_padding_in_the_middle_and_in_one_input_alone_counts() -> None:
    some, found = lengths(4, 8, 12), rows(10, 2)
    found[0, :8] = 1.0  # two ids, late
    found[1, 12 + 2 * 6] = 0.25  # a pair where the id is padding
    assert [some.values[place] for place in some.own(found)] == [12, 8]


def test_rows_are_cut_and_results_put_where_they_belong() -> None:
    some, found = lengths(4, 12), rows(3, 2)
    cut = some.cut(found, 0)
    assert np.array_equal(cut[:, :4], [[2, 3, 4, 1], [2, 3, 1, 1]])
    assert np.array_equal(cut[:, 4:12], [[0.5] * 6 + [0] * 2, [0.5] * 4 + [0] * 4])
    assert np.array_equal(cut[:, 12:], [[9, 9, 9]] * 2)
    results = np.full((3, 5 + 24), 7.0, np.float32)
    some.put(np.arange(2 * 13, dtype=np.float32).reshape(2, 13), 0, results, np.array([2, 0]), np.array([3, 2]))
    assert np.array_equal(results[2, :5], range(5))
    assert np.array_equal(results[2, 5:].reshape(2, 12), [[*range(5, 8), *[0] * 9], [*range(9, 12), *[0] * 9]])
    assert np.array_equal(results[0, :5], range(13, 18))
    assert (results[1] == 7.0).all()


def test_groups_have_all_rows_once_in_powers_of_two() -> None:
    some, found = lengths(4, 8, 12), rows(*[3] * 11, *[12] * 3, 6)
    groups = list(some.groups(some.ends(found)))
    assert [len(numbers) for _, numbers in groups] == [8, 2, 1, 1, 2, 1]
    assert sorted(np.concatenate([numbers for _, numbers in groups]).tolist()) == list(range(15))


def formed() -> Lengths:
    some = lengths(4, 12)
    return every(1, 12, some.inputs, some.outputs, Form(640, 1280))


def test_packs_have_all_rows_once_and_no_more_positions_than_a_call_computes() -> None:
    some = formed()
    ends = np.array([3, 12, *[7] * 100, 1, 12, 5])
    packs = list(some.packs(ends))
    assert sorted(number for pack in packs for _, numbers in pack for number in numbers.tolist()) == list(range(105))
    for pack in packs:
        assert all((ends[numbers] == some.values[place]).all() for place, numbers in pack)
        assert sum(some.values[place] * len(numbers) for place, numbers in pack) <= 512
    assert len(packs) == 2  # of 733 positions


def test_a_pack_has_no_more_lengths_than_the_kernels_take() -> None:
    inputs = fields([(400,)], [0], [0.0])
    some = every(1, 400, inputs, fields([(5,)], [None], [0.0]), Form(640, 1280))
    packs = list(some.packs(np.arange(1, 401)))
    assert sum(len(pack) for pack in packs) == 400
    assert max(len(pack) for pack in packs) <= 128


def test_what_is_written_is_read_back() -> None:
    assert Lengths.from_dict(lengths(4, 12).to_dict()) == lengths(4, 12)
    assert Lengths.from_dict(formed().to_dict()) == formed()
    for damage in ({"values": [0, 12]}, {"values": [12]}, {"form": {"size": 641, "steps": 1280}}):
        with pytest.raises(ValueError, match="form"):
            Lengths.from_dict({**formed().to_dict(), **damage})
    for damage in ({"values": [12, 4]}, {"offsets": [0]}, {"inputs": []}, {"values": [4, 8]}):
        with pytest.raises(ValueError, match=r"length|lengths"):
            Lengths.from_dict({**lengths(4, 12).to_dict(), **damage})


def test_the_ladder_wastes_little() -> None:
    """At most seven positions, or a quarter of those that are needed."""
    for longest in (1, 5, 8, 100, 512, 4096):
        steps = ladder(longest)
        assert steps[-1] == longest
        before = 0
        for step in steps:
            assert step - before - 1 <= max(7, (before + 1) / 4)
            before = step
    assert len(ladder(512)) == 20


MODEL = """
import torch
from torch import nn
import torch.nn.functional as F

class Encoder(nn.Module):
    def __init__(self, masked=True, tokens=False, pairs=False):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(50, 32), nn.Embedding(24, 32)
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.last, self.masked, self.tokens = nn.Linear(32, 4), masked, tokens
        self.pairs, self.mix, self.near = pairs, nn.Linear(4, 4), nn.Parameter(torch.randn(47, 4))

    def attend(self, q, k, v, mask, mixed):
        size = q.shape[2]
        apart = torch.arange(size)[None, :] - torch.arange(size)[:, None]
        scores = q @ k.transpose(-1, -2) * 8 ** -0.5 + self.near[apart + 23].permute(2, 0, 1)
        if mixed:  # the scores of a pair of positions go through a layer
            scores = self.mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores = scores.masked_fill(apart.abs() > 5, -1e9).masked_fill(mask[:, None, None, :] == 0, -1e9)
        return scores.softmax(-1) @ v

    def forward(self, ids, mask):
        places = torch.cumsum(mask, 1) * mask if self.pairs else torch.arange(ids.shape[1])
        x = self.norm(self.words(ids) + self.places(places.clamp(max=23)))
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = mask[:, None, None, :].bool() if self.masked else None
        if self.pairs:
            found = self.attend(q, k, v, mask, False) + self.attend(k, q, v, mask, True)
        else:
            found = F.scaled_dot_product_attention(q, k, v, seen)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        real = mask.unsqueeze(-1).float()
        pooled = (x * real).sum(1) / real.sum(1).clamp(min=1e-9)
        return {"scores": self.last(pooled), "tokens": x} if self.tokens else self.last(pooled)
"""
RECIPE = """
schema = 1
[package]
name = "tiny-int8"
[model]
source = "python:model.py:Encoder"
kwargs = {{ {kwargs} }}
weights = "factory"
[[input]]
name = "ids"
shape = [24]
dtype = "int64"
pad = 1
[[input]]
name = "mask"
shape = [24]
dtype = "int64"
vocabulary = 2
pad = 0
{lengths}
[calibration]
source = "arrays:data.npz"
samples = 16
[target.x86_64]
engine = "{engine}"
"""


def texts(*own: int) -> np.ndarray:
    random = np.random.default_rng(2)
    mask = np.arange(LONGEST) < np.array(own)[:, None]
    ids = np.where(mask, random.integers(2, 50, mask.shape), 1)
    return np.concatenate([ids, mask], 1).astype(np.float32)


SOME = "[lengths]\nvalues = [4, 16]"


def built(directory: Path, kwargs: str, asked: str = SOME, engine: str = "native") -> tuple[Prepared, Contender]:
    (directory / "model.py").write_text(MODEL)
    (directory / "recipe.toml").write_text(RECIPE.format(kwargs=kwargs, lengths=asked, engine=engine))
    data = texts(*range(1, 25)).astype(np.int64)
    np.savez(directory / "data.npz", ids=data[:, :24], mask=data[:, 24:])
    loaded = load_recipe(directory / "recipe.toml")
    work = directory / "work"
    work.mkdir()
    prepared, contender, _ = stage_untuned(loaded, "x86_64", work, SilentProgress())
    return prepared, contender


ALL = tuple(range(1, LONGEST + 1))


@needs_kernels
@pytest.mark.parametrize(
    ("asked", "values", "pairs"),
    [(SOME, (4, 16, LONGEST), "false"), ("", ALL, "false"), ("", ALL, "true")],
)
def test_a_sample_gives_the_same_bytes_alone_and_in_any_batch(
    tmp_path: Path, asked: str, values: tuple[int, ...], pairs: str
) -> None:
    """Also with positions that are counted from the mask, and with constants and scores for pairs of positions."""
    prepared, contender = built(tmp_path, f"tokens = true, pairs = {pairs}", asked)
    module = contender.quantized.module
    assert isinstance(module, NativeModel)
    assert module.lengths is not None
    assert module.lengths.values == values
    data = texts(24, 3, 16, 5, 1, 17, 4, 24, 2, 11, 0, 23)
    with torch.inference_mode():
        expected = module.lengths.blanked(data, prepared.model.module(torch.from_numpy(data)).numpy())
    found = {}
    for threads in (1, 2):
        with InstancePool(contender.scripted.path, "native", threads, 1) as pool:
            found[threads] = pool.run(data)
            for number in range(len(data)):
                assert np.array_equal(pool.run(data[number : number + 1]), found[threads][number : number + 1])
            assert np.array_equal(pool.run(data[::-1]), found[threads][::-1])
    assert np.array_equal(found[1], found[2])
    real = data[:, LONGEST:].any(axis=1)
    assert sqnr_db(expected[real], found[1][real]) > 25.0
    tokens = found[1][1, 4:].reshape(LONGEST, 32)
    assert tokens[:3].any(axis=1).all()  # the third sample's own
    assert not tokens[3:].any()


@needs_kernels
@pytest.mark.parametrize("asked", [SOME, ""])
def test_programs_share_their_weights(tmp_path: Path, asked: str) -> None:
    _, contender = built(tmp_path, "", asked)
    module = contender.quantized.module
    assert isinstance(module, NativeModel)
    program = module.get_buffer("program").numpy()
    weights = 50 * 32 * 4 + 24 * 32 * 4 + 32 * 96 + 32 * 32  # of the tables, which are small, in float32
    constants = len(program) - int(program[: HEADER.itemsize].view(HEADER)[0]["constants"])
    assert constants < 2 * weights  # with the settings of steps, which differ
    with InstancePool(contender.scripted.path, "native", 1, 1) as pool:
        pool.run(texts(24))
        before = pool.shared_bytes
        pool.run(texts(3, 16))
        assert pool.shared_bytes == before  # nor is anything prepared again


@needs_kernels
def test_a_model_whose_answer_depends_on_padding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="depends on padding"):
        built(tmp_path, "masked = false")


def test_it_is_refused_by_the_engines_that_compute_padding_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="depends on padding: a sample of length 13"):
        built(tmp_path, "masked = false", "", "qnnpack" if machine() == "aarch64" else "fbgemm")


@pytest.mark.parametrize("extra", ["", "\n[tokenizer]\nfixed_length = true"])
def test_padding_before_a_text_that_moves_its_positions_is_told(tmp_path: Path, extra: str) -> None:
    """BERT's positions are counted from the first token of a row: another one with the padding of another length."""
    path = write_project(tmp_path, extra=extra)
    file = tmp_path / "model" / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["padding"]["direction"] = "Left"
    file.write_text(json.dumps(settings))
    (tmp_path / "work").mkdir()
    progress = Recorder()
    stage_untuned(load_recipe(path), machine(), tmp_path / "work", progress)
    told = [each for each in progress.warnings if "depends on padding: a sample of length 5" in each]
    assert len(told) == (0 if extra else 1), progress.warnings


def test_what_hides_padding_is_taken_by_them(tmp_path: Path) -> None:
    _, contender = built(tmp_path, "tokens = true", "", "qnnpack" if machine() == "aarch64" else "fbgemm")
    assert contender.report.sqnr_db > 20.0


@needs_kernels
def test_the_report_is_of_the_programs_that_ship(tmp_path: Path) -> None:
    prepared, contender = built(tmp_path, "")
    module = contender.quantized.module
    assert isinstance(module, NativeModel)
    assert module.lengths is not None
    data = np.asarray(prepared.reference.samples.data, np.float32)
    with InstancePool(contender.scripted.path, "native", 1, 1) as pool:
        found = pool.run(data)
    expected = module.lengths.blanked(data, prepared.reference.outputs)
    assert contender.report.sqnr_db == pytest.approx(sqnr_db(expected, found))
    kept = len(contender.golden["input"])
    assert np.array_equal(contender.golden["output"], found[:kept])


SOUND = """
import torch
from torch import nn

class Frames(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.near, self.rnn = nn.Conv1d(6, 12, 3, padding=1), nn.GRU(12, 16, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.rnn(self.near(x.transpose(1, 2)).relu().transpose(1, 2))[0])

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.near, self.last = nn.Conv1d(1, 8, 17, 2), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.near(x[:, None]).relu().sum(2))
"""


def one_float(directory: Path, name: str, data: np.ndarray) -> tuple[Prepared, Contender]:
    (directory / "model.py").write_text(SOUND)
    (directory / "recipe.toml").write_text(
        f"""
schema = 1
[package]
name = "tiny-int8"
[model]
source = "python:model.py:{name}"
weights = "factory"
[[input]]
name = "x"
shape = {list(data.shape[1:])}
pad = 0.0
[calibration]
source = "arrays:data.npz"
samples = 16
[target.x86_64]
engine = "native"
"""
    )
    np.savez(directory / "data.npz", x=data)
    (directory / "work").mkdir()
    loaded = load_recipe(directory / "recipe.toml")
    prepared, contender, _ = stage_untuned(loaded, "x86_64", directory / "work", SilentProgress())
    return prepared, contender


@needs_kernels
def test_the_only_input_of_numbers_may_have_a_pad(tmp_path: Path) -> None:
    """A single float32 input is no row without one."""
    data = np.random.default_rng(0).standard_normal((16, 20, 6)).astype(np.float32)
    prepared, contender = one_float(tmp_path, "Frames", data)
    assert isinstance(contender.quantized.module, NativeModel)
    lengths = contender.quantized.module.lengths
    assert lengths is not None
    assert prepared.model.signature.takes_rows
    data[:, 9:] = 0.0
    with InstancePool(contender.scripted.path, "native", 1, 1) as pool:
        found = pool.run(data.reshape(16, -1)).reshape(16, 20, 3)
    with torch.inference_mode():
        expected = prepared.model.module.user(torch.from_numpy(data[:, :9].copy())).numpy()  # type: ignore[operator]
    assert not found[:, 9:].any()
    assert sqnr_db(expected, found[:, :9]) > 25.0


@needs_kernels
def test_lengths_begin_where_the_model_runs(tmp_path: Path) -> None:
    """Its convolution takes 17 positions at least; what it says of its padding is told, not that 8 are too few."""
    data = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    with pytest.raises(ModelError, match="depends on padding: a sample of length 24"):
        one_float(tmp_path, "Wide", data)
