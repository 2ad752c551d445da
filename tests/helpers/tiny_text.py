"""A small tokenizer and a small BERT, saved as transformers and sentence-transformers save theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cpupack.model.vision import repair_torchvision_imports

WORDS = ("cat", "dog", "fish", "bird", "runs", "sleeps", "eats", "red", "blue", "green", "the", "a", "big", "small")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LENGTH = 12
VOCABULARY = len(SPECIAL) + len(WORDS)
TEXTS = [f"the {one} {two} {three}" for one in WORDS[7:10] for two in WORDS[:4] for three in WORDS[4:7]]


def library(name: str) -> Any:
    """Return a library that a test needs, or skip the test. torchvision, which both look for, is repaired before."""
    repair_torchvision_imports()
    return pytest.importorskip(name)


def id_of(word: str) -> int:
    """Return the id of a word or special token."""
    return (*SPECIAL, *WORDS).index(word)


def write_tokenizer(path: Path, *, padding: bool = True) -> Path:
    """Write a tokenizer.json of whole words, with [CLS] and [SEP] around each text as BERT has them."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
    )
    if padding:  # as libraries leave it in the file: of another length than the model's, which the wheel must not take
        made.enable_padding(pad_id=0, pad_token="[PAD]", length=3)
        made.enable_truncation(3)
    made.save(str(path))
    return path


def write_bert(directory: Path, *, architecture: str = "BertModel", **settings: Any) -> Path:
    """Write a directory as transformers does, with seeded weights."""
    transformers = library("transformers")
    directory.mkdir(parents=True, exist_ok=True)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        **settings,
    )
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # the initial weights of 0.02 would leave hardly anything to compare
    model.save_pretrained(str(directory))
    write_tokenizer(directory / "tokenizer.json")
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "model_max_length": 512}))
    return directory


def write_sentence_bert(directory: Path, mode: str = "mean", *, normalize: bool = True) -> Path:
    """Write a directory as sentence-transformers does: BERT, pooling, and a norm."""
    library("sentence_transformers")
    write_bert(directory)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10, "do_lower_case": False}))
    (directory / "1_Pooling").mkdir()
    keys = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    flags = {f"pooling_mode_{key}": name == mode for name, key in keys.items()}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **flags}))
    return directory


def recipe_of(source: str, extra: str = "") -> str:
    """Return a recipe of such a directory that calibrates with ``texts.txt``."""
    return f"""\
schema = 1

[package]
name = "tiny-text"

[model]
source = "{source}"
weights = "pretrained"

[calibration]
source = "text:texts.txt"
samples = 16

[evaluation]
min_sqnr_db = "off"
{extra}"""


def write_project(root: Path, kind: str = "sentence-transformers", extra: str = "", **settings: Any) -> Path:
    """Write a model's directory, texts, and the recipe, whose path is returned."""
    if kind == "transformers":
        write_bert(root / "model", **settings)
    else:
        write_sentence_bert(root / "model", **settings)
    (root / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    path = root / "text.toml"
    path.write_text(recipe_of(f"{kind}:model", extra))
    return path
