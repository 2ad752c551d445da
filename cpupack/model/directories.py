"""Builds modules from directories that the libraries transformers and sentence-transformers have saved.

Code in such a directory is never run, and nothing is downloaded. Weights are safetensors, or torch files that are read
as plain data.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.encoder_decoders import in_one_pass
from cpupack.model.user_code import describe_failure
from cpupack.model.vision import repair_torchvision_imports
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.json_objects import read_json
from cpupack.recipe.places import located

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files that hold the weights, best first."""
_COUNTS = re.compile(r"(_layers?|^depths?|_blocks?|_experts)$")
"""Names of settings that count what a library makes one by one."""
_MOST_LAYERS = 10_000
_OF_PAGES = "max_2d_position_embeddings"
"""The setting that models of laid out documents have: LayoutLM, LiLT and their like."""
_POOLED = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout")
"""Modules of sentence-transformers that are part of the graph: each maps tensors to tensors."""


class SentenceEncoder(nn.Module):
    """The modules of a sentence-transformers directory in a row: ids and mask in, embeddings out.

    ``input_ids`` and ``attention_mask`` are int64 ``(n, tokens)``; the result is float32 ``(n, dimensions)``. Poolings
    that leave the prompt out do not see the first ``prompt_tokens``. ``dimensions`` are the first ones that are kept,
    None for all.
    """

    def __init__(self, modules: list[nn.Module], prompt_tokens: int = 0, dimensions: int | None = None) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.steps = nn.Sequential(*modules)
        self.prompt_tokens = prompt_tokens

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return one embedding for each text."""
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        for step in self.steps:
            features["attention_mask"] = self._mask_of(step, attention_mask)
            features = step(features)
        found: torch.Tensor = features["sentence_embedding"]
        return found[:, : self.dimensions]

    def _mask_of(self, step: nn.Module, mask: torch.Tensor) -> torch.Tensor:
        if not self.prompt_tokens or not _leaves_prompt_out(step):
            return mask
        return mask * (torch.arange(mask.shape[1]) >= self.prompt_tokens).to(mask.dtype)


def directory_of(loaded: LoadedRecipe) -> Path:
    """Return the directory that ``[model] source`` names."""
    return located(loaded.recipe.model.source.partition(":")[2], loaded.path.parent)


def weights_of(directory: Path) -> Path | None:
    """Return the file with the weights of a directory, None where there is none."""
    return next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)


def transformers_module(loaded: LoadedRecipe, progress: Progress) -> nn.Module:
    """Return the model of a ``transformers:`` directory, of the class that its config.json names.

    Its weights are those of the directory, unless the recipe has random ones or falls back to them. Raises ModelError.
    """
    spec, directory = loaded.recipe.model, directory_of(loaded)
    library = library_of("transformers")
    config = read_json(directory / "config.json", required=True)
    _check_layers(config, spec.source)
    kind = _class(library, config, spec.source)
    if config.get(_OF_PAGES) and all(each.name != "bbox" for each in loaded.recipe.input):
        progress.warn(
            f"{spec.source} was trained with the place of each word on its page (bbox), which a text does not say: the "
            "wheel's model takes all words to be in one place"
        )
    random = spec.weights == "random" or (weights_of(directory) is None and spec.weights_fallback == "random")
    if not random and weights_of(directory) is None:
        raise ModelError(
            f"[model] weights: {directory} has none of {', '.join(WEIGHTS)}",
            hint='put the weights there, or accept untrained ones with weights_fallback = "random"',
        )
    settings: dict[str, Any] = {"attn_implementation": "eager", **spec.kwargs}
    with quiet(), _explained(f"[model] {spec.source}"):
        if random:
            read = library.AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
            for name, value in settings.items():
                setattr(read, "_attn_implementation" if name == "attn_implementation" else name, value)
            module: nn.Module = kind(read)
            return in_one_pass(_without_cache(module.float(), spec.kwargs))
        module, found = kind.from_pretrained(
            str(directory),
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            **settings,
        )
    _check_loaded(found, directory, progress)
    return in_one_pass(_without_cache(module, spec.kwargs))


def _without_cache(module: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
    """Have a language model return nothing for the tokens that it would make or read next, unless it is asked to."""
    config: Any = getattr(module, "config", None)
    for name in ("use_cache", "use_mems_eval"):  # keys and values; XLNet's memories, which have the batch second
        if name not in kwargs and getattr(config, name, None):
            setattr(config, name, False)
    return module


def _class(library: Any, config: dict[str, Any], source: str) -> Any:
    """Return the class of a model by its name in ``architectures``. Raises ModelError where the library has none."""
    names = config.get("architectures") or []
    kind = getattr(library, str(names[0]), None) if names else None
    if config.get("is_encoder_decoder") and _makes_text(kind, str(names[0]) if names else "Model"):
        raise ModelError(
            f"[model] {source} is an encoder with a decoder, which makes its text token by token",
            hint="save its encoder alone, or wrap it: python:FILE.py:factory",
        )
    if kind is None and not names and config.get("model_type"):
        kind = getattr(library, "AutoModel", None)
    if not (isinstance(kind, type) or kind is getattr(library, "AutoModel", 0)):
        own = "; its own code (auto_map) is never run" if config.get("auto_map") else ""
        raise ModelError(
            f"[model] {source}: transformers {library.__version__} has no {names[0] if names else 'model_type'}{own}",
            hint="install a version that has it, or build the model in a factory of yours: python:FILE.py:factory",
        )
    return kind


def _makes_text(kind: Any, name: str) -> bool:
    """Return whether a class with an encoder and a decoder makes text, or is such a model without a head.

    Classifiers, detectors and encoders alone have both in their config, too.
    """
    generates = getattr(kind, "can_generate", None)
    headless = name.endswith("Model") and not name.endswith("EncoderModel")
    return headless or (generates is not None and bool(generates()))


def _check_loaded(found: Any, directory: Path, progress: Progress) -> None:
    """Raise ModelError for weights that the directory does not have: the library would make them up."""
    missing = sorted(found.get("missing_keys") or ())
    if missing or found.get("mismatched_keys"):
        names = missing or [str(each) for each in found["mismatched_keys"]]
        listed = ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        pooler = all("pooler" in str(each) for each in names)
        raise ModelError(
            f"[model] weights: {directory} has no fitting weights for {listed}; they would be random",
            hint="leave the pooler out with [model] kwargs = { add_pooling_layer = false }"
            if pooler
            else 'take the class that the weights were saved from ("architectures" in config.json)',
        )
    unused = sorted(map(str, found.get("unexpected_keys") or ()))
    if unused:
        progress.note(f"weights that the model has no place for are left out: {', '.join(unused[:3])}")


def sentence_module(loaded: LoadedRecipe, progress: Progress) -> nn.Module:
    """Return the modules of a ``sentence-transformers:`` directory as one, with their weights. Raises ModelError."""
    spec, directory = loaded.recipe.model, directory_of(loaded)
    _check_steps(directory, spec.source)
    dimensions = _check_settings(directory, spec.source, progress)
    for path in sorted(directory.rglob("config.json")):
        _check_layers(read_json(path, required=True), spec.source)
    library = library_of("sentence_transformers", "sentence-transformers")
    if spec.kwargs:
        raise ModelError(f"[model] kwargs: {spec.source} takes no arguments")
    with quiet(), _explained(f"[model] {spec.source}"):
        model = library.SentenceTransformer(
            str(directory),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"attn_implementation": "eager", "dtype": torch.float32},
        )
        modules = list(model.children())
        table = loaded.recipe.tokenizer
        prompt = table.prefix if table is not None else ""
        hides = bool(prompt) and any(map(_leaves_prompt_out, modules))
        return SentenceEncoder(modules, _tokens_of(prompt, model.tokenizer) if hides else 0, dimensions)


def _leaves_prompt_out(step: nn.Module) -> bool:
    """Whether a module is a pooling over the tokens after the prompt alone, as Instructor models have it."""
    return getattr(step, "include_prompt", True) is False


def _tokens_of(prompt: str, tokenizer: Any) -> int:
    """Return how many tokens a text begins with that begins with a prompt, as the library counts them."""
    found: list[int] = tokenizer(prompt)["input_ids"]
    ends = bool(found) and found[-1] in tokenizer.all_special_ids
    return len(found) - ends


def _check_layers(config: Any, source: str) -> None:
    """Raise ModelError for a number of layers that no model has: its library would make them until memory ends."""
    for key, value in config.items() if isinstance(config, dict) else ():
        _check_layers(value, source)
        if type(value) is int and _COUNTS.search(key) and value > _MOST_LAYERS:
            raise ModelError(
                f"[model] {source}: {key} in config.json is more than {_MOST_LAYERS:,}",
                hint="the file is damaged: get the directory again",
            )


def _check_steps(directory: Path, source: str) -> None:
    """Raise ModelError for a module of the directory that is code of its own, or reads something else than text."""
    steps = _steps(directory, source)
    names = [str(each.get("type", "")) for each in steps if isinstance(each, dict)]
    for name in names:
        if not name.startswith("sentence_transformers.") or name.rpartition(".")[2] not in _POOLED:
            raise ModelError(
                f"[model] {source}: modules.json has {name or 'a module without a type'}; cpupack takes "
                f"{', '.join(_POOLED)} of sentence_transformers",
                hint="code in the directory is never run; build such a model in a factory: python:FILE.py:factory",
            )
    if not names or not names[0].endswith(".Transformer"):
        raise ModelError(f"[model] {source}: the first module of modules.json is no Transformer")


def _check_settings(directory: Path, source: str, progress: Progress) -> int | None:
    """Return how many dimensions of an embedding the directory keeps, None for all.

    Raises ModelError for a directory of another kind of model, from which the library would make an encoder anew.
    """
    settings = read_json(directory / "config_sentence_transformers.json")
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ModelError(
            f"[model] {source} holds a {kind}, whose results are no embeddings",
            hint=f'take the model as it is: source = "transformers:{source.partition(":")[2]}"',
        )
    prompts = settings.get("prompts")
    named = {key: text for key, text in prompts.items() if text} if isinstance(prompts, dict) else {}
    if named and not settings.get("default_prompt_name"):
        progress.note(
            f"{source} has the prompts {', '.join(map(str, named))}, and none is the default: the wheel puts none "
            "before a text unless [tokenizer] prefix says so"
        )
    kept = settings.get("truncate_dim")
    if kept is None:
        return None
    if not isinstance(kept, int) or isinstance(kept, bool) or kept < 1:
        raise ModelError(f"[model] {source}: truncate_dim in config_sentence_transformers.json is {kept!r}, no number")
    return kept


def _steps(directory: Path, source: str) -> list[Any]:
    import json

    try:
        found = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"[model] {source}: cannot read {directory / 'modules.json'}: {error}") from error
    return found if isinstance(found, list) else []


def library_of(name: str, extra: str | None = None) -> Any:
    """Return a library that such a directory needs. Raises ModelError where it is not installed."""
    repair_torchvision_imports()  # transformers looks for torchvision
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{extra or name} is not installed, and the recipe needs it",
            hint=f'pip install "cpupack[{extra or name}]"',
        ) from error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn any failure of the library into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{what} failed: {describe_failure(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's bars and advice out of a build's output."""
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    bars = importlib.import_module("transformers.utils.logging")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
