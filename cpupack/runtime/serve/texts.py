"""Requests of text: JSON with ``text`` or ``texts``, and tensors of BYTES named ``text`` and ``text_pair``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..text.spec import TEXT, TEXT_PAIR
from ..text.texts import Text, text_of
from .multipart import Part
from .protocol import InputTensor

TEXTS = "texts"
"""The key of several texts in JSON: strings, or objects with ``text`` and ``text_pair``."""


class TextSample:
    """One text of a request. ``tokens`` are there once an instance has made them."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.tokens: Any = None
        self.size_bytes = text.size_bytes

    def facts(self) -> dict[str, Any]:
        """Return what the answer says of the text beside its result: its tokens, and whether it is cut off."""
        return {} if self.tokens is None else dict(self.tokens.facts())


def wanted_text() -> str:
    """Return which JSON is taken, in words."""
    return f'JSON {{"{TEXT}": "..."}}, {{"{TEXT}": "...", "{TEXT_PAIR}": "..."}} or {{"{TEXTS}": ["...", ...]}}'


def is_text_json(value: Any) -> bool:
    """Return whether JSON is a request of text, and not of the model's own inputs."""
    return isinstance(value, dict) and bool({TEXT, TEXTS, TEXT_PAIR} & set(value))


def texts_of_json(value: Mapping[str, Any]) -> list[TextSample]:
    """Return the texts of a request in JSON. Raises InputError."""
    if TEXTS not in value:
        return [TextSample(_text(value, "the text"))]
    items = value[TEXTS]
    if len(value) > 1 or not isinstance(items, list) or not items:
        raise InputError(f'"{TEXTS}" must be alone, and a list with at least one text; send {wanted_text()}')
    return [TextSample(_text(item, f"text {number}")) for number, item in enumerate(items)]


def texts_of_form(parts: Sequence[Part]) -> list[TextSample]:
    """Return the text whose fields are those of a form. Raises InputError."""
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise InputError(f"the field {max(names, key=names.count)!r} is there twice; send several texts as JSON")
    return [TextSample(_text({part.name: bytes(part.content) for part in parts}, "the text"))]


def _text(item: Any, what: str) -> Text:
    if isinstance(item, list):
        if len(item) != 2:
            raise InputError(f"{what} is a list of {len(item)}; a pair has two texts")
        item = tuple(item)
    return text_of(item, what)


def texts_of_tensors(tensors: Sequence[InputTensor], known: str) -> list[TextSample]:
    """Return the texts of tensors named ``text`` and ``text_pair``, BYTES ``[n]`` or ``[n, 1]``.

    Raises InputError, which says for another name the ``known`` inputs of the model.
    """
    found: dict[str, list[Any]] = {}
    for tensor in tensors:
        if tensor.name not in {TEXT, TEXT_PAIR}:
            raise InputError(f"got the input {tensor.name[:40]!r}; this model has {known}")
        if tensor.name in found:
            raise InputError(f"the input {tensor.name!r} is there twice")
        shape = tensor.shape
        if not isinstance(tensor.data, list) or not shape or shape != (shape[0],) + (1,) * (len(shape) - 1):
            raise InputError(f"input {tensor.name!r}: {tensor.datatype} of shape {list(shape)}; expected BYTES [n]")
        if not shape[0]:
            raise InputError(f"input {tensor.name!r}: the batch is empty; expected at least one text")
        found[tensor.name] = list(tensor.data)
    if TEXT not in found:
        raise InputError(f"the input {TEXT!r} is missing")
    firsts, seconds = found[TEXT], found.get(TEXT_PAIR)
    if seconds is not None and len(seconds) != len(firsts):
        raise InputError(f"{TEXT} has {len(firsts)} texts and {TEXT_PAIR} {len(seconds)}")
    pairs = [(each, None) for each in firsts] if seconds is None else zip(firsts, seconds, strict=True)
    return [
        TextSample(text_of({TEXT: first, TEXT_PAIR: second}, f"text {number}"))
        for number, (first, second) in enumerate(pairs)
    ]
