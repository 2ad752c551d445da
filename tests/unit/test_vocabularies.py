"""Inputs of ids that are looked up in several tables: each column has the vocabulary of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpupack.artifacts import FloatModel
from cpupack.errors import RecipeError
from cpupack.progress import SilentProgress
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.errors import InputError
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.rows import pack
from cpupack.runtime.tensor_spec import TensorSpec, ids_text
from cpupack.stages.load import load

SOURCE = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, 4) for count in (7, 50, 3))
        self.head = nn.Linear(4, 2)

    def forward(self, columns):
        x = sum(table(columns[..., place]) for place, table in enumerate(self.tables))
        return self.head(x if x.dim() == 2 else x.mean(1))

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(60, 4), nn.Linear(4, 2)
        self.register_buffer("first", torch.tensor([0, 7, 57]))

    def forward(self, columns):
        x = self.table(columns + self.first).sum(-2)
        return self.head(x if x.dim() == 2 else x.mean(1))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(60, 4), nn.Linear(4, 2)

    def forward(self, columns):
        return self.head(self.table(columns).flatten(1, -2).mean(1))
"""


def loaded(directory: Path, name: str, shape: list[int], **settings: int) -> FloatModel:
    (directory / "nets.py").write_text(SOURCE)
    raw = {
        "schema": 1,
        "package": {"name": "net"},
        "model": {"source": f"python:nets.py:{name}", "weights": "factory"},
        "input": [{"name": "columns", "shape": shape, "dtype": "int64", **settings}],
    }
    recipe = Recipe.model_validate(raw)
    return load(LoadedRecipe(recipe=recipe, path=directory / "recipe.toml", text=""), SilentProgress())


@pytest.mark.parametrize("shape", [[3], [5, 3]])
@pytest.mark.parametrize(("name", "expected"), [("Own", (7, 50, 3)), ("Shared", (60, 53, 3))])
def test_each_column_has_the_vocabulary_of_its_table(
    tmp_path: Path, name: str, expected: tuple[int, ...], shape: list[int]
) -> None:
    signature = loaded(tmp_path, name, shape).signature
    spec = signature.inputs[0]
    assert (spec.vocabularies, spec.vocabulary) == (expected, max(expected))
    assert TensorSpec.from_dict(spec.to_dict()) == spec
    drawn = random_rows(signature.inputs, np.random.default_rng(0), 900).reshape(-1, 3)
    assert tuple(int(each) + 1 for each in drawn.max(0)) == expected
    assert drawn.min() == 0
    largest = np.broadcast_to(np.array(expected) - 1, (2, *shape)).copy()
    np.testing.assert_array_equal(pack(signature, {"columns": largest}), largest.reshape(2, -1))
    largest[1, ..., 2] = 3
    message = "sample 1 has 3 at place 2 of the last dimension; the model takes 0 to 2 there"
    with pytest.raises(InputError, match=message):
        pack(signature, {"columns": largest})
    assert ids_text(spec) == f"from 0 to at most [{', '.join(str(each - 1) for each in expected)}]"


@pytest.mark.parametrize("shape", [[40], [5, 3]])
def test_words_have_one_vocabulary(tmp_path: Path, shape: list[int]) -> None:
    spec = loaded(tmp_path, "Words", shape).signature.inputs[0]
    assert (spec.vocabularies, spec.vocabulary) == ((), 60)
    assert ids_text(spec) == "from 0 to 59"


def test_a_vocabulary_of_the_recipe_is_that_of_all_columns(tmp_path: Path) -> None:
    spec = loaded(tmp_path, "Own", [3], vocabulary=3).signature.inputs[0]
    assert (spec.vocabularies, spec.vocabulary) == ((), 3)
    with pytest.raises(RecipeError, match="vocabulary = 7, and the model fails for ids from 3 on"):
        loaded(tmp_path, "Own", [3], vocabulary=7)
