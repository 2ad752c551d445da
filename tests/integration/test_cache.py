"""The cache of stages: what another build of the same takes from it, and everything that makes it useless."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cpupack.runtime.host.cpu import machine
from helpers.tiny_recipes import FAST, NAME, Outcome, Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]
ALL = {"capture", "calibrate", "outputs", "race"}
"""``observe`` needs evaluation data other than the calibration's, which the recipe has not."""

CONFIGURED = """
import json
from pathlib import Path
import torch
from torch import nn
import scales

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        hidden = torch.relu(self.conv(x)) * scales.SCALE * scale_of_file()
        return self.head(hidden.mean((2, 3)))

def scale_of_file():
    return json.loads((Path(__file__).parent / "scale.json").read_text())["scale"]

def net():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def build(cpupack: Callable[..., Outcome], project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Build with a cache of the test's own; return the answer of ``--json``."""
    monkeypatch.delenv("CPUPACK_NO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.root / "cache"))

    def run(*options: str) -> Any:
        done = cpupack("build", "colors.toml", "--json", *FAST, *options)
        assert done.code == 0, done.err
        (answer,) = json.loads(done.out)["wheels"]
        return {**answer, "said": done.err}

    return run


def entries(project: Project, stage: str = "*") -> list[Path]:
    return sorted((project.root / "cache" / "cpupack-stages").glob(f"{stage}/*.entry"))


def contents(wheel: str) -> dict[str, bytes]:
    """Return what is in a wheel, without what was measured and the lists of hashes."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith(("build.json", "RECORD"))]
        return {name: archive.read(name) for name in names}


def test_tune_and_bench_make_nothing_again(build: Callable[..., Any], project: Project) -> None:
    first = build("--out", "one")
    assert first["cached"] == []
    kept = {path.parent.name for path in entries(project)}
    assert kept == ALL
    second = build("--out", "two", "--set", "tune.budget_s=3", "--set", "bench.duration_s=2.0")
    assert set(second["cached"]) == ALL
    assert "from the cache: captured graph" in second["said"]
    # The recipe is in the wheel. All else is what it was, and what was said is said again.
    one, two = contents(first["wheel"]), contents(second["wheel"])
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} <= {
        name
        for name in one
        if name.endswith(
            ("recipe.toml", "manifest.json", "cpupack.json", "README.md", "METADATA", ".sha256", ".cdx.json")
        )
    }
    assert second["warnings"] == first["warnings"]
    assert second["engines"] == first["engines"]


def test_no_cache_takes_and_keeps_nothing(
    build: Callable[..., Any], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build("--no-cache")["cached"] == []
    monkeypatch.setenv("CPUPACK_NO_CACHE", "1")
    assert build()["cached"] == []
    assert entries(project) == []


def test_sensitivity_takes_what_a_build_made_and_keeps_what_it_made_itself(
    build: Callable[..., Any], cpupack: Callable[..., Outcome], project: Project
) -> None:
    def rank(*options: str) -> tuple[Any, str]:
        done = cpupack("sensitivity", "colors.toml", "--json", *options)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        del found["seconds"]
        return found, done.err

    fresh, _ = rank("--no-cache")
    assert entries(project) == []
    build()
    kept = entries(project)
    for found, said in (rank(), rank("--samples", "32")):
        assert found == fresh
        assert "from the cache: captured graph" in said
        assert "from the cache: calibration statistics" in said
    assert entries(project) == kept
    cpupack("cache", "clear")
    assert rank()[0] == fresh
    assert {path.parent.name for path in entries(project)} == {"capture", "calibrate"}


def test_compare_takes_what_a_build_made(
    build: Callable[..., Any], cpupack: Callable[..., Outcome], project: Project
) -> None:
    wheel = build()["wheel"]
    small = ("--against", "eager", "--budget-s", "0.2", "--rounds", "2", "--round-s", "0.05", "--json")
    engine = FAST[1:]
    first = cpupack("compare", "colors.toml", *small, *engine)
    assert first.code == 0, first.err
    taken = {
        line.split("from the cache: ")[1].split(" (")[0] for line in first.err.splitlines() if "the cache:" in line
    }
    assert taken == {"captured graph", "calibration statistics", "FP32 outputs", "race"}
    # Of a wheel only the FP32 outputs are needed.
    of_wheel = ("compare", wheel, "--recipe", "colors.toml", *small, *engine)
    assert "from the cache" not in cpupack(*of_wheel).err
    again = cpupack(*of_wheel)
    assert again.code == 0, again.err
    assert "from the cache: FP32 outputs" in again.err
    assert "from the cache" not in cpupack(*of_wheel, "--no-cache").err


SOURCE = (
    "--set", "model.source=python:nets.py:net", "--set", "model.weights=factory",
    "--set", "evaluation.min_agreement=off", "--set", "evaluation.min_sqnr_db=off",
)  # fmt: skip


@pytest.fixture
def configured(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A model of three files: its own, one that it imports, and one that it reads when it runs."""
    project.write("nets.py", CONFIGURED)
    project.write("scales.py", "SCALE = 2.0\n")
    project.write("scale.json", '{"scale": 1.0}')
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "scales", raising=False)
    return project


