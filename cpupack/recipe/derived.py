"""What a directory of a ``transformers:`` or ``sentence-transformers:`` source says, so that a recipe need not.

Reads JSON files alone: nothing here imports torch or transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cpupack.errors import RecipeError
from cpupack.recipe.image_directory import ImageSettings, image_settings, with_own
from cpupack.recipe.json_objects import read_json
from cpupack.recipe.places import NoPlaceError, located
from cpupack.recipe.recipe import Recipe
from cpupack.recipe.tables.signature import Input, Output, Task
from cpupack.recipe.tables.text import Tokenizer
from cpupack.recipe.text_checks import DIRECTORIES

TOKENIZER = "tokenizer.json"
_NO_LIMIT = 1_000_000
"""A ``model_max_length`` from here on is the library's way to say that none is known."""
_OFFSET = (
    *("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text", "xlm-roberta-xl", "ibert", "xmod"),
    *("roberta-prelayernorm", "luke", "lilt", "layoutlmv3", "markuplm", "esm", "altclip_text_model", "clap_text_model"),
    "bridgetower_text_model",
)
"""Model types whose positions begin behind that of the padding."""
_RELATIVE = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "funnel", "xlnet")
"""Model types without a table of positions: what their config has as the most is a habit of training, no limit."""
_WHOLE = ("siglip_text_model", "siglip2_text_model", "fnet")
"""Model types whose texts are filled up to their greatest length, in training and after it, and that know no mask."""
_LONG = 4096
"""Tokens from where on the length must be in the recipe. The scores of attention in FP32 grow with its square."""
_SENTENCE_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Files that say how a sentence-transformers directory reads text. The library takes the first that is there."""
_OF_SENTENCES = "config_sentence_transformers.json"
_CLASSIFIERS = (
    *("ForSequenceClassification", "ForImageClassification"),
    *("ForAudioClassification", "ForVideoClassification"),
)
"""Endings of the names of classes that give one row of scores."""
_SEGMENTERS = ("ForSemanticSegmentation",)
"""Endings of the names of classes that give a map of scores for each class."""
_OF_TEXT: dict[str, Literal["tokens", "answer", "fill"]] = {
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "answer",
    "ForMaskedLM": "fill",
}
"""Kinds of tasks whose results lie in the text, by the endings of the names of classes."""
_ENCODERS = ("DPRContextEncoder", "DPRQuestionEncoder")
"""Classes whose only row of numbers is no row of scores."""
_LABELS = 2
"""How many the library makes where a config does not say."""


def derived(recipe: Recipe, directory: Path) -> Recipe:
    """Return a recipe with the inputs, the tokenizer, the task and the labels that its source's directory says.

    What the recipe says itself stays. Recipes of other sources are returned as they are. Raises RecipeError for a file
    that cannot be read, and for a ``max_length`` beyond the model's positions.
    """
    kind, _, place = recipe.model.source.partition(":")
    if kind not in DIRECTORIES:
        return recipe
    try:
        root, inside = _encoder_of(located(place, directory), kind)
        place = f"{place.rstrip('/')}/{inside}" if inside else place
    except NoPlaceError as error:
        raise RecipeError(f"[model] source: {error}") from error
    config = read_json(root / "config.json", required=True)
    changes: dict[str, Any] = {}
    images = images_of(recipe, root, config) if kind == "transformers" and not recipe.input else None
    if images is not None:
        changes |= _of_images(recipe, images)
        changes |= _meaning(recipe.model_copy(update=changes), config, kind)
        return recipe.model_copy(update=changes)
    tokenizer = _tokenizer(recipe.tokenizer, root, place, config, kind)
    if tokenizer is not None:
        changes["tokenizer"] = tokenizer
    if not recipe.input and recipe.model.input_shape is None:
        changes["input"] = _inputs(recipe, tokenizer, config, kind, root)
    changes |= _meaning(recipe, config, kind)
    if not recipe.output and kind == "transformers" and _ends_in_sigmoid(root, config):
        changes["output"] = [Output(name="logits", apply="sigmoid")]
    return recipe.model_copy(update=changes)


def images_of(recipe: Recipe, root: Path, config: Mapping[str, Any]) -> ImageSettings | None:
    """Return how the directory of a model of images reads them, None for other models. Raises RecipeError."""
    if recipe.tokenizer is not None or ((root / TOKENIZER).is_file() and not _sees(config)):
        return None
    given = () if recipe.preprocess is None else recipe.preprocess.model_fields_set
    return image_settings(root, config, given)


def _sees(config: Mapping[str, Any]) -> bool:
    """Return whether the model of a directory with a tokenizer reads images alone, as the half of a CLIP."""
    architecture = _architecture(config)
    return "Vision" in architecture or architecture.endswith("ForImageClassification")


def _of_images(recipe: Recipe, images: ImageSettings) -> dict[str, Any]:
    """Return ``[preprocess]``, and the shape of the input that it makes."""
    own, shape = recipe.preprocess, recipe.model.input_shape
    found: dict[str, Any] = {"preprocess": with_own(images, own, shape)}
    if shape is not None:
        return found
    made = images.shape
    if made is None and own is not None:
        size = own.crop or own.resize
        sides = [size, size] if isinstance(own.crop, int) else size
        made = (1 if found["preprocess"].mode == "L" else 3, *sides) if isinstance(sides, list) else None
    if made is None:
        raise RecipeError(
            "[model] input_shape: is missing, and [preprocess] gives images of different sizes",
            hint="give the shape of the model's input, such as [3, 224, 224]",
        )
    return found | {"model": recipe.model.model_copy(update={"input_shape": list(made)})}


def text_directory(recipe: Recipe, directory: Path) -> Path | None:
    """Return the directory with the encoder's config and tokenizer, None for other sources. Raises RecipeError."""
    kind, _, place = recipe.model.source.partition(":")
    if kind not in DIRECTORIES:
        return None
    try:
        return _encoder_of(located(place, directory), kind)[0]
    except NoPlaceError as error:
        raise RecipeError(f"[model] source: {error}") from error


