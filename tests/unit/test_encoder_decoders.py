"""Directories of models with an encoder and a decoder that classify a text, or answer a question, in one pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from cpupack.artifacts import FloatModel, Samples
from cpupack.errors import ModelError
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.runtime.text.inputs import load_text
from cpupack.runtime.text.tokenizer import Tokenizer
from cpupack.stages.capture import capture
from cpupack.stages.load import load
from helpers.tiny_text import LENGTH, TEXTS, VOCABULARY, id_of, library, recipe_of, write_tokenizer

_PAIR = ("the cat [SEP]", "dog")


def _bart(architecture: str, **more: Any) -> Any:
    transformers = library("transformers")
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=LENGTH,
        pad_token_id=0, bos_token_id=2, eos_token_id=id_of("[SEP]"), decoder_start_token_id=3, num_labels=3, **more,
    )  # fmt: skip
    return getattr(transformers, architecture)(config)


def _t5(architecture: str) -> Any:
    transformers = library("transformers")
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, pad_token_id=0,
        eos_token_id=id_of("[SEP]"), decoder_start_token_id=0, num_labels=3,
    )  # fmt: skip
    return getattr(transformers, architecture)(config)


def _written(root: Path, made: Any) -> Path:
    torch.manual_seed(0)
    directory = root / "model"
    with torch.no_grad():
        for each in made.parameters():
            each.copy_(torch.randn_like(each) * 0.3)
    made.eval().save_pretrained(str(directory))
    write_tokenizer(directory / "tokenizer.json")
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "model_max_length": LENGTH}))
    (root / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    path = root / "text.toml"
    path.write_text(recipe_of("transformers:model"))
    return path


def _rows(model: FloatModel, texts: list[Any]) -> torch.Tensor:
    assert model.tokenizer is not None
    tokenizer = Tokenizer(model.tokenizer.file, model.tokenizer.spec, "tokenizer.json")
    return torch.from_numpy(np.stack([load_text(tokenizer, model.signature, each) for each in texts]))


@pytest.mark.parametrize("family", ["Bart", "T5"])
def test_a_classifier_with_a_decoder_answers_as_the_library_does(tmp_path: Path, family: str) -> None:
    made = {"Bart": _bart, "T5": _t5}[family](f"{family}ForSequenceClassification")
    loaded = load_recipe(_written(tmp_path, made))
    model = load(loaded, SilentProgress())
    assert (model.kind, model.labels) == ("classification", ("LABEL_0", "LABEL_1", "LABEL_2"))
    texts: list[Any] = ["cat", "", "the red dog sleeps", _PAIR]
    rows = _rows(model, texts)
    tokenizer = Tokenizer(model.tokenizer.file, model.tokenizer.spec, "") if model.tokenizer else None
    assert tokenizer is not None
    with torch.inference_mode():
        found = model.module(rows)
        for row, text in zip(found, texts, strict=True):
            expected = made(torch.tensor([tokenizer.tokens(text).ids])).logits[0]
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
        graph = capture(
            model, Samples(rows.numpy(), "texts", tuple(map(str, texts))), loaded.recipe, SilentProgress()
        ).module
        assert isinstance(graph, fx.GraphModule)
        torch.testing.assert_close(graph(rows), found, rtol=1e-4, atol=1e-5)


def test_the_places_of_an_answer_come_without_what_the_encoder_says(tmp_path: Path) -> None:
    model = load(load_recipe(_written(tmp_path, _bart("BartForQuestionAnswering"))), SilentProgress())
    assert (model.kind, [each.name for each in model.signature.outputs]) == ("answer", ["start_logits", "end_logits"])


def test_a_text_that_ends_without_the_token_that_is_read_is_refused(tmp_path: Path) -> None:
    """The library says so of each text; a wheel would have read the first token."""
    path = _written(tmp_path, _bart("BartForSequenceClassification"))
    file = tmp_path / "model" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    with pytest.raises(ModelError, match="puts no token 3 at the end of a text"):
        load(load_recipe(path), SilentProgress())


def test_a_model_that_makes_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="makes its text token by token"):
        load(load_recipe(_written(tmp_path, _bart("BartForConditionalGeneration"))), SilentProgress())


def test_a_classifier_of_sound_is_no_model_that_makes_text(tmp_path: Path) -> None:
    """Whisper's reads the encoder alone, and its config has the setting of the whole model."""
    transformers = library("transformers")
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=8, num_mel_bins=8, classifier_proj_size=8,
        num_labels=3,
    )  # fmt: skip
    transformers.WhisperForAudioClassification(config).save_pretrained(str(tmp_path / "model"))
    (tmp_path / "texts.txt").write_text("unread\n")
    path = tmp_path / "sound.toml"
    path.write_text(recipe_of("transformers:model").replace("\nweights", "\ninput_shape = [8, 16]\nweights"))
    path.write_text(path.read_text().replace('source = "text:texts.txt"', 'source = "synthetic"'))
    assert load(load_recipe(path), SilentProgress()).kind == "classification"


def test_a_model_of_laid_out_pages_is_warned_of(tmp_path: Path) -> None:
    """LayoutLM answers without boxes too, as if all words were in one place."""
    transformers = library("transformers")
    config = transformers.LayoutLMConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    path = _written(tmp_path, transformers.LayoutLMForSequenceClassification(config))
    progress = SilentProgress()
    load(load_recipe(path), progress)
    assert any("(bbox), which a text does not say" in each for each in progress.warnings)
