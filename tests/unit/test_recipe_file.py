"""Loading recipes: what is accepted, and that every problem is reported with its line and a suggestion."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli

from cpupack.errors import RecipeError
from cpupack.recipe.file import load_recipe

RECIPES = sorted(
    path for path in (Path(__file__).parents[2] / "recipes").glob("*.toml") if not path.name.endswith(".lock.toml")
)

MINIMAL = """\
schema = 1
[package]
name = "net"
[model]
source = "torchvision:resnet18"
weights = "random"
input_shape = [3, 224, 224]
[preprocess]
crop = 224
[calibration]
source = "synthetic"
"""

Load = Callable[..., list[str]]


@pytest.fixture
def problems(tmp_path: Path) -> Load:
    """Return a function that gives the problems of a recipe's text, with the file's path as FILE."""

    def load(text: str, *overrides: str) -> list[str]:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        try:
            load_recipe(path, overrides)
        except RecipeError as error:
            return error.message.replace(str(path), "FILE").replace(str(tmp_path.resolve()), "DIR").splitlines()
        return []

    return load


def changed(old: str, new: str) -> str:
    assert old in MINIMAL
    return MINIMAL.replace(old, new)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    for name in re.findall(r"package:(\w+)", path.read_text(encoding="utf-8")):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name}, which holds its model, is not installed")
    loaded = load_recipe(path)
    assert loaded.path == path.resolve()
    assert loaded.text == path.read_text(encoding="utf-8")
    assert path.stem in loaded.recipe.package.import_name


def test_defaults(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL)
    recipe = load_recipe(path).recipe
    assert recipe.schema_ == 1
    assert recipe.quantize.observer == "tail_mse"
    assert recipe.calibration is not None
    assert recipe.calibration.samples == 300
    assert recipe.target.cpu == ["x86_64"]


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf" + MINIMAL.encode(), MINIMAL.replace("\n", "\r\n").encode()])
def test_files_of_windows_editors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(data)
    assert load_recipe(path).recipe.package.name == "net"


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys, pathlib; from cpupack.recipe.file import load_recipe;"
        f"load_recipe(pathlib.Path({str(RECIPES[0])!r}), ['calibration.samples=2']);"
        "print([name for name in ('torch', 'numpy', 'jinja2') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = b", "FILE:1: not TOML: invalid value (text needs quotes), column 5: a = b"),
        ("\na = [1,\n2", "FILE:3: not TOML: unclosed array, column 2: 2"),
        ("a = 1\n\na = 2", "FILE:3: not TOML: the key appears twice, column 6: a = 2"),
        ("[a.b]\n[a.b]", "FILE:2: not TOML: [a.b] appears twice, column 5: [a.b]"),
        ("a = 1\nb = 'x\nc = 2", "FILE:2: not TOML: the string has no closing quote on its line, column 5: b = 'x"),
        ('a = "x\nb = 2', 'FILE:1: not TOML: the string has no closing quote on its line, column 7: a = "x'),
        ('a = """x\n', "FILE:2: not TOML: unterminated string, end of file"),
        ("a =", "FILE:1: not TOML: invalid value, column 4: a ="),
        ("a = \x1b[31m", "FILE:1: not TOML: invalid value, column 5: a = \\x1b[31m"),  # a terminal would obey
        (
            f"a = {[1] * 200} b\n",
            f"FILE:1: not TOML: expected newline or end of document after a statement, column 606: ...{'1, ' * 32}1] b",
        ),
    ],
)
def test_syntax_error(problems: Load, text: str, expected: str) -> None:
    assert problems(text) == [expected]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "crop = 224",
            "crop = 224\nresiz = 256",
            'FILE:10: preprocess.resiz: unknown key; did you mean "resize"?',
        ),
        ("[calibration]", "[tume]\n[calibration]", 'FILE:10: tume: unknown key; did you mean "tune"?'),
        (
            '"synthetic"',
            '"synthetic"\nobserver = "mse"',
            'FILE:12: calibration.observer: unknown key; did you mean "quantize.observer"?',
        ),
        ("crop = 224", "crop = 224\nqqq = 1", "FILE:10: preprocess.qqq: unknown key"),
        (
            '"synthetic"',
            '"synthetic"\nsamples = "abc"',
            'FILE:12: calibration.samples: must be an integer of at least 1, not the string "abc"',
        ),
        (
            '"synthetic"',
            '"synthetic"\nsamples = 0',
            "FILE:12: calibration.samples: must be an integer of at least 1, not 0",
        ),
        (
            '"synthetic"',
            '"synthetic"\nskip_corrupt = "yes"',
            'FILE:12: calibration.skip_corrupt: must be true or false, not the string "yes"',
        ),
        (
            "crop = 224",
            'crop = 224\ninterpolation = "Bicubik"',
            'FILE:10: preprocess.interpolation: must be one of "nearest", "bilinear", "bicubic", "lanczos", '
            'not "Bicubik"; did you mean "bicubic"?',
        ),
        (
            "[calibration]",
            "[target]\ncpu = [\n  'x86_64',\n  'x86-64',\n]\n[calibration]",
            'FILE:13: target.cpu[1]: must be one of "x86_64", "aarch64", not "x86-64"; did you mean "x86_64"?',
        ),
        (
            "crop = 224",
            "crop = 224\nresize = [1, 'x']",
            'FILE:10: preprocess.resize[1]: must be an integer from 1 to 65535, not the string "x"',
        ),
        (
            "crop = 224",
            "crop = 224\nresize = 'x'",
            "FILE:10: preprocess.resize: must be an integer from 1 to 65535 or a list of 2 "
            "integers from 1 to 65535, "
            'not the string "x"',
        ),
        (
            "[calibration]",
            "[fuse]\nmodules = [['a']]\n[calibration]",
            "FILE:11: fuse.modules[0]: must be a list of 2 or more strings, not a list of 1",
        ),
        ("schema = 1", "schema = 2", "FILE:1: schema: must be 1, not 2"),
        ("schema = 1", "schema = true", "FILE:1: schema: must be 1, not true"),
        (
            'weights = "random"\n',
            "",
            "FILE:4: model.weights: is missing; it must be a string that is not empty",
        ),
        ('[package]\nname = "net"\n', "", "FILE:1: package: is missing; it must be a table"),
        (
            "[calibration]",
            "[bench]\nduration_s = 2020-01-01\n[calibration]",
            "FILE:11: bench.duration_s: must be a number of more than 0 and at most 604800, not a date or time",
        ),
        (
            "[calibration]",
            "[evaluation]\nmin_sqnr_db = nan\n[calibration]",
            'FILE:11: evaluation.min_sqnr_db: must be a number or "off", not nan',
        ),
        ('name = "net"', 'name = "net"\nversion = "1.0-beta"', None),
        ("[calibration]", "[[calibration]]", "FILE:10: calibration: must be a table, not a list"),
    ],
)
def test_schema_problem(problems: Load, old: str, new: str, expected: str | None) -> None:
    found = problems(changed(old, new))
    if expected is None:
        assert len(found) == 1
        assert found[0].startswith("FILE:4: package.version: must be a PEP 440 version in its normal form")
    else:
        assert found == [expected]


