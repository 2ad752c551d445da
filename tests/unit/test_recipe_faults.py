"""Recipes that somebody broke: an answer in words, never another exception, never a hang, and nothing is run."""

from __future__ import annotations

import contextlib
import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpupack.errors import CpupackError, RecipeError
from cpupack.recipe.file import load_recipe

ROOT = Path(__file__).parents[2]
WHOLE = sorted(path for path in (ROOT / "recipes").glob("*.toml") if not path.name.endswith(".lock.toml"))
TEXTS = [path.read_text(encoding="utf-8") for path in WHOLE]
ODD = [
    "\0", "nan", "inf", "-1", "1e400", "9" * 400, "0x", "[]", "{}", "[[", '"""', "'" * 3, "2020-01-01", "true",
    '"/"', '"../.."', '"\\u0000"', '"python:evil.py:run"', '"images:/"', '"images:\\u0000"', '"arrays:/dev/zero"',
    f'"images:{"x" * 300}"', f'"python:{"x" * 300}.py:f"',
    '"images:loop"', '"python:loop:x"', '"loop.pt"',
    "\ud7ff",
    '"python:os:system"', "\u202e", "[" * 2000, "a." * 2000 + "b = 1", "[x." + "y." * 500 + "z]",
]  # fmt: skip


def answered(path: Path, *overrides: str) -> None:
    with contextlib.suppress(CpupackError):
        load_recipe(path, overrides)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_recipes(tmp_path: Path, data: st.DataObject) -> None:
    """Lines cut, doubled, swapped; values replaced by odd ones; bytes changed anywhere."""
    for name in ("loop", "loop.pt"):
        if not (tmp_path / name).is_symlink():
            (tmp_path / name).symlink_to(name)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    lines = data.draw(st.sampled_from(TEXTS)).splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["cut", "double", "swap", "value", "key", "text"]))
        key, sign, _ = lines[at].partition("=")
        if how == "cut":
            lines[at] = ""
        elif how == "double":
            lines.insert(at, lines[at])
        elif how == "swap":
            other = data.draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        elif how == "value" and sign:
            lines[at] = f"{key}= {data.draw(st.sampled_from(ODD))}"
        elif how == "key" and sign:
            lines[at] = data.draw(st.text(string.ascii_lowercase + "._-\"'[]", min_size=1, max_size=12)) + " = 1"
        else:
            lines[at] += data.draw(st.text(max_size=8))
    raw = bytearray("\n".join(lines).encode("utf-8", "surrogatepass"))
    if raw and data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "recipe.toml"
    path.write_bytes(raw)
    before = sorted(tmp_path.iterdir())
    answered(path)
    assert sorted(tmp_path.iterdir()) == before  # nothing written, nothing run


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.sampled_from(ODD))
def test_mutated_overrides(key: str, value: str) -> None:
    answered(WHOLE[0], f"{key}={value}", f"model.source={value}", f"calibration.source={value}", key)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.toml"
    os.mkfifo(fifo)  # reading it would wait for ever
    for path in (fifo, Path("/dev/zero"), tmp_path):
        with pytest.raises(RecipeError, match=r"is not a file|is a directory"):
            load_recipe(path)


def test_a_huge_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("# " + "x" * (2 << 20))
    with pytest.raises(RecipeError, match="larger than"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "x" + ".y" * 100_000 + " = 1", "[" + "a." * 100_000 + "b]"])
def test_deep_toml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_names_cannot_become_paths(tmp_path: Path) -> None:
    text = TEXTS[0]
    for name in ("../evil", "/etc/evil", "a/b", "a\\\\b", "..", ".", "a\\u0000b", "a\\nb", "-rf", "con/../x"):
        path = tmp_path / "recipe.toml"
        lines = [f'name = "{name}"' if line.startswith("name =") else line for line in text.splitlines()]
        path.write_text("\n".join(lines))
        with pytest.raises(RecipeError, match=r"package\.name"):
            load_recipe(path)
