"""``text:FILE``: one text a line, or JSON lines with ``text``, ``text_pair`` and ``label``; and texts of factories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.recipe.places import NoPlaceError, located
from cpupack.runtime.errors import InputError
from cpupack.runtime.text.inputs import load_text
from cpupack.runtime.text.spec import TEXT, TEXT_PAIR
from cpupack.runtime.text.texts import is_text, read_lines
from cpupack.runtime.text.tokenizer import Tokenizer
from cpupack.sources.answers import class_labels, metric_targets
from cpupack.sources.named import signature_of
from cpupack.sources.request import Floats, Request

LABELS = ("label", "target")
"""Fields of a JSON line that say what the right answer is."""
_OBJECT = '{"text": "...", "text_pair": "...", "label": 0}; the last two may be left out'


def read(file: str, request: Request) -> Samples:
    """Return texts drawn with the seed, in the order of the file, as rows of the model's inputs.

    Raises CalibrationError that names file and line.
    """
    try:
        path = located(file, request.loaded.path.parent)
        found = read_lines(path)
    except (NoPlaceError, InputError) as error:
        raise CalibrationError(f"{request.spec}: {error}", hint="paths are relative to the recipe") from error
    if not found:
        raise CalibrationError(f"{request.spec}: {path} holds no text")
    entries = [_entry(value, where, request) for where, value in found]
    rows = request.choose(len(entries))
    names = [found[row][0] for row in rows]
    return samples_of_texts([entries[row] for row in rows], names, request, _OBJECT)


def samples_of_texts(entries: Sequence[tuple[Any, Any]], names: Sequence[str], request: Request, hint: str) -> Samples:
    """Return texts or pairs, each with its label or target (None without), as rows of the model's inputs.

    Raises CalibrationError that names the text; ``hint`` says how a label or target is given.
    """
    answers = [answer for _, answer in entries]
    return Samples(
        _rows([item for item, _ in entries], names, request),
        request.spec,
        tuple(names),
        labels=class_labels(answers, names, request, hint),
        targets=metric_targets(answers, names, request, hint),
    )


def _rows(items: Sequence[Any], names: Sequence[str], request: Request) -> Floats:
    """Return a row of the model's inputs for each text. Raises CalibrationError that names the text."""
    if request.tokenizer is None:
        raise CalibrationError(f"{request.spec}: {names[0]} is text, and the recipe has no [tokenizer]")
    tokenizer = Tokenizer(request.tokenizer.file, request.tokenizer.spec, "tokenizer.json")
    request.check_memory(len(items))
    signature, rows, cut = signature_of(request), [], 0
    for item, name in zip(items, names, strict=True):
        try:
            tokens = tokenizer.tokens(item, name)
            rows.append(load_text(tokenizer, signature, tokens))
        except InputError as error:
            raise CalibrationError(f"{request.spec}: {error}") from error
        cut += tokens.truncated
    if cut:
        request.progress.note(
            f"{request.spec}: {cut} of {len(items)} texts are cut to {tokenizer.spec.max_length} tokens"
        )
    return np.stack(rows)


def is_text_item(item: Any) -> bool:
    """Return whether what a factory yields is text: a string, a mapping with ``text``, or one of these with a label."""
    if isinstance(item, Mapping):
        return TEXT in item
    return isinstance(item, str) or (isinstance(item, tuple | list) and len(item) == 2 and is_text(item[0]))


def text_item(item: Any, name: str, request: Request) -> tuple[Any, Any]:
    """Return the text of a factory's item and its label or target, None without one."""
    if isinstance(item, tuple | list):
        return item[0], item[1]
    return _entry(item, name, request)


def _entry(value: Any, where: str, request: Request) -> tuple[Any, Any]:
    """Return the text or pair of an entry, and its label or target."""
    if isinstance(value, str):
        return value, None
    if not isinstance(value, Mapping) or TEXT not in value:
        raise CalibrationError(
            f'{request.spec}: {where} is no string, and no object with "{TEXT}"',
            hint=_OBJECT,
        )
    if beside := [each.name for each in request.inputs if each.name in value and each.name not in {TEXT, TEXT_PAIR}]:
        raise CalibrationError(
            f'{request.spec}: {where} has "{beside[0]}" beside its "{TEXT}": of a text the other inputs have their '
            "defaults",
            hint="give all inputs by name, and the ids of the tokens in place of the text",
        )
    texts = {key: value[key] for key in (TEXT, TEXT_PAIR) if value.get(key) is not None}
    return texts, next((value[key] for key in LABELS if value.get(key) is not None), None)
