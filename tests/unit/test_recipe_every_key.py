"""Every key of the schema with every odd value: problems in words that name file, line and key, or a recipe."""

from __future__ import annotations

import contextlib
import copy
import datetime
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cpupack.errors import RecipeError
from cpupack.recipe import schema as recipe_schema
from cpupack.recipe.file import load_recipe

ODD: list[Any] = [
    True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "é😀", "\u202e", "a\nb", "a\u2028b", "x" * 300, "..", "../..", "/", "/etc/passwd", "~", "nul\0",
    "images:..", "images:/etc/passwd", "arrays:photos", "python:net.py:nope", "python:../x.py:f", "torchvision:nope",
    [], [[]], [0], [-1], [1, 2], [2**63], [""], ["x", "x"], [1, "x"], {}, {"a": 1}, {"": ""}, [{}],
    datetime.date(2020, 1, 1), datetime.time(1, 2), datetime.datetime(2020, 1, 1),
]  # fmt: skip
LINE = re.compile(r"\S*recipe\.toml:\d+: \S")
PLAIN: dict[str, Any] = {
    "schema": 1,
    "package": {"name": "net"},
    "model": {"source": "python:net.py:make", "weights": "random", "input_shape": [3, 8, 8]},
    "preprocess": {"resize": 8, "crop": 8},
    "calibration": {"source": "images:photos"},
}
NAMED: dict[str, Any] = {
    "schema": 1,
    "package": {"name": "net"},
    "model": {"source": "python:net.py:make", "weights": "random"},
    "input": [{"name": "x", "shape": [3, 8, 8], "preprocess": {"resize": 8, "crop": 8}}, {"name": "y", "shape": [4]}],
    "output": [{"name": "output", "rename": "z"}],
    "task": {"kind": "raw"},
    "calibration": {"source": "synthetic"},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "net.py").write_text("raise SystemExit('a recipe that is read runs no code')\n")
    return tmp_path


KEYS = [(*table, key) for table, node in recipe_schema.tables() for key in node["properties"]]


def changed(base: dict[str, Any], key: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a recipe with another value at a key; of a list of tables, in the first."""
    recipe = copy.deepcopy(base)
    table: Any = recipe
    for part in key[:-1]:
        table = table.setdefault(part, {})
        table = table[0] if isinstance(table, list) else table
    table[key[-1]] = value
    return recipe


def said(path: Path, overrides: tuple[str, ...] = ()) -> str | None:
    """Return what is wrong with a recipe, None for nothing. Any other exception fails the test."""
    try:
        load_recipe(path, overrides)
    except RecipeError as error:
        return error.message if error.hint else f"no hint: {error.message}"
    return None


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_every_odd_value(project: Path, key: tuple[str, ...]) -> None:
    """Whole problems: each line has a place, and the key or one that it contradicts; nothing is run or written."""
    path = project / "recipe.toml"
    taken = 0
    for base in (PLAIN, NAMED):
        if (key[0] in {"input", "output", "task", "lengths", "tokenizer"}) == (base is PLAIN):
            continue
        for value in ODD:
            path.write_text(tomli_w.dumps(changed(base, key, value)), encoding="utf-8")
            message = said(path)
            taken += message is None
            if message is not None:
                problems = message.splitlines()
                assert all(LINE.match(line) for line in problems), (value, message)
                assert any(re.search(rf"\b{re.escape(key[0])}\b", line) for line in problems), (value, message)
                assert len(message) < 4000, (value, message)
    assert taken < len(ODD)  # each key refuses something
    assert sorted(each.name for each in project.iterdir()) == ["net.py", "photos", "recipe.toml"]


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_a_letter_too_few_is_found(project: Path, key: tuple[str, ...]) -> None:
    """A misspelt key never passes, and long ones bring the right one."""
    misspelt = key[-1][:-1] if len(key[-1]) > 3 else key[-1] + "x"
    if misspelt in recipe_schema.known_keys(key[:-1]):
        pytest.skip("that is another key")
    path = project / "recipe.toml"
    path.write_text(tomli_w.dumps(changed(NAMED, (*key[:-1], misspelt), 1)), encoding="utf-8")
    message = said(path)
    assert message is not None
    assert f"{misspelt}: unknown key" in message
    if len(key[-1]) > 5:
        assert "did you mean" in message


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_set_of_every_key(project: Path, key: tuple[str, ...]) -> None:
    path = project / "recipe.toml"
    path.write_text(tomli_w.dumps(PLAIN), encoding="utf-8")
    dotted = ".".join(key)
    for value in ("", "-1", '"', "{a=1}", "2020-01-01", "x y", "[1,", "\n"):
        said(path, (f"{dotted}={value}",))
    with contextlib.suppress(RecipeError):
        load_recipe(path, (f" {dotted} = 1", f"{dotted}.x=1", f"{dotted}[0]=1", f"={dotted}", dotted))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({("preprocess", "mean"): [123.675, 116.28, 103.53]}, r"pixels from 0 to 255.*divide by 255 \(0.485\)"),
        ({("preprocess", "std"): [58.395]}, r"divide by 255 \(0.229\)"),
        ({("preprocess", "resize"): 2**31}, "must be an integer from 1 to 65535"),
        ({("calibration", "samples"): 2**63}, r"calibration\.samples: must be below 2\^31, not 9223372036854775808"),
        ({("tune", "threads"): [2**31]}, r"tune\.threads\[0\]: must be below 2\^31"),
        ({("tune", "budget_s"): 1e308}, "at most 604800"),
        ({("package", "description"): "a\u2028Requires-Dist: evil"}, "a single line of text"),
        ({("package", "authors"): ["a\u0085License: none"]}, "a single line of text"),
        ({("output",): [{"name": "output", "rename": "../x"}]}, "a slash"),
        ({("output",): [{"name": "output", "rename": "a\nb"}]}, "cannot be printed"),
    ],
)
def test_values_that_would_build_something_else(project: Path, change: dict[tuple[str, ...], Any], words: str) -> None:
    path = project / "recipe.toml"
    recipe = PLAIN
    for key, value in change.items():
        recipe = changed(recipe, key, value)
    path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
    assert re.search(words, said(path) or "")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_of_other_systems(project: Path, newline: str, mark: str) -> None:
    path = project / "recipe.toml"
    text = mark + tomli_w.dumps(PLAIN).replace("\n", newline)
    path.write_bytes(text.encode())
    assert said(path) is None
    path.write_bytes(text.replace("photos", "fotos").encode())
    message = said(path) or ""
    line = text.split(newline).index('source = "images:photos"') + 1
    assert f"recipe.toml:{line}: calibration.source: " in message
    assert 'did you mean "images:photos"?' in message


def test_a_recipe_that_is_a_link_starts_at_the_file_that_it_leads_to(project: Path, tmp_path: Path) -> None:
    (project / "recipe.toml").write_text(tomli_w.dumps(PLAIN), encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link.toml").symlink_to(project / "recipe.toml")
    loaded = load_recipe(elsewhere / "link.toml")
    assert loaded.resolve("photos") == (project / "photos").resolve()
