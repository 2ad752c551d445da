"""Directories of transformers and sentence-transformers as sources: what they say, and what comes out of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError, RecipeError
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.runtime.text.inputs import load_text
from cpupack.runtime.text.tokenizer import Tokenizer
from cpupack.stages.load import load
from helpers.tiny_text import LENGTH, TEXTS, VOCABULARY, library, recipe_of, write_project, write_tokenizer


def loaded_model(path: Path) -> FloatModel:
    return load(load_recipe(path), SilentProgress())


def rows_of(model: FloatModel, texts: list[Any]) -> torch.Tensor:
    assert model.tokenizer is not None
    tokenizer = Tokenizer(model.tokenizer.file, model.tokenizer.spec, "tokenizer.json")
    return torch.from_numpy(np.stack([load_text(tokenizer, model.signature, each) for each in texts]))


def test_what_a_directory_says_is_the_same_wherever_the_project_lies(tmp_path: Path) -> None:
    """A lock holds the recipe's tables, and those of a directory: with a path in them it held in one place alone."""
    tables = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        recipe = load_recipe(write_project(tmp_path / name)).recipe
        tables.append(recipe.model_dump())
    assert tables[0] == tables[1]
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.source == "model/tokenizer.json"


def test_a_directory_says_inputs_length_padding_and_task(tmp_path: Path) -> None:
    model = loaded_model(write_project(tmp_path))
    inputs = {each.name: (each.shape, each.vocabulary) for each in model.signature.inputs}
    assert inputs == {"input_ids": ((10,), VOCABULARY), "attention_mask": ((10,), 2)}
    assert model.kind == "embedding"
    assert model.tokenizer is not None
    assert (model.tokenizer.spec.max_length, model.tokenizer.spec.pad_id) == (10, 0)
    assert model.weights_origin == "sentence-transformers:model, model.safetensors"


@pytest.mark.parametrize(("mode", "normalize"), [("mean", True), ("cls", False), ("max", True)])
def test_embeddings_are_those_of_the_library(tmp_path: Path, mode: str, normalize: bool) -> None:
    model = loaded_model(write_project(tmp_path, mode=mode, normalize=normalize))
    sentences = library("sentence_transformers")
    texts = ["cat", "the red dog sleeps", "", "the big blue bird eats a small green fish and runs"]
    expected = sentences.SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)
    with torch.inference_mode():
        found = model.module(rows_of(model, texts)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_a_pooling_may_leave_the_prompt_out(tmp_path: Path, mode: str) -> None:
    """Instructor models pool over the tokens after the prompt alone."""
    path = write_project(tmp_path, mode=mode)
    pooling = tmp_path / "model" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    prompts = {"prompts": {"query": "the big "}, "default_prompt_name": "query"}
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    model = loaded_model(path)
    sentences = library("sentence_transformers")
    texts = ["cat", "red dog sleeps"]
    expected = sentences.SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)
    with torch.inference_mode():
        found = model.module(rows_of(model, texts)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_embedding_keeps_the_dimensions_that_the_directory_says(tmp_path: Path) -> None:
    path = write_project(tmp_path, normalize=False)
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 5}))
    assert [each.shape for each in loaded_model(path).signature.outputs] == [(5,)]


def test_a_reranker_is_no_encoder_and_its_score_ends_in_its_sigmoid(tmp_path: Path) -> None:
    """The library makes an encoder anew from it, with another pooling: embeddings that nobody trained."""
    path = write_project(tmp_path)
    settings = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="holds a CrossEncoder, whose results are no embeddings") as caught:
        loaded_model(path)
    assert caught.value.hint == 'take the model as it is: source = "transformers:model"'
    names = {"architecture": "BertForSequenceClassification", "num_labels": 1}
    path = write_project(tmp_path / "score", "transformers", **names)
    assert load_recipe(path).recipe.output == []
    (tmp_path / "score" / "model" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    model = loaded_model(path)
    assert (model.kind, [each.apply for each in model.signature.outputs]) == ("regression", ["sigmoid"])


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sentence_roberta_config.json", {"max_seq_length": 7}, 7),  # as older versions of the library name it
        ("sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": True}, 7),  # tokenizer.json does so
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 3}}}, "has processing_kwargs"),
    ],
)
def test_how_a_directory_reads_text(tmp_path: Path, name: str, settings: dict[str, Any], expected: int | str) -> None:
    path = write_project(tmp_path)
    (tmp_path / "model" / "sentence_bert_config.json").unlink()
    (tmp_path / "model" / name).write_text(json.dumps(settings))
    if isinstance(expected, str):
        with pytest.raises(RecipeError, match=expected):
            load_recipe(path)
        return
    table = load_recipe(path).recipe.tokenizer
    assert table is not None
    assert table.max_length == expected


