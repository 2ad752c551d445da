"""Text as rows of a model's inputs, for the runner: which items are text, and the row of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..rows import pack
from ..signature import Floats, Signature
from .texts import is_text
from .tokenizer import Tokenizer, Tokens


def texts_of(tokenizer: Tokenizer, items: Sequence[Any], *, named: bool) -> list[Any]:
    """Return items with the ``Tokens`` of each text in its place; others, such as arrays by name, as they are.

    ``named`` says which text is meant in an error. Raises InputError for what is neither.
    """
    found = []
    for number, item in enumerate(items):
        what = f"text {number}" if named else "the text"
        if is_text(item) or isinstance(item, bytes | bytearray | memoryview | int | float | None) or _is_mixed(item):
            found.append(tokenizer.tokens(item, what))
        else:
            found.append(item)
    return found


def _is_mixed(item: Any) -> bool:
    """Return whether an item is a list or tuple that is no array: a pair with something else than strings in it."""
    return isinstance(item, list | tuple) and any(isinstance(each, str | bytes | None) for each in item)


def text_rows(batch: Any) -> bool:
    """Return whether the only argument of a call is text or a list in which some item is."""
    return is_text(batch) or (isinstance(batch, list) and any(is_text(each) for each in batch))


def load_text(tokenizer: Tokenizer, signature: Signature, item: Any) -> Floats:
    """Return the row ``(values,)`` of one text, a pair or ``Tokens``.

    Raises InputError for no text, and where the model needs an input that a text does not give.
    """
    tokens = item if isinstance(item, Tokens) else tokenizer.tokens(item)
    if len(tokens.ids) > tokenizer.sizes.largest:
        raise InputError(f"{len(tokens.ids)} tokens; the model reads {tokenizer.sizes.largest}")
    made = tokenizer.arrays([tokens])
    if not signature.takes_rows:
        (only,) = made.values()
        return np.asarray(only[0], np.float32)
    return np.asarray(pack(signature, made)[0])