def test_what_everything_depends_on(build: Callable[..., Any], configured: Project) -> None:
    """Nothing is taken from the cache after a change of the code, of what it imports or reads, of data, of threads."""
    assert build(*SOURCE)["cached"] == []
    configured.write("nets.py", CONFIGURED.replace("torch.relu(self.conv(x))", "torch.relu(self.conv(x) + 0.5)"))
    assert build(*SOURCE)["cached"] == [], "the code"
    configured.write("scales.py", "SCALE = 3.25\n")
    del sys.modules["scales"]  # as in a new process
    assert build(*SOURCE)["cached"] == [], "a module that it imports"
    configured.write("scale.json", '{"scale": 1.5}')
    assert build(*SOURCE)["cached"] == [], "a file that has no hash: the model answers otherwise"
    for path in (configured.root / "photos").glob("*/*.jpg"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert build(*SOURCE)["cached"] == [], "photos"
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert build(*SOURCE)["cached"] == [], "threads"
    finally:
        torch.set_num_threads(before)


def test_changed_weights_change_everything(build: Callable[..., Any], project: Project) -> None:
    build()
    state = torch.load(project.root / "colors.pt", weights_only=True)
    state["head.weight"] *= 1.01
    torch.save(state, project.root / "colors.pt")
    assert build()["cached"] == []


@pytest.mark.parametrize(
    ("option", "cached"),
    [("fuse.modules=[]", {"capture"}), ("tune.objective=latency", {"capture", "calibrate", "outputs"})],
)
def test_a_part_of_the_recipe_changes_what_it_is_for(
    build: Callable[..., Any], configured: Project, option: str, cached: set[str]
) -> None:
    """The wheel is that of a build without the cache."""
    build(*SOURCE)
    found = build("--out", "again", *SOURCE, "--set", option)
    assert set(found["cached"]) == cached
    fresh = build("--out", "fresh", "--no-cache", *SOURCE, "--set", option)
    assert contents(found["wheel"]) == contents(fresh["wheel"])


def test_damaged_entries_are_found_and_made_again(build: Callable[..., Any], project: Project) -> None:
    first = build("--out", "one")
    damage = {
        "capture": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "calibrate": lambda data: data[: len(data) // 2],
        "outputs": lambda data: b"",
        "race": lambda data: data[:90] + bytes([data[90] ^ 4]) + data[91:],
    }
    before = {path: path.read_bytes() for path in entries(project)}
    for path, data in before.items():
        path.write_bytes(damage[path.parent.name](data))
    second = build("--out", "two")
    assert second["cached"] == []
    assert second["said"].count("is damaged, so it is made again") == len(ALL)
    assert contents(second["wheel"]) == contents(first["wheel"])
    assert entries(project) == list(before)
    assert set(build("--out", "three")["cached"]) == ALL


def test_an_entry_with_a_right_hash_and_another_place_is_refused(build: Callable[..., Any], project: Project) -> None:
    build()
    (capture,), (race,) = entries(project, "capture"), entries(project, "race")
    capture.write_bytes(race.read_bytes())
    found = build()
    assert "capture" not in found["cached"]
    assert "it is another entry" in found["said"]


def test_a_directory_that_others_can_write_to_is_not_used(build: Callable[..., Any], project: Project) -> None:
    directory = project.root / "cache" / "cpupack-stages"
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    found = build()
    assert found["cached"] == []
    assert "other users can write to" in found["said"]
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_directory_that_cannot_be_written_is_said(build: Callable[..., Any], project: Project) -> None:
    directory = project.root / "cache" / "cpupack-stages"
    directory.mkdir(parents=True)
    directory.chmod(0o500)
    assert "not kept in the cache" in build()["said"]


def test_the_command_lists_and_clears(build: Callable[..., Any], cpupack: Callable[..., Outcome]) -> None:
    build()
    listed = json.loads(cpupack("cache", "ls", "--json").out)
    assert {each["stage"] for each in listed["entries"]} == ALL
    assert {each["package"] for each in listed["entries"]} == {NAME}
    said = cpupack("cache", "ls").out
    assert f"{len(ALL)} entries" in said
    assert "0 entries removed" in cpupack("cache", "clear", "--package", "another").out
    assert f"{len(ALL)} entries removed" in cpupack("cache", "clear").out
    assert json.loads(cpupack("cache", "ls", "--json").out)["entries"] == []