def _encoder_of(root: Path, kind: str) -> tuple[Path, str]:
    """Return the directory with the encoder's config and tokenizer, and its path in that of the source.

    sentence-transformers had it in a directory ``0_Transformer`` once, and modules.json says which.
    """
    if kind == "transformers" or (root / "config.json").is_file():
        return root, ""
    try:
        steps = json.loads((root / "modules.json").read_text(encoding="utf-8"))
        inside = str(steps[0]["path"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return root, ""  # the loader says what is wrong with modules.json
    return (root / inside, inside) if inside and (root / inside).is_dir() else (root, "")


def _tokenizer(
    table: Tokenizer | None, root: Path, place: str, config: Mapping[str, Any], kind: str
) -> Tokenizer | None:
    """Return the tokenizer of the directory ``root``. The recipe calls it ``place``, so that a lock holds elsewhere."""
    if (table is None or table.source is None) and not (root / TOKENIZER).is_file():
        if table is not None:
            raise RecipeError(
                f"[tokenizer] source: {root} has no {TOKENIZER}",
                hint="save it with the library: AutoTokenizer.from_pretrained(...).save_pretrained(DIR)",
            )
        return None
    table = table or Tokenizer()
    settings = read_json(root / "tokenizer_config.json")
    limits = [_positions(config), _whole(settings.get("model_max_length"))]
    longest = min((each for each in limits if each is not None and each < _NO_LIMIT), default=_habit(config))
    own = _whole(_sentence_settings(root, kind).get("max_seq_length"))
    max_length = table.max_length or own or longest
    if max_length is None:
        raise RecipeError(
            f"[tokenizer] max_length: {root} does not say how many tokens the model reads",
            hint="set max_length in [tokenizer]",
        )
    if table.max_length is None and max_length > _LONG:
        raise RecipeError(
            f"[tokenizer] max_length: {root} reads up to {max_length:,} tokens, and a build runs the model at its "
            "greatest length, which may take all memory",
            hint="set max_length in [tokenizer] to what your texts need, such as 512",
        )
    if (most := _positions(config)) is not None and max_length > most:
        raise RecipeError(f"[tokenizer] max_length: {max_length} tokens, and the model has positions for {most}")
    return table.model_copy(
        update={
            "source": table.source or f"{place.rstrip('/')}/{TOKENIZER}",
            "max_length": max_length,
            "prefix": table.prefix if "prefix" in table.model_fields_set else _prompt(root, kind),
            "pad_token": table.pad_token or _token(settings, "pad_token"),
            "fixed_length": table.fixed_length
            or ("fixed_length" not in table.model_fields_set and config.get("model_type") in _WHOLE),
            "mask_token": table.mask_token or _token(settings, "mask_token"),
        }
    )


def _token(settings: Mapping[str, Any], name: str) -> str | None:
    """Return a special token of tokenizer_config.json, None where it names none."""
    token = settings.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


def _prompt(root: Path, kind: str) -> str:
    """Return the default prompt of a sentence-transformers directory, empty without one."""
    if kind == "transformers":
        return ""
    settings = read_json(root / _OF_SENTENCES)
    prompts = settings.get("prompts")
    found = prompts.get(settings.get("default_prompt_name")) if isinstance(prompts, dict) else None
    return found if isinstance(found, str) else ""


def _sentence_settings(root: Path, kind: str) -> dict[str, Any]:
    """Return how a sentence-transformers directory reads text. Raises RecipeError for what tokenizer.json cannot do."""
    if kind == "transformers":
        return {}
    path = next((root / name for name in _SENTENCE_SETTINGS if (root / name).is_file()), root / _SENTENCE_SETTINGS[0])
    settings = read_json(path)
    if settings.get("do_lower_case") and not _lowers(read_json(root / TOKENIZER).get("normalizer")):
        raise RecipeError(
            f"[model] source: {path} has do_lower_case, which {TOKENIZER} does not do",
            hint=f'add the normalizer {{"type": "Lowercase"}} to {TOKENIZER}, and set do_lower_case to false',
        )
    if settings.get("processing_kwargs"):
        raise RecipeError(
            f"[model] source: {path} has processing_kwargs, which change the tokens of a text; a wheel has {TOKENIZER}",
            hint="remove them there, and set max_length in [tokenizer]",
        )
    return settings


def _lowers(normalizer: Any) -> bool:
    """Return whether a normalizer of tokenizer.json makes all letters small."""
    if not isinstance(normalizer, dict):
        return False
    parts = normalizer.get("normalizers")
    if isinstance(parts, list) and any(map(_lowers, parts)):
        return True
    return bool(normalizer.get("type") == "Lowercase" or normalizer.get("lowercase") is True)


def _positions(config: Mapping[str, Any]) -> int | None:
    """Return the tokens that the table of positions is for, None where there is no such table."""
    kind, found = config.get("model_type"), _habit(config)
    if found is None or kind in _RELATIVE or (kind == "deberta-v2" and config.get("position_biased_input") is False):
        return None
    if kind in _OFFSET and not (kind == "esm" and config.get("position_embedding_type") == "rotary"):
        padding = config.get("pad_token_id") if kind != "mpnet" else None
        found -= padding + 1 if isinstance(padding, int) and padding >= 0 else 2
    return found


def _habit(config: Mapping[str, Any]) -> int | None:
    """Return the most positions that a config names, None where it names none."""
    return _whole(config.get("max_position_embeddings") or config.get("n_positions"))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _inputs(
    recipe: Recipe, tokenizer: Tokenizer | None, config: Mapping[str, Any], kind: str, root: Path
) -> list[Input]:
    if tokenizer is None or tokenizer.max_length is None:
        raise RecipeError(
            f"[model] source: the directory of {recipe.model.source} has no {TOKENIZER} that would say what the "
            "inputs are",
            hint="describe each input by an [[input]] table, or an image by [model] input_shape",
        )
    shape: list[int | str] = [tokenizer.max_length]
    found = [Input(name="input_ids", shape=shape, dtype="int64")]
    if not tokenizer.fixed_length or kind != "transformers":  # the pooling of a sentence-transformer needs it
        found.append(Input(name="attention_mask", shape=shape, dtype="int64", vocabulary=2))
    types = _whole(config.get("type_vocab_size")) or 0
    made = read_json(root / "tokenizer_config.json").get("model_input_names")
    untyped = isinstance(made, list) and "token_type_ids" not in made  # the second text of a pair is of type 0 too
    if kind == "transformers" and types > 1 and not untyped:  # a sentence-transformer reads one text, of type 0
        found.append(Input(name="token_type_ids", shape=shape, dtype="int64", vocabulary=types, default=0))
    return found


def _meaning(recipe: Recipe, config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the task and the labels, as far as the directory says them and the recipe does not."""
    if kind == "sentence-transformers":
        return {} if recipe.task is not None else {"task": Task(kind="embedding")}
    architecture = _architecture(config)
    if (
        kind_of := next((each for ending, each in _OF_TEXT.items() if architecture.endswith(ending)), None)
    ) is not None:
        return _of_parts(recipe, config, kind_of)
    if architecture in _ENCODERS and recipe.task is None:
        return {"task": Task(kind="embedding")}
    if not architecture.endswith((*_CLASSIFIERS, *_SEGMENTERS)):
        return {}
    labels = _labels_of(config)
    count = len(labels) or _whole(config.get("num_labels")) or _LABELS
    if recipe.task is not None:
        return {}
    problem = config.get("problem_type")
    if architecture.endswith(_SEGMENTERS):
        found: dict[str, Any] = {"task": Task(kind="segmentation")}
        named = count > 1
    elif problem == "regression" or (count == 1 and problem != "multi_label_classification"):
        found = {"task": Task(kind="regression")}  # such as a reranker's score
        named = count > 1 and labels != [f"LABEL_{number}" for number in range(count)]
    else:
        several = problem == "multi_label_classification"
        found = {"task": Task(kind="multilabel" if several else "classification")}
        named = True
    if labels and named and recipe.model.labels is None and all(map(_is_label, labels)):
        found["model"] = recipe.model.model_copy(update={"labels": labels})
    return found


def _of_parts(recipe: Recipe, config: Mapping[str, Any], kind: Literal["tokens", "answer", "fill"]) -> dict[str, Any]:
    """Return the task and the labels of a model whose results lie in the text."""
    if recipe.task is not None:
        return {}
    found: dict[str, Any] = {"task": Task(kind=kind)}
    if kind == "answer" and config.get("is_encoder_decoder") and not recipe.output:
        found["output"] = [Output(name="encoder_last_hidden_state", drop=True)]
    labels = _labels_of(config)
    if kind == "tokens" and labels and recipe.model.labels is None and all(map(_is_label, labels)):
        found["model"] = recipe.model.model_copy(update={"labels": labels})
    return found


def _labels_of(config: Mapping[str, Any]) -> list[str]:
    """Return the labels of a config in the order of their numbers, [] where it has none."""
    names = config.get("id2label") or {}
    return [str(names[key]) for key in sorted(names, key=int)] if _numbered(names) else []


def _is_sequence_classifier(config: Mapping[str, Any]) -> bool:
    return _architecture(config).endswith("ForSequenceClassification")


def _architecture(config: Mapping[str, Any]) -> str:
    """Return the name of the model's class."""
    return str(next(iter(config.get("architectures") or ["none"])))


def _ends_in_sigmoid(root: Path, config: Mapping[str, Any]) -> bool:
    """Return whether a CrossEncoder of sentence-transformers says that its only score goes through a sigmoid."""
    if len(config.get("id2label") or ()) != 1 or not _is_sequence_classifier(config):
        return False
    inner = config.get("sentence_transformers")
    settings = read_json(root / _OF_SENTENCES)
    said = (
        settings.get("activation_fn") if settings.get("model_type") == "CrossEncoder" else None,
        inner.get("activation_fn") if isinstance(inner, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    )
    return str(next((each for each in said if each), "")).rpartition(".")[2] == "Sigmoid"


def _is_label(text: str) -> bool:
    return bool(text.strip()) and len(text.splitlines()) == 1


def _numbered(names: Any) -> bool:
    return isinstance(names, dict) and sorted(names) == sorted(str(each) for each in range(len(names)))
