"""Padding in front of a text, where tokenizer_config.json asks for it and the model needs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.runtime.text.inputs import load_text
from cpupack.runtime.text.tokenizer import Tokenizer
from cpupack.stages.load import load
from helpers.tiny_text import LENGTH, TEXTS, VOCABULARY, library, recipe_of, write_tokenizer


@pytest.mark.parametrize(("summary", "side"), [("last", "left"), ("mean", "left"), ("first", "right")])
def test_a_model_that_reads_the_last_position_gets_padding_in_front(tmp_path: Path, summary: str, side: str) -> None:
    """XLNet's classifiers do: with padding behind a text each answer was that of the padding."""
    transformers = library("transformers")
    config = transformers.XLNetConfig(
        vocab_size=VOCABULARY, d_model=16, n_layer=1, n_head=2, d_inner=24, num_labels=3, summary_type=summary,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.XLNetForSequenceClassification(config).eval()
    with torch.no_grad():
        for each in made.parameters():
            each.copy_(torch.randn_like(each) * 0.3)
    directory = tmp_path / "model"
    made.save_pretrained(str(directory))
    write_tokenizer(directory / "tokenizer.json", padding=False)
    settings = {"pad_token": "[PAD]", "padding_side": "left", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": LENGTH}))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    path = tmp_path / "text.toml"
    path.write_text(recipe_of("transformers:model"))
    model = load(load_recipe(path), SilentProgress())
    assert model.tokenizer is not None
    assert model.tokenizer.spec.side == side
    if summary == "mean":
        return
    tokenizer = Tokenizer(model.tokenizer.file, model.tokenizer.spec, "tokenizer.json")
    for text in ("cat", "the red dog sleeps"):
        with torch.inference_mode():
            found = model.module(torch.from_numpy(np.array([load_text(tokenizer, model.signature, text)])))
            expected = made(torch.tensor([tokenizer.tokens(text).ids])).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
