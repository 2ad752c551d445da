"""What is said of a dtype that a recipe does not have: the one that holds its values."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpupack.recipe.file import parse_recipe

RECIPE = """
schema = 1
[package]
name = "net-int8"
[model]
source = "python:net.py:Net"
weights = "factory"
[[input]]
name = "x"
shape = [3]
dtype = "{}"
[calibration]
source = "synthetic"
"""


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("int32", "int64"), ("torch.int16", "int64"), ("long", "int64"), ("uint16", "int64"), ("double", "float32"),
        ("float64", "float32"), ("bfloat16", "float32"), ("boolean", "bool"), ("np.uint8", "uint8"), ("Int64", "int64"),
    ],
)  # fmt: skip
def test_the_dtype_that_holds_the_values_is_named(given: str, meant: str, tmp_path: Path) -> None:
    _, problems, _ = parse_recipe(RECIPE.replace("{}", given), "recipe.toml", tmp_path)
    (problem,) = [text for _, text in problems if "input[0].dtype" in text]
    assert f'not "{given}"; did you mean "{meant}"?' in problem


def test_a_word_that_is_no_dtype_names_none(tmp_path: Path) -> None:
    _, problems, _ = parse_recipe(RECIPE.replace("{}", "image"), "recipe.toml", tmp_path)
    (problem,) = [text for _, text in problems if "input[0].dtype" in text]
    assert "did you mean" not in problem
