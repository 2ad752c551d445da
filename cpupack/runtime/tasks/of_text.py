"""What results about the parts of a text are made from: its tokens, and where each of them is in the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..text.tokenizer import Tokens

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Place:
    """One token of a text that is part of it. ``start`` and ``end`` count characters; ``row`` is its output's row.

    ``word`` numbers the words of the text. ``second`` says that it is of the second text of a pair.
    """

    row: int
    start: int
    end: int
    word: int
    second: bool


def tokens_of(frame: object) -> Tokens:
    """Return the tokens that a result is about. Raises InputError where the model was given no text."""
    if not isinstance(frame, Tokens) or frame.encoding is None:
        raise InputError(
            "the result lies in a text, and the model was given its own inputs; hand in a text, or call the runner for "
            "the outputs as they are"
        )
    return frame


def places(tokens: Tokens, length: int, *, left: bool) -> list[Place]:
    """Return the tokens of a text but for those that the tokenizer puts around it, and those of a prefix.

    An output has ``length`` rows, and with ``left`` the padding is before the tokens.
    """
    encoding = tokens.encoding
    first = length - len(tokens.ids) if left else 0
    found = []
    for number, (special, (start, end), part, word) in enumerate(
        zip(encoding.special_tokens_mask, encoding.offsets, encoding.sequence_ids, encoding.word_ids, strict=True)
    ):
        shift = tokens.prefix if part == 0 else 0
        if special or part is None or end <= shift:
            continue
        found.append(Place(first + number, max(0, start - shift), end - shift, -1 if word is None else word, part == 1))
    return found


def text_at(tokens: Tokens, start: int, end: int, *, second: bool = False) -> str:
    """Return a part of the text, or of the second one of a pair."""
    assert tokens.text is not None
    return ((tokens.text.pair or "") if second else tokens.text.text)[start:end]
