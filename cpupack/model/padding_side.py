"""On which side of a text its padding goes, where only tokenizer_config.json asks for the left one.

Most models answer the same to a text with padding at its end, and then a wheel need not compute it. Models that read
the last position, as XLNet's classifiers do, need it in front.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from cpupack.errors import ModelError
from cpupack.model.one_row import OneRow
from cpupack.model.signature import fit_signature
from cpupack.progress import Progress, SilentProgress
from cpupack.recipe import LoadedRecipe
from cpupack.runtime.errors import InputError
from cpupack.runtime.signature import Signature
from cpupack.runtime.text.inputs import load_text
from cpupack.runtime.text.spec import TextInput
from cpupack.runtime.text.tokenizer import Tokenizer

_TEXTS = ("a", "the end")
_SAME = 1e-3
"""Of the largest value: what an answer may change by with padding. The programs of shorter texts may, too."""


def with_needed_side(
    text: TextInput | None, module: torch.nn.Module, signature: Signature, loaded: LoadedRecipe, progress: Progress
) -> TextInput | None:
    """Return a text input with padding on the right where the left one was only preferred and the model needs neither.

    ``module`` is the fitted model with this ``signature``.
    """
    table = loaded.recipe.tokenizer
    if text is None or not text.prefers_left or not isinstance(module, OneRow) or (table and table.fixed_length):
        return text
    right = dataclasses.replace(text.spec, side="right")
    if _changes(module, signature, loaded, dataclasses.replace(text, spec=right)):
        progress.note("[tokenizer] padding goes in front of a text, as tokenizer_config.json says")
        return dataclasses.replace(text, prefers_left=False)
    return dataclasses.replace(text, spec=right, prefers_left=False)


def _changes(module: OneRow, signature: Signature, loaded: LoadedRecipe, text: TextInput) -> bool:
    """Return whether the model's answer to a short text is another one with padding behind the text."""
    recipe, spec = loaded.recipe, text.spec
    tokenizer = Tokenizer(text.file, spec, "tokenizer.json")
    for each in _TEXTS:
        try:
            tokens = tokenizer.tokens(each)
            length = len(tokens.ids)
            if length >= spec.max_length:
                continue
            own = fit_signature(
                module.user, recipe.model.source, recipe.at_length(spec.inputs, length), SilentProgress()
            )
        except (ModelError, InputError):
            continue  # the model runs at one length alone, or the vocabulary has nothing for this text
        short = Tokenizer(text.file, dataclasses.replace(spec, max_length=length), "tokenizer.json")
        alone = _answer(own.module, own.signature, load_text(short, own.signature, tokens))
        whole = _answer(module, signature, load_text(tokenizer, signature, tokens))
        for name, expected in alone.items():
            both = tuple(slice(size) for size in expected.shape)
            apart = np.abs(whole[name][both] - expected).max(initial=0.0)
            if not apart <= _SAME * (np.abs(expected).max(initial=0.0) or 1.0):
                return True
    return False


def _answer(module: torch.nn.Module, signature: Signature, row: np.ndarray) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return signature.split(module(torch.from_numpy(row[None])).numpy())
