"""The models of docs/how-to/stream.md: built, installed, and fed chunk by chunk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.fresh_venv import Environment, make_environment
from helpers.how_to_page import IS_X86, MOST_LINES, build_recipes, files_of, write_files
from helpers.once import once

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_X86, reason="the recipes are built for x86_64"),
]
PAGE = "stream.md"
RECIPES = ("words", "denoise")


def build_all(root: Path) -> None:
    write_files(PAGE, root)
    random = np.random.default_rng(0)
    np.savez(root / "chunks.npz", data=random.standard_normal((64, 8, 40)).astype(np.float32))
    np.savez(root / "sound.npz", x=random.standard_normal((64, 1, 160)).astype(np.float32))
    assert all(files_of(PAGE)[f"{name}.toml"].count("\n") < MOST_LINES for name in RECIPES)
    build_recipes(root, RECIPES)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    project = once(tmp_path_factory, "stream-wheels", build_all)
    wheels = sorted((project / "dist").glob("*.whl"))

    def make(root: Path) -> None:
        made = make_environment(root, wheels[0])
        done = made.run("python", "-m", "pip", "install", "--no-index", str(wheels[1]))
        assert done.returncode == 0, done.stderr

    return Environment(once(tmp_path_factory, "stream-wheels-venv", make))


def run(environment: Environment, text: str) -> list[str]:
    begin = "import warnings, numpy as np\nwarnings.simplefilter('ignore')\n"
    done = environment.run("python", "-c", begin + text)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_two_chunks_are_two_calls_with_the_states_by_hand(environment: Environment) -> None:
    lines = run(
        environment,
        """
from words_int8 import Runner
x = np.random.default_rng(1).standard_normal((2, 3, 8, 40)).astype(np.float32)
with Runner() as runner:
    stream = runner.stream()
    one, two = stream(x[0]), stream(x[1])
    first = runner(x[0])
    second = runner(input=x[1], lstm_h=first["lstm_h_out"], lstm_c=first["lstm_c_out"])
    print(one.shape, np.array_equal(one, first["output"]), np.array_equal(two, second["output"]))
    alone = runner.stream()
    alone(x[0, 1:2])
    print(np.array_equal(alone(x[1, 1:2])[0], two[1]), np.array_equal(runner(x[1])["output"], two))
""",
    )
    assert lines == ["(3, 8, 12) True True", "True False"]


def test_a_stream_of_sound_answers_without_its_states(environment: Environment) -> None:
    lines = run(
        environment,
        """
from denoise_int8 import Runner
x = np.random.default_rng(1).standard_normal((1, 1, 480)).astype(np.float32)
with Runner() as runner:
    stream = runner.stream()
    parts = [stream(part) for part in np.split(x, 3, 2)]
    print([each.shape for each in parts], sorted(stream.state))
    print(np.abs(stream.state["before"][0, 0] - x[0, 0, -8:]).max() < 0.1)  # codes of some 8 / 255
""",
    )
    assert lines == ["[(1, 160, 1), (1, 160, 1), (1, 160, 1)] ['before', 'h']", "True"]
    told = environment.run("denoise-int8", "info")
    assert "before float32 (n, 1, 8) else 0 (a state; next: before)" in " ".join(told.stdout.split())
    chunks = np.random.default_rng(1).standard_normal((2, 8, 40)).astype(np.float32)
    np.save(environment.root / "chunks.npy", chunks)
    told = environment.run("words-int8", "stream", str(environment.root / "chunks.npy"))
    found = np.array([json.loads(line)["output"] for line in told.stdout.splitlines()])
    assert found.shape == (2, 8, 12), told.stderr
