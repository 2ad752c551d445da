"""``import cpupack``: what it offers, that it is light, and that a build through it loses no warning."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import cpupack
from cpupack.errors import RecipeError, UsageError
from cpupack.progress import SilentProgress, WarningProgress

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "api.md"
MODEL = """\
import numpy as np
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""
RECIPE = """\
schema = 1
package = { name = "small-colors" }
model = { source = "python:model.py:small", weights = "random", input_shape = [3, 8, 8] }
calibration = { source = "arrays:data.npz", samples = 16 }

[target.x86_64]
engine = "onednn"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with ``colors.toml``, which is also the current one."""
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "colors.toml").write_text(RECIPE, encoding="utf-8")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_api", ROOT / "docs" / "generate_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == generator().render(), "run: python docs/generate_api.py"


def test_every_public_name_is_there_typed_and_listed() -> None:
    tree = ast.parse(Path(cpupack.__file__).read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    stubs = {alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert stubs == cpupack._HOMES  # mypy sees the first, Python the second
    assert sorted(stubs) == sorted(cpupack.__all__)
    assert set(cpupack.__all__) <= set(dir(cpupack))
    assert all(getattr(cpupack, name).__doc__ for name in cpupack.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'bulid'"):
        _ = cpupack.bulid


def test_the_light_half_loads_no_torch(project: Path) -> None:
    code = (
        "import sys, cpupack\n"
        "cpupack.load_recipe('colors.toml'); cpupack.BuildWarning; cpupack.Progress\n"
        "try:\n    cpupack.inspect('colors.toml')\nexcept cpupack.CpupackError as error:\n    print(error.exit_code)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.returncode) == (["2", "False"], 0), done.stderr


def test_the_examples_of_the_reference_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = re.findall(r"^```python\n(import .*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    with pytest.warns(cpupack.BuildWarning, match="random"):
        exec(compile(first, "<string>", "exec"), {})
    (wheel,) = project.glob("dist/*.whl")
    told = capsys.readouterr().out
    assert told.startswith(f"dist/{wheel.name} ")
    assert "random" in told  # the warning is in the result too
    wheel.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error", cpupack.BuildWarning)  # a progress is there to be told them
        exec(compile(second, "<string>", "exec"), {})
    assert project.joinpath("dist", wheel.name).exists()
    assert "'load': " in capsys.readouterr().out


def test_a_warning_that_is_made_an_error_leaves_no_wheel(project: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", cpupack.BuildWarning)
        with pytest.raises(cpupack.BuildWarning, match="random"):
            cpupack.build("colors.toml", out="dist", options=cpupack.BuildOptions(tune=False))
    assert not list(project.glob("dist/*"))


def test_errors_are_those_of_the_command(project: Path) -> None:
    with pytest.raises(RecipeError, match="samples"):
        cpupack.load_recipe("colors.toml", ["calibration.samples=0"])
    with pytest.raises(RecipeError):
        cpupack.build("gone.toml")
    with pytest.raises(UsageError, match="not a wheel"):
        cpupack.inspect("colors.toml")


def test_a_warning_names_the_callers_line_and_comes_once() -> None:
    progress = WarningProgress()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        progress.warn("careful")
        progress.warn("careful")
    assert [(each.category, each.filename) for each in caught] == [(cpupack.BuildWarning, __file__)]
    assert progress.warnings == ["careful"]


def test_silence_keeps_times_and_warnings() -> None:
    ticks = iter([1.0, 3.0, 10.0, 10.5])
    progress = SilentProgress(clock=lambda: next(ticks))
    for _ in range(2):
        with progress.stage("load"):
            progress.warn("careful")
    assert json.dumps([progress.times_s, progress.warnings]) == '[{"load": 2.5}, ["careful"]]'
