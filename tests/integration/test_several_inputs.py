"""The models of docs/how-to/several-inputs.md: built, installed and run as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpupack.peers import COMPARED
from helpers.fresh_venv import Environment, make_environment
from helpers.how_to_page import IS_X86, MOST_LINES, build_recipes, cpupack_in, files_of, write_files
from helpers.once import once

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_X86, reason="the recipes are built for x86_64"),
]
PAGE = "several-inputs.md"
RECIPES = ("siamese", "heads", "tokens", "table", "words")


def write_project(root: Path) -> None:
    write_files(PAGE, root)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 40, 32, 32, 3), dtype=np.uint8)
    np.savez(root / "siamese.npz", left=pixels[0], right=pixels[1])
    mask = np.ones((64, 16), np.int64)
    mask[::2, 9:] = 0
    x = random.standard_normal((64, 50, 40)).astype(np.float32)
    np.savez(root / "words.npz", x=x, lengths=random.integers(1, 51, 64))
    np.savez(root / "tokens.npz", input_ids=random.integers(0, 1000, (64, 16)), attention_mask=mask)


def build_all(root: Path) -> None:
    write_project(root)
    build_recipes(root, RECIPES)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "several-inputs", build_all)


@pytest.fixture(scope="module")
def environment(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    wheels = sorted((project / "dist").glob("*.whl"))

    def make(root: Path) -> None:
        made = make_environment(root, wheels[0])
        for wheel in wheels[1:]:
            done = made.run("python", "-m", "pip", "install", "--no-index", str(wheel))
            assert done.returncode == 0, done.stderr
        for name, shade in (("a.png", 40), ("b.png", 200)):
            Image.new("RGB", (50, 40), (shade, 90, 10)).save(root / name)

    return Environment(once(tmp_path_factory, "several-inputs-venv", make))


def run(environment: Environment, text: str) -> list[str]:
    """Run Python in the environment and return the lines that it prints."""
    begin = "import warnings, numpy as np\nwarnings.simplefilter('ignore')\n"
    done = environment.run("python", "-c", begin + text)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short(name: str) -> None:
    assert len(files_of(PAGE)[f"{name}.toml"].splitlines()) < MOST_LINES


@pytest.mark.parametrize("name", RECIPES)
def test_a_wheel_gives_the_outputs_of_its_build(environment: Environment, name: str) -> None:
    assert environment.json(f"{name}-int8", "verify")["equal"]


@pytest.mark.parametrize("name", ["siamese", "heads"])
def test_a_model_of_convolutions_needs_no_torch(environment: Environment, name: str) -> None:
    lines = run(environment, f"import sys\nfrom {name}_int8 import Runner\nRunner()\nprint('torch' in sys.modules)")
    assert lines == ["False"]


def test_two_images(environment: Environment) -> None:
    lines = run(
        environment,
        "from siamese_int8 import Runner\n"
        "r = Runner()\n"
        "a, b = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)\n"
        "named, ordered, swapped = r(left=a, right=b), r(a, b), r(b, a)\n"
        "print(named.shape, named.dtype, np.array_equal(named, ordered), np.array_equal(named, swapped))\n"
        "print(bool((named > 0).all() and (named < 1).all()))\n",
    )
    assert lines == ["(3, 1) float32 True False", "True"]
    found = environment.json("siamese-int8", "predict", "--input", "left=a.png", "--input", "right=b.png")
    assert found["predictions"][0]["input"] == "left=a.png, right=b.png"
    refused = environment.run("siamese-int8", "predict", "--input", "left=a.png")
    assert refused.returncode == 2
    assert 'the input "right" is missing' in refused.stderr


def test_three_outputs(environment: Environment) -> None:
    lines = run(
        environment,
        "from heads_int8 import Runner\n"
        "found = Runner()(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))\n"
        "for name, each in found.items(): print(name, each.shape, each.dtype)\n"
        "print(np.allclose(found['kind'].sum(1), 1), set(np.unique(found['mask'])) <= {0, 1})\n",
    )
    assert lines == [
        "kind (2, 7) float32", "box (2, 4) float32", "mask (2, 32, 32) int64", "True True",
    ]  # fmt: skip


def test_tokens_and_a_mask(environment: Environment) -> None:
    lines = run(
        environment,
        "from tokens_int8 import Runner\n"
        "r = Runner()\n"
        "ids = np.random.default_rng(0).integers(0, 1000, (2, 16))\n"
        "ones = np.ones((2, 16), np.int64)\n"
        "half = ones.copy(); half[:, 8:] = 0\n"
        "print(np.array_equal(r(ids), r(ids, ones)), np.array_equal(r(ids), r(ids, half)))\n"
        "other = ids.copy(); other[:, 12] = 7\n"
        "print(np.array_equal(r(ids, half), r(other, half)), r.predict(ids[0])[0].label in r.labels)\n"
        "try: r(ids + 1000)\n"
        "except Exception as error: print(type(error).__name__, error)\n",
    )
    first = int(np.random.default_rng(0).integers(0, 1000, (2, 16))[0, 0]) + 1000
    assert lines[:2] == ["True False", "True True"]  # what the mask hides changes nothing
    assert lines[2] == f'InputError input "input_ids": sample 0 has {first}; the model takes 0 to 999'


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("siamese", ["same"]),
        pytest.param("heads", ["kind", "box", "mask"], marks=pytest.mark.night),
        pytest.param("tokens", ["output"], marks=pytest.mark.night),
    ],
)
def test_other_engines_get_the_inputs_by_name(project: Path, name: str, outputs: list[str]) -> None:
    # torch's ONNX exporter knows no attention of one head without a dimension for it.
    others = [] if name == "tokens" or COMPARED["onnxruntime"].missing() else ["onnxruntime"]
    against = ",".join(["eager", "fbgemm", *others])
    quick = ["--budget-s", "0.5", "--rounds", "1", "--round-s", "0.05", "--set", "tune.batch_sizes=[2]", "--json"]
    done = cpupack_in(
        project, "compare", f"{name}.toml", "--against", against, *quick, "--set", "target.x86_64.engine=native"
    )
    assert done.returncode == 0, done.stderr
    for engine, found in json.loads(done.stdout)["engines"].items():
        assert found["status"] == "ok", (engine, found["reason"])
        assert list(found["outputs"]) == outputs
        assert found["sqnr_db"] is None or found["sqnr_db"] > 10, engine


def test_mixed_columns(environment: Environment) -> None:
    lines = run(
        environment,
        "from table_int8 import Runner\n"
        "r = Runner()\n"
        "given = dict(numbers=np.zeros((2, 5), np.float32), city=[3, 49], day=[0, 6])\n"
        "print(r(**given).shape, np.array_equal(r(**given), r(**given, member=[False, False])))\n"
        "for wrong in (dict(city=[3, 50]), dict(day=[0.5, 1]), dict(member=[1, 2]), dict(citty=[1, 2])):\n"
        "    try: r(**{**given, **wrong})\n"
        "    except Exception as error: print(error)\n",
    )
    assert lines[0] == "(2, 2) True"
    assert lines[1] == 'input "city": sample 1 has 50; the model takes 0 to 49'
    assert lines[2].startswith('input "day": got float64 (2,); expected int64 (n,)')
    assert lines[3] == 'input "member": has 2; bool holds 0 and 1'
    assert lines[4].startswith('the model has no input "citty"; did you mean "city"?')


def test_inspect_lists_inputs_and_outputs(project: Path) -> None:
    (wheel,) = (project / "dist").glob("heads*.whl")
    done = cpupack_in(project, "inspect", str(wheel))
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^Outputs +kind float32 \(n, 7\), box float32 \(n, 4\), mask int64 \(n, 32, 32\)$", done.stdout, re.M
    )
    assert re.search(r"^Output mask +SQNR [\d.]+ dB, cosine", done.stdout, re.M)


def test_a_sequence_ends_at_its_length(environment: Environment) -> None:
    lines = run(
        environment,
        """
from words_int8 import Runner
x = np.random.default_rng(1).standard_normal((3, 50, 40)).astype(np.float32)
lengths = np.array([7, 50, 21])
with Runner() as runner:
    found = runner(x=x, lengths=lengths)
    x[0, 7:] = 99
    print(found.shape, np.array_equal(runner(x=x, lengths=lengths), found))
    print(np.array_equal(runner(x=x[2:], lengths=lengths[2:])[0], found[2]))
    try:
        runner(x=x, lengths=np.array([7, 51, 21]))
    except Exception as error:
        print(error)
""",
    )
    assert lines[:2] == ["(3, 12) True", "True"]
    assert lines[2] == 'input "lengths": sample 1 has 51; the model takes 0 to 50'
