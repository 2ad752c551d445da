"""Recipes that take text: an own module with a tokenizer, the texts that calibrate and evaluate it, and its gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpupack.errors import CalibrationError, RecipeError
from cpupack.pipeline.data import calibration_samples, evaluation_samples
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.stages.load import load
from helpers.tiny_text import TEXTS, VOCABULARY, recipe_of, write_project, write_tokenizer


def test_an_own_module_takes_text_with_its_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "net.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.table = torch.nn.Embedding({VOCABULARY}, 8)\n        self.out = torch.nn.Linear(8, 3)\n\n"
        "    def forward(self, tokens):\n        return self.out(self.table(tokens).mean(dim=1))\n"
    )
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    recipe = recipe_of("python:net.py:Net").replace('"pretrained"', '"factory"')
    recipe += '\n[tokenizer]\nsource = "tokenizer.json"\n\n[[input]]\nname = "tokens"\nshape = [7]\ndtype = "int64"\n'
    (tmp_path / "own.toml").write_text(recipe)
    model = load(load_recipe(tmp_path / "own.toml"), SilentProgress())
    assert model.tokenizer is not None
    assert (model.tokenizer.spec.ids, model.tokenizer.spec.mask, model.tokenizer.spec.max_length) == ("tokens", None, 7)
    (tmp_path / "own.toml").write_text(
        recipe.replace('source = "tokenizer.json"', 'source = "tokenizer.json"\nmax_length = 8')
    )
    with pytest.raises(RecipeError, match=r'of "tokens" must be \[8\]'):
        load_recipe(tmp_path / "own.toml")


def test_calibration_reads_lines_and_json_lines(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    loaded = load_recipe(path)
    model = load(loaded, SilentProgress())
    samples = calibration_samples(loaded, model, SilentProgress())
    assert samples is not None
    assert samples.data.shape == (16, 20)
    assert samples.names[0].startswith(str(tmp_path / "texts.txt") + ":")
    lines = tmp_path / "texts.jsonl"
    lines.write_text('{"text": "the cat", "label": 0}\n"a dog"\n')
    path.write_text(path.read_text().replace("texts.txt", "texts.jsonl"))
    loaded = load_recipe(path)
    samples = calibration_samples(loaded, model, SilentProgress())
    assert samples is not None
    assert len(samples) == 2
    lines.write_text('{"text": 5}\n')
    with pytest.raises(CalibrationError, match=r"texts.jsonl:1 is int; expected a string"):
        calibration_samples(loaded, model, SilentProgress())
    lines.write_text('{"text": "the cat", "attention_mask": [1, 1]}\n')
    with pytest.raises(CalibrationError, match=r'texts.jsonl:1 has "attention_mask" beside its "text"'):
        calibration_samples(loaded, model, SilentProgress())


def test_a_factory_of_texts_may_name_its_labels(tmp_path: Path) -> None:
    extra = 'source = "python:texts.py:some"\n'
    named: dict[str, Any] = {"architecture": "BertForSequenceClassification", "id2label": {0: "no", 1: "yes"}}
    path = write_project(tmp_path, "transformers", extra, **named)
    (tmp_path / "texts.py").write_text(
        "def some():\n    return [('the cat', 'yes'), {'text': 'a dog', 'label': 'no'}, ('a tree', 1)]\n"
    )
    loaded = load_recipe(path)
    evaluated = evaluation_samples(loaded, load(loaded, SilentProgress()), None, SilentProgress())
    assert evaluated.labels is not None
    assert evaluated.labels.tolist() == [1, 0, 1]
    (tmp_path / "texts.py").write_text("def some():\n    return [('the cat', 'maybe')]\n")
    path.write_text(path.read_text() + "max_drop = 0.1\n")  # needs labels
    loaded = load_recipe(path)
    with pytest.raises(CalibrationError, match="the label of item 0 is 'maybe'"):
        evaluation_samples(loaded, load(loaded, SilentProgress()), None, SilentProgress())


def test_text_needs_a_tokenizer_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("cat\n")
    (tmp_path / "net.py").write_text("def net(): ...\n")
    recipe = recipe_of("python:net.py:net").replace('"pretrained"', '"factory"\ninput_shape = [4]')
    (tmp_path / "own.toml").write_text(recipe)
    with pytest.raises(RecipeError, match=r"is text, and the recipe has no \[tokenizer\]"):
        load_recipe(tmp_path / "own.toml")


def test_gates_on_embeddings_need_embeddings(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def net(): ...\n")
    recipe = recipe_of("python:net.py:net").replace('"pretrained"', '"factory"\ninput_shape = [4]')
    (tmp_path / "own.toml").write_text(recipe.replace("text:texts.txt", "synthetic") + "min_spearman = 0.99\n")
    with pytest.raises(RecipeError, match=r'min_spearman: compares embeddings; set \[task\] kind = "embedding"'):
        load_recipe(tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 14, "pad_token_id": 1}, 12),
        ({"model_type": "lilt", "max_position_embeddings": 14, "pad_token_id": 1}, 12),
        ({"model_type": "xmod", "max_position_embeddings": 14, "pad_token_id": 0}, 13),
        ({"model_type": "bert", "max_position_embeddings": 14, "pad_token_id": 1}, 14),
        ({"model_type": "t5", "n_positions": 14}, 14),
    ],
)
def test_a_directory_reads_as_many_tokens_as_it_has_positions(
    tmp_path: Path, config: dict[str, Any], expected: int
) -> None:
    """A length of more than the table holds failed in torch, with the index that is out of range."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"vocab_size": VOCABULARY}))
    write_tokenizer(tmp_path / "model" / "tokenizer.json")
    (tmp_path / "texts.txt").write_text("cat\n")
    path = tmp_path / "text.toml"
    path.write_text(recipe_of("transformers:model"))
    table = load_recipe(path).recipe.tokenizer
    assert table is not None
    assert table.max_length == expected
    longer = ["tokenizer.max_length=64"]
    if config["model_type"] == "t5":  # its positions are relative
        assert load_recipe(path, longer).recipe.input_specs[0].shape == (64,)
    else:
        with pytest.raises(RecipeError, match=f"64 tokens, and the model has positions for {expected}"):
            load_recipe(path, longer)