def test_a_misspelt_required_key_is_one_problem(problems: Load) -> None:
    assert problems(changed("weights =", "wieghts =")) == [
        'FILE:6: model.wieghts: unknown key; did you mean "weights"?'
    ]


def test_a_misspelt_table_is_one_problem(problems: Load) -> None:
    assert problems(changed("[calibration]", "[calibratoin]")) == [
        'FILE:10: calibratoin: unknown key; did you mean "calibration"?'
    ]
    assert problems(changed("[model]", "[modle]")) == ['FILE:4: modle: unknown key; did you mean "model"?']


def test_all_problems_at_once_in_the_order_of_the_file(problems: Load) -> None:
    text = """\
schema = 1
[package]
name = "torch"
[model]
source = "torchvison:resnet50"
weights = "randm"
input_shape = [3, 224]
labels = "labels.txt"
[preprocess]
mean = [1, 2]
[quantize]
obsrver = "mse"
[calibration]
source = "images:pictures"
samples = -1
[evaluation]
max_drop = 0.01
"""
    assert [line.partition(": ")[0] + " " + line.split(": ")[1] for line in problems(text)] == [
        "FILE:3 package.name",
        "FILE:5 model.source",
        "FILE:6 model.weights",
        "FILE:7 model.input_shape",
        "FILE:8 model.labels",
        "FILE:10 preprocess.mean",
        "FILE:12 quantize.obsrver",
        "FILE:14 calibration.source",
        "FILE:15 calibration.samples",
        "FILE:17 evaluation.max_drop",
    ]


