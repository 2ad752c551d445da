"""Models that are hard to quantize: their gates fail without recovery and hold with it, and the build tells why."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli

from cpupack.recipe.file import load_recipe
from cpupack.runtime.host.cpu import machine
from helpers.tiny_recipes import FAST, Outcome, Project

Cpupack = Callable[..., Outcome]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]

MODELS = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.wide = nn.Conv2d(8, 8, 3, bias=False)
        self.narrow = nn.Conv2d(8, 8, 3, stride=2, bias=False)
        self.last = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(8 * 2 * 2, 4, bias=False)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.wide(x))
        x = torch.relu(self.narrow(x))
        x = torch.relu(self.last(x))
        return self.head(x.flatten(1))


def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def channel():
    # One channel inside is 100 times larger than the others, and the next layer divides it out again.
    model = make()
    with torch.no_grad():
        model.wide.weight[3] *= 100.0
        model.narrow.weight[:, 3] /= 100.0
    return model


def picture():
    # The same with a channel of the input.
    model = make()
    with torch.no_grad():
        model.stem.weight[:, 1] /= 100.0
    return model


class Series(nn.Module):
    # One of the numbers that ``mixed`` reads is 1000 times larger than the others.
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 16, batch_first=True)
        self.mixed = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.lstm(x)[0][:, -1]
        return self.head(self.mixed(torch.cat([1000.0 * x[:, :1], x[:, 1:]], 1)))


def series():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Series()
        with torch.no_grad():
            model.mixed.weight[:, 0] /= 1000.0
        return model
"""

RECIPE = """\
schema = 1
[package]
name = "hard"
[model]
source = "python:models.py:FACTORY"
weights = "factory"
input_shape = [3, 16, 16]
[calibration]
source = "arrays:data.npz"
samples = 48
[evaluation]
min_sqnr_db = 22.0

[quantize]
"""
KEYS = {"label", "settings", "sqnr_db", "agreement", "drop", "speedup", "passed", "pareto", "seconds"}


def write(project: Project, factory: str, scale: float = 1.0) -> Path:
    data = np.random.default_rng(0).standard_normal((48, 3, 16, 16)).astype(np.float32)
    data[:, 1] *= scale
    np.savez(project.root / "data.npz", data=data)
    project.write("models.py", MODELS)
    return project.write("hard.toml", RECIPE.replace("FACTORY", factory))


def write_series(project: Project) -> None:
    """The recurrent model, in dynamic mode and with recovery: few trials, all of them of layers in FP32."""
    write(project, "series")
    np.savez(project.root / "data.npz", data=np.random.default_rng(0).standard_normal((32, 12, 6), np.float32))
    text = RECIPE.replace("FACTORY", "series").replace("[3, 16, 16]", "[12, 6]").partition("[calibration]")[0]
    project.write(
        "hard.toml",
        text + '[evaluation]\nsource = "arrays:data.npz"\nmin_sqnr_db = 22.0\n'
        '[quantize]\nmode = "dynamic"\nrecover = true\n',
    )


