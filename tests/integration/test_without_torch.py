"""A wheel of the native engine where there is no torch: every command, on every interpreter that this machine has."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpupack.stages.package import build_wheel, stage_project
from helpers.fresh_venv import Environment, make_environment, make_environment_of
from helpers.lowered import needs_kernels
from helpers.native_wheel import native_contents
from helpers.once import once
from helpers.pythons import SUPPORTED, find_python
from helpers.tiny_wheel import LABELS, TinyWheel

pytestmark = [pytest.mark.slow, needs_kernels]

NUMPYS = {"1.26": ("3.10", "3.12"), "2": SUPPORTED}
"""The versions of numpy that wheels are for, and the Pythons that they have binaries for: the ends, for 1.26."""
NIGHTLY = {("1.26", "3.12"), *(("2", version) for version in SUPPORTED[:-2])}
"""Between the oldest and the newest."""


@pytest.fixture(scope="module")
def wheel(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("native")
    staged = stage_project(native_contents(tiny, root), root / "project")
    return build_wheel(staged, tmp_path_factory.mktemp("dist")).path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = once(
        tmp_path_factory, "no-torch-venv", lambda root: make_environment(root, wheel, only=("numpy", "pil", "pillow"))
    )
    return Environment(made)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


COMMANDS = {
    "info": ("info",),
    "verify": ("verify",),
    "predict": ("predict", "PHOTO"),
    "bench": ("bench", "--duration", "0.2"),
    "server": ("bench", "--scenario", "server", "--rate", "20", "--duration", "0.5", "--max-latency-ms", "5000"),
    "tune": ("tune", "--budget", "1"),
    "export": ("export", "--force", "--c", "DIR"),
    "serve": ("serve", "--emit", "systemd"),
    "plan": ("plan", "--rate", "1", "--max-latency-ms", "5000"),
}


def test_pip_check_agrees_and_would_not_with_another_numpy(environment: Environment, tmp_path: Path) -> None:
    checked = environment.run("python", "-m", "pip", "check")
    assert (checked.returncode, checked.stdout.strip()) == (0, "No broken requirements found."), checked.stderr
    old = tmp_path / "numpy-1.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    command = [str(environment.root / "bin" / "python"), "-m", "pip", "check"]
    variables = environment.variables() | {"PYTHONPATH": str(tmp_path)}  # found before the real one
    wrong = subprocess.run(command, env=variables, cwd=environment.root, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "tiny-int8" in wrong.stdout
    assert "but you have numpy 1.0" in wrong.stdout


def check_commands(
    environment: Environment, photo: Path, directory: Path, forms: Sequence[str] = ("", "--json")
) -> None:
    """Run every command, as text and as JSON."""
    for command, *arguments in COMMANDS.values():
        places = {"PHOTO": str(photo), "DIR": str(directory / "c")}
        given = [places.get(each, each) for each in arguments]
        for form in forms:
            done = environment.run("tiny-int8", command, *given, *filter(None, [form]))
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert "torch" not in done.stderr
            assert not form or json.loads(done.stdout) is not None


def test_pip_brings_no_torch_and_no_cpupack(environment: Environment) -> None:
    done = environment.run("python", "-c", "import tiny_int8, importlib.util as u; print(u.find_spec('torch'))")
    assert done.stdout.strip() == "None", done.stderr
    assert "Jinja2" not in environment.run("python", "-m", "pip", "list").stdout


def test_every_command(environment: Environment, photo: Path, tmp_path: Path) -> None:
    check_commands(environment, photo, tmp_path)


def test_the_list_of_commands_is_complete(environment: Environment) -> None:
    text = environment.run("tiny-int8", "--help").stdout.partition("commands:")[2]
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "}
    # batch needs pyarrow, which is not here; tests/runtime/test_batch.py shows that it needs no torch. embed is for
    # models that give embeddings, as in test_text_wheel.py, and stream for those with states (test_stream_wheel.py).
    assert listed - {"COMMAND", "batch", "embed", "stream"} == {command for command, *_ in COMMANDS.values()}


def test_info_says_that_no_torch_is_needed(environment: Environment) -> None:
    facts = environment.json("tiny-int8", "info")
    assert facts["torch"] == {"needed": False, "text": "not needed"}
    assert (facts["runs_here"], facts["problems"]) == (True, [])
    text = environment.run("tiny-int8", "info").stdout
    assert "torch        not needed" in text
    assert "not installed" not in text.partition("This host")[2].partition("images")[0]


def test_what_needs_an_extra_names_the_command_of_pip(environment: Environment, tmp_path: Path) -> None:
    for option, requirement in (
        (("bench", "--html", str(tmp_path / "bench.html")), '"jinja2>=3.1,<4"'),
        (("bench", "--loadgen"), '"mlcommons-loadgen>=5,<7"'),
        (("serve",), "'tiny-int8[serve]'"),
        (("batch", "--from", ".", "--to", "x"), '"tiny-int8[batch]"'),
    ):
        done = environment.run("tiny-int8", *option)
        assert done.returncode == 3, done.stderr
        assert "which is not installed" in done.stderr
        assert f"pip install {requirement}" in done.stderr
        assert "Traceback" not in done.stderr


def test_from_python(environment: Environment) -> None:
    code = (
        "import numpy, sys\n"
        "from tiny_int8 import Runner\n"
        "with Runner(threads=1) as runner:\n"
        "    print(len(runner.predict(numpy.zeros((9, 9, 3), numpy.uint8), top_k=2)), 'torch' in sys.modules)\n"
    )
    assert environment.run("python", "-c", code).stdout.strip() == "2 False"


@pytest.mark.parametrize(
    ("numpy", "version"),
    [
        pytest.param(numpy, version, marks=[pytest.mark.night] if (numpy, version) in NIGHTLY else [])
        for numpy in NUMPYS
        for version in NUMPYS[numpy]
    ],
)
def test_every_python_and_numpy(numpy: str, version: str, wheel: Path, photo: Path, tmp_path: Path) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no CPython {version} on this machine")
    environment = make_environment_of(python, tmp_path / "venv", wheel, f"numpy=={numpy}.*")
    if environment is None:
        pytest.skip("pip reaches no index of packages")
    code = "import numpy, sys; print(sys.version.split()[0], numpy.__version__)"
    assert environment.run("python", "-c", code).stdout.startswith((f"{version}.",))
    predictions = environment.json("tiny-int8", "predict", str(photo))["predictions"]
    assert sorted(one["label"] for one in predictions[0]["top"]) == sorted(LABELS)
    assert environment.json("tiny-int8", "verify")["equal"]  # bit for bit what the builder's Python and numpy gave
    check_commands(environment, photo, tmp_path, forms=["--json"])
    assert json.loads(environment.run("tiny-int8", "info", "--json").stdout)["runs_here"]