def test_error_has_the_exit_code_and_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file") as caught:
        load_recipe(tmp_path / "none.toml")
    assert caught.value.exit_code == 2
    assert caught.value.hint is not None


def test_directory_and_binary_files_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "b.toml")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("calibration.samples=64", lambda recipe: recipe.calibration.samples == 64),
        ("calibration . samples = 64", lambda recipe: recipe.calibration.samples == 64),
        ("quantize.observer=mse", lambda recipe: recipe.quantize.observer == "mse"),
        ('quantize.observer="mse"', lambda recipe: recipe.quantize.observer == "mse"),
        ("package.version=1.0", lambda recipe: recipe.package.version == "1.0"),
        ("package.version=2", lambda recipe: recipe.package.version == "2"),
        ("quantize.skip=['fc', 'conv1']", lambda recipe: recipe.quantize.skip == ["fc", "conv1"]),
        ("target.x86_64.isa=avx2", lambda recipe: recipe.target.x86_64.isa == "avx2"),
        ("tune={budget_s = 5}", lambda recipe: recipe.tune.budget_s == 5),
        ("model.kwargs.num_classes=10", lambda recipe: recipe.model.kwargs == {"num_classes": 10}),
        ("model.kwargs.a.b=x y", lambda recipe: recipe.model.kwargs == {"a": {"b": "x y"}}),
        ('model.kwargs."a.b"=true', lambda recipe: recipe.model.kwargs == {"a.b": True}),
        ("package.description=a = b", lambda recipe: recipe.package.description == "a = b"),
    ],
)
def test_override(tmp_path: Path, override: str, read: Callable[..., bool]) -> None:
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL)
    loaded = load_recipe(path, [override])
    assert read(loaded.recipe)
    again = tmp_path / "again.toml"
    again.write_text(loaded.text)
    assert load_recipe(again).recipe == loaded.recipe, "the text has the overrides applied"


def test_later_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL)
    recipe = load_recipe(path, ["bench.duration_s=1", "bench.duration_s=2"]).recipe
    assert recipe.bench.duration_s == 2


def test_an_override_can_mend_the_file(problems: Load) -> None:
    assert problems(changed('"random"', "3"), "model.weights=random") == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("calibration.sampels=3", '--set: calibration.sampels: unknown key; did you mean "samples"?'),
        ("calibratoin.samples=3", '--set: calibratoin: unknown key; did you mean "calibration"?'),
        ("model.source.x=1", "--set: model.source.x: unknown key"),
        (
            "calibration.samples=many",
            '--set: calibration.samples: must be an integer of at least 1, not the string "many"',
        ),
        (
            "quantize.skip=[1",
            '--set: quantize.skip: must be a list of strings, not the string "[1"',
        ),
        ("samples", "--set: samples: must be key=value with a dotted key, such as calibration.samples=64"),
        ("=3", "--set: =3: must be key=value with a dotted key, such as calibration.samples=64"),
        ("evaluation.max_drop=0.1", "--set: evaluation.max_drop: needs labelled data; set evaluation.source"),
        (
            "fuse.modules=[['a', 'b'], ['b', 'c']]",
            '--set: fuse.modules[1][0]: "b" is already in chain 0',
        ),
    ],
)
def test_bad_override(problems: Load, override: str, expected: str) -> None:
    assert problems(MINIMAL, override) == [expected]


def test_overridden_text_keeps_awkward_values(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL)
    value = 'quo"te \\ back\tslash \u00e9 \x7f'
    loaded = load_recipe(path, [f"package.description={value}"])
    assert tomli.loads(loaded.text)["package"]["description"] == value