def files(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def test_a_large_channel_of_the_input_needs_no_recovery(cpupack: Cpupack, project: Project) -> None:
    """The channels of an input of arrays are brought to one range, whatever the engine."""
    write(project, "picture", scale=100.0)
    built = cpupack("build", "hard.toml", "--json", *FAST)
    assert built.code == 0, built.err
    assert json.loads(built.out)["wheels"][0]["report"]["sqnr_db"] > 22.0


def test_a_hard_model_passes_with_recovery_alone(cpupack: Cpupack, project: Project) -> None:
    recipe = write(project, "channel")
    refused = cpupack("build", "hard.toml", *FAST)
    assert refused.code == 6, refused.err
    assert "min_sqnr_db = 22, measured" in refused.err
    assert "[quantize] recover = true" in refused.err
    assert not list((project.root / "dist").glob("*.whl"))

    recipe.write_text(recipe.read_text() + "recover = true\n")
    built = cpupack("build", "hard.toml", *FAST)
    assert built.code == 0, built.err
    wheel = project.root / built.out.strip()
    inside = dict(files(wheel))
    toml = inside["hard/recovered.toml"].decode()
    assert toml in built.err  # as it is, to paste
    # A warning is a sentence: how many samples would prove that the gate holds.
    assert max(len(line) for line in built.err.splitlines() if not line.startswith("warning: ")) <= 110
    assert tomli.loads(inside["hard/recipe.toml"].decode())["quantize"] == {"recover": True}  # as it was written
    manifest = json.loads(inside["hard/manifest.json"])
    assert manifest["quantize"]["notes"][0].startswith("recovery set ")
    settings = tomli.loads(toml)["quantize"]
    assert {key: manifest["quantize"][key] for key in settings} == settings

    recovery = json.loads(inside["hard/build.json"])["recovery"]
    trials = recovery["trials"]
    assert all(set(trial) >= KEYS for trial in trials)
    assert not any(trial["passed"] for trial in trials[:1])
    winner = trials[recovery["winner"]]
    assert winner["passed"]
    assert winner["pareto"] or winner["speedup"] < max(trial["speedup"] for trial in trials if trial["passed"])
    assert winner["sqnr_db"] > 22.0 > trials[0]["sqnr_db"]
    assert winner["settings"] == {key: settings[key] for key in winner["settings"]}

    pasted = RECIPE.replace("FACTORY", "channel").removesuffix("[quantize]\n") + toml
    project.write("pasted.toml", pasted)
    assert not load_recipe(project.root / "pasted.toml").recipe.quantize.recover
    again = cpupack("build", "pasted.toml", *FAST, "--out", "again", "--json")
    assert again.code == 0, again.err
    (facts,) = json.loads(again.out)["wheels"]
    assert facts["report"]["sqnr_db"] == pytest.approx(winner["sqnr_db"])
    assert "recovery" not in facts


def test_a_recurrent_model_goes_back_layer_by_layer(cpupack: Cpupack, project: Project) -> None:
    write_series(project)
    built = cpupack("build", "hard.toml", "--json", *FAST)
    assert built.code == 0, built.err
    (facts,) = json.loads(built.out)["wheels"]
    assert all(set(trial["settings"]) <= {"skip"} for trial in facts["recovery"]["trials"])
    assert tomli.loads(facts["recovery"]["toml"])["quantize"]["skip"] == ["mixed"]


def test_a_gate_that_nothing_holds_tells_what_was_tried(cpupack: Cpupack, project: Project) -> None:
    write_series(project)
    done = cpupack("build", "hard.toml", *FAST, "--set", "evaluation.min_sqnr_db=200")
    assert done.code == 6, done.err
    assert "recovery on fbgemm failed" in done.err
    assert "as in the recipe" in done.err
    assert "mixed in FP32" in done.err.partition("tried: ")[2]
    assert "not tried" not in done.err
    assert project.left_behind() == []


def test_a_budget_for_no_trial_at_all_is_told(cpupack: Cpupack, project: Project) -> None:
    write(project, "channel")
    done = cpupack(
        "build", "hard.toml", *FAST, "--set", "quantize.recover=true", "--set", "quantize.budget_s=0.001"
    )  # fmt: skip
    assert done.code == 6, done.err
    assert "budget_s = 0.001 is too short for one trial, which takes about" in done.err


def test_where_the_gates_hold_there_is_nothing_to_recover(cpupack: Cpupack, project: Project) -> None:
    write(project, "make")
    done = cpupack("build", "hard.toml", "--json", *FAST, "--set", "quantize.recover=true")
    assert done.code == 0, done.err
    (facts,) = json.loads(done.out)["wheels"]
    assert "recovery" not in facts
    assert "recover (x86_64)" not in facts["stages_s"]
    assert "hard/recovered.toml" not in dict(files(project.root / facts["wheel"]))
