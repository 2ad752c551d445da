"""Two builds of one recipe: the same bytes, apart from the one file of measurements and the list of hashes."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest

from cpupack.runtime.host.cpu import machine
from helpers.tiny_recipes import FAST, NAME, Project
from helpers.waiting import PATIENCE_S

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]
TUNED = (
    "--set", "target.x86_64.engine=native", "--set", "tune.budget_s=3", "--set", "tune.threads=[1]",
    "--set", "tune.batch_sizes=[1, 4]",
)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [pytest.param(FAST, id="fbgemm", marks=pytest.mark.night), pytest.param(TUNED, id="native, tuned")],
)
def test_two_builds_differ_only_where_the_docs_say(project: Project, options: tuple[str, ...]) -> None:
    wheels = []
    for out in ("one", "two"):
        # In processes of their own: torch numbers the types of saved models through the life of a process.
        done = subprocess.run(
            [sys.executable, "-m", "cpupack", "build", "colors.toml", "--quiet", "--out", out, *options],
            env=project.environ(), cwd=project.root, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (path,) = (project.root / out).iterdir()
        wheels.append(zipfile.ZipFile(path))
    one, two = wheels
    with one, two:
        assert one.namelist() == two.namelist()
        differ = {name for name in one.namelist() if one.read(name) != two.read(name)}
        for first, second in zip(one.infolist(), two.infolist(), strict=True):
            assert (first.date_time, first.external_attr) == (second.date_time, second.external_attr)
    package = NAME.replace("-", "_")
    # build.json has times, which no two builds share.
    assert differ == {f"{package}/build.json", f"{package}-0.1.0.dist-info/RECORD"}
