"""kill -9 at random moments of a build: nothing that pip or a later build could take for a result."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from cpupack.lock import read_lock
from cpupack.runtime.host.cpu import machine
from cpupack.scratch import PREFIX
from cpupack.wheel.inspect import inspect
from helpers import forked
from helpers.tiny_recipes import FAST, Project
from helpers.waiting import PATIENCE_S

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]


# The moments are those of a build, and not of the imports before it. Its workers are its own, and killed with it.
BUILDS = forked.Forks((*forked.TORCH, *forked.BUILDS))


def started(project: Project) -> forked.Fork:
    return BUILDS.popen("cpupack", ["build", "colors.toml", "--quiet", *FAST], project.root, project.environ())


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.night)])
def test_kill_nine_at_any_moment(project: Project, count: int) -> None:
    """The moments are spread over the length that a whole build has here, with a seed that the failure would name."""
    whole = started(project)
    began = time.monotonic()
    assert whole.wait(PATIENCE_S) == 0
    length_s = time.monotonic() - began
    (wheel,) = (project.root / "dist").iterdir()
    lock = project.root / "colors.lock.toml"
    wheel.unlink()
    lock.unlink()
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    for number in range(count):
        process = started(project)
        time.sleep((number + moments.random()) / count * length_s)
        if process.running():
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        found = [path for path in (project.root / "dist").iterdir() if path.suffix == ".whl"]
        for path in found:  # in place all at once, or not at all
            assert inspect(path).problems == (), f"seed {seed}, moment {number}"
            path.unlink()
        if lock.exists():
            read_lock(lock)  # raises for a part of one
            lock.unlink()
    done = project.run("build", "colors.toml", "--quiet", *FAST)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    assert [path.name for path in (project.root / "dist").iterdir()] == [wheel.name]
    left = [path for path in project.left_behind() if path.startswith(f"tmp/{PREFIX}")]
    assert left == [], f"seed {seed}"
    assert not list(project.root.glob(".*.part"))