def test_a_prompt_is_left_out_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = write_project(tmp_path, extra='\n[tokenizer]\nprefix = ""\n')
    prompts = {"prompts": {"query": "the big "}, "default_prompt_name": "query"}
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    table = load_recipe(path).recipe.tokenizer
    assert table is not None
    assert table.prefix == ""


def test_a_length_that_takes_all_memory_is_asked_for(tmp_path: Path) -> None:
    path = write_project(tmp_path, "transformers")
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        file = tmp_path / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: 32768}))
    with pytest.raises(RecipeError, match=r"reads up to 32,768 tokens, and a build runs the model at its greatest"):
        load_recipe(path)
    path.write_text(path.read_text() + "\n[tokenizer]\nmax_length = 8192\n")
    load_recipe(path)


def test_padding_does_not_change_an_embedding(tmp_path: Path) -> None:
    long = loaded_model(write_project(tmp_path / "a", extra="\n[tokenizer]\nmax_length = 12\n"))
    short = loaded_model(write_project(tmp_path / "b", extra="\n[tokenizer]\nmax_length = 5\n"))
    with torch.inference_mode():
        first, second = (each.module(rows_of(each, ["the cat"])).numpy() for each in (long, short))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_a_classifier_has_its_labels_and_pairs_have_types(tmp_path: Path) -> None:
    names = {"architecture": "BertForSequenceClassification", "id2label": {0: "no", 1: "yes", 2: "maybe"}}
    model = loaded_model(write_project(tmp_path, "transformers", **names))
    assert (model.kind, model.labels) == ("classification", ("no", "yes", "maybe"))
    assert [each.name for each in model.signature.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    transformers = library("transformers")
    own = transformers.BertForSequenceClassification.from_pretrained(str(tmp_path / "model")).eval()
    row = rows_of(model, [("cat runs", "the dog")])
    ids, mask, types = (part.long() for part in row.split(LENGTH, dim=1))
    assert types.sum() == 3  # the, dog, [SEP]
    with torch.inference_mode():
        expected = own(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        torch.testing.assert_close(model.module(row), expected)


def test_one_label_is_a_score(tmp_path: Path) -> None:
    model = loaded_model(
        write_project(tmp_path, "transformers", architecture="BertForSequenceClassification", num_labels=1)
    )
    assert model.kind == "regression"


@pytest.mark.parametrize(
    ("settings", "kind", "labels"),
    [
        ({"num_labels": 3, "problem_type": "regression"}, "regression", None),
        (
            {"id2label": {0: "calm", 1: "loud"}, "label2id": {"calm": 0, "loud": 1}, "problem_type": "regression"},
            "regression",
            ("calm", "loud"),
        ),
        (
            {"id2label": {0: "spam"}, "label2id": {"spam": 0}, "problem_type": "multi_label_classification"},
            "multilabel",
            ("spam",),
        ),
        ({"num_labels": 3}, "classification", ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
)
def test_the_problem_of_a_config_is_the_task(
    tmp_path: Path, settings: dict[str, Any], kind: str, labels: tuple[str, ...] | None
) -> None:
    """Three values of a regression came out as the probabilities of three classes."""
    model = loaded_model(
        write_project(tmp_path, "transformers", architecture="BertForSequenceClassification", **settings)
    )
    assert (model.kind, model.labels) == (kind, labels)


def test_the_wheels_tokens_are_those_that_the_library_makes_of_the_directory(tmp_path: Path) -> None:
    """tokenizer_config.json may change what tokenizer.json says, and the model was trained with both."""
    path = write_project(tmp_path, "transformers")
    settings = {
        "pad_token": "[PAD]",
        "tokenizer_class": "BertTokenizer",
        "truncation_side": "left",
        "mask_token": "[UNK]",
    }
    directory = tmp_path / "model"
    tokenizers = library("tokenizers")
    made = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    made.normalizer = tokenizers.normalizers.Sequence([])  # the case stays, which the class changes
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    expected = library("transformers").AutoTokenizer.from_pretrained(str(directory))
    progress = SilentProgress()
    model = load(load_recipe(path), progress)
    assert model.tokenizer is not None
    tokenizer = Tokenizer(model.tokenizer.file, model.tokenizer.spec, "tokenizer.json")
    texts = ["The RED dog", ("Cat", "DOG runs"), "the big " * LENGTH + "cat"]
    for text in texts:
        parts = text if isinstance(text, tuple) else (text,)
        wanted = expected(*parts, truncation=True, max_length=LENGTH)
        found = tokenizer.tokens(text)
        assert (list(found.ids), list(found.types)) == (wanted["input_ids"], wanted["token_type_ids"])
    assert any("other tokens" in each for each in progress.warnings)


def test_a_pair_has_no_types_where_the_librarys_tokenizer_gives_none(tmp_path: Path) -> None:
    path = write_project(tmp_path, "transformers")
    settings = {"pad_token": "[PAD]", "model_input_names": ["input_ids", "attention_mask"]}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    recipe = load_recipe(path).recipe
    assert [each.name for each in recipe.input] == ["input_ids", "attention_mask"]


def test_an_old_directory_with_the_encoder_in_one_of_its_own(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    directory = tmp_path / "model"
    inner = directory / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (directory / name).rename(inner / name)
    (directory / "sentence_bert_config.json").rename(inner / "sentence_bert_config.json")
    modules = json.loads((directory / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (directory / "modules.json").write_text(json.dumps(modules))
    model = loaded_model(path)
    expected = library("sentence_transformers").SentenceTransformer(str(directory), device="cpu").encode(["red cat"])
    with torch.inference_mode():
        found = model.module(rows_of(model, ["red cat"])).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert model.weights_origin == "sentence-transformers:model, 0_Transformer/model.safetensors"


def test_weights_that_are_missing_are_never_made_up(tmp_path: Path) -> None:
    path = write_project(tmp_path, "transformers", architecture="BertForMaskedLM")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("BertForMaskedLM", "BertForSequenceClassification"))
    with pytest.raises(ModelError, match=r"no fitting weights for .*classifier.*they would be random"):
        loaded_model(path)


def test_no_weights_fall_back_to_random_ones_only_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = write_project(tmp_path, "transformers")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has none of model\.safetensors"):
        loaded_model(path)
    path.write_text(path.read_text().replace('"pretrained"', '"pretrained"\nweights_fallback = "random"'))
    assert loaded_model(path).random_weights


def test_code_in_a_directory_is_never_run(tmp_path: Path) -> None:
    path = write_project(tmp_path, "transformers")
    config = tmp_path / "model" / "config.json"
    found = json.loads(config.read_text())
    config.write_text(json.dumps({**found, "architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}}))
    (tmp_path / "model" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match=r"has no Mine; its own code \(auto_map\) is never run"):
        loaded_model(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["transformers", "sentence-transformers"])
def test_absurd_numbers_of_layers_are_refused(tmp_path: Path, kind: str) -> None:
    """The libraries would make them one by one."""
    path = write_project(tmp_path, kind)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 10**400}))
    with pytest.raises(ModelError, match=r"num_hidden_layers in config\.json is more than 10,000"):
        load(load_recipe(path), SilentProgress())


def test_a_module_that_is_not_the_librarys_is_refused(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    modules = tmp_path / "model" / "modules.json"
    modules.write_text(modules.read_text().replace("sentence_transformers.models.Pooling", "os.system"))
    with pytest.raises(ModelError, match=r"modules\.json has os\.system"):
        loaded_model(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("\n[tokenizer]\nmax_length = 600\n", "600 tokens, and the model has positions for 12"),
        ('\n[tokenizer]\npad_token = "[NONE]"\n', r'no token "\[NONE\]"'),
        ('\n[tokenizer]\nsource = "absent.json"\n', r"absent.json does not exist"),
        ('\n[tokenizer]\nsource = "package:nobody_has_this/x.json"\n', 'no package "nobody_has_this" is installed'),
        ("\n[tokenizer]\nmax_lenght = 8\n", 'did you mean "max_length"'),
        ("\n[tokenizer]\nmax_length = 2\n", "of 2 tokens 2 are special ones"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, change: str, said: str) -> None:
    path = write_project(tmp_path, extra=change)
    with pytest.raises((RecipeError, ModelError), match=said):
        loaded_model(path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    file = tmp_path / "model" / "tokenizer.json"
    found = json.loads(file.read_text())
    found["model"]["vocab"]["extra"] = VOCABULARY + 6
    file.write_text(json.dumps(found))
    with pytest.raises(ModelError, match=f"gives ids up to {VOCABULARY + 6}, and the model has {VOCABULARY}"):
        loaded_model(path)
    file.write_text("{")
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        loaded_model(path)


def test_a_directory_says_whose_results_lie_in_the_text(tmp_path: Path) -> None:
    names = {0: "O", 1: "B-ANIMAL", 2: "I-ANIMAL"}
    path = write_project(tmp_path / "ner", "transformers", architecture="BertForTokenClassification", id2label=names)
    model = loaded_model(path)
    assert (model.kind, model.labels) == ("tokens", tuple(names.values()))
    assert [each.shape for each in model.signature.outputs] == [(LENGTH, 3)]
    model = loaded_model(write_project(tmp_path / "qa", "transformers", architecture="BertForQuestionAnswering"))
    assert (model.kind, model.labels) == ("answer", None)
    assert [each.name for each in model.signature.outputs] == ["start_logits", "end_logits"]


def test_a_gap_needs_a_token_that_stands_for_it(tmp_path: Path) -> None:
    path = write_project(tmp_path, "transformers", architecture="BertForMaskedLM")
    with pytest.raises(RecipeError, match=r"tokenizer.json has none of \[MASK\], <mask>"):
        loaded_model(path)
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"mask_token": "fish"}))
    model = loaded_model(path)
    assert model.tokenizer is not None
    assert (model.kind, model.tokenizer.spec.mask_id) == ("fill", 6)
    path.write_text(path.read_text() + '[tokenizer]\nmask_token = "owl"\n')
    with pytest.raises(RecipeError, match=r'mask_token: .* has no token "owl"'):
        loaded_model(path)


def test_types_of_tokens_are_made_where_the_library_makes_them(tmp_path: Path) -> None:
    """A tokenizer of no class of its own makes none since version 5, unless its file names them."""
    path = write_project(tmp_path, "transformers", architecture="BertForSequenceClassification")
    settings = tmp_path / "model" / "tokenizer_config.json"
    plain = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    for more, types in (({}, 0), ({"model_input_names": names}, 1)):
        settings.write_text(json.dumps(plain | more))
        model = loaded_model(path)
        found = model.signature.inputs[-1]
        assert (found.name, found.pad) == ("token_type_ids", 0.0)  # so texts of any length have programs
        row = rows_of(model, [("the cat", "dog")])[0]
        assert row[2 * LENGTH + 4] == types  # [CLS] the cat [SEP] dog [SEP]
        tokenizer = library("transformers").AutoTokenizer.from_pretrained(str(tmp_path / "model"))
        assert ("token_type_ids" in tokenizer("the cat", "dog")) == bool(types)


def test_a_model_that_was_trained_on_padding_reads_it(tmp_path: Path) -> None:
    """SigLIP takes the last position, whatever the text's length: its texts are filled up, and there is no mask."""
    transformers = library("transformers")
    directory = tmp_path / "model"
    config = transformers.SiglipTextConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=LENGTH, projection_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.SiglipTextModel(config).save_pretrained(directory)
    write_tokenizer(directory / "tokenizer.json")
    settings = {"pad_token": "[PAD]", "model_max_length": LENGTH, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "recipe.toml").write_text(recipe_of("transformers:model"))
    model = loaded_model(tmp_path / "recipe.toml")
    (ids,) = model.signature.inputs
    assert (ids.name, ids.pad) == ("input_ids", None)
    texts = ["cat", "the red dog sleeps"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
    given = tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = transformers.SiglipTextModel.from_pretrained(directory)(given).pooler_output
        found = model.module(rows_of(model, texts))[:, -16:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
