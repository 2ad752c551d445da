"""Texts as callers hand them in: strings, bytes in UTF-8, pairs, mappings; and files of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from .spec import TEXT, TEXT_PAIR

MOST_CHARACTERS = 1_000_000
"""Of one text. Making tokens of more takes seconds, of which a model reads the first few hundred."""
JSON_LINES = (".jsonl", ".ndjson")
"""Endings of files with one JSON value a line."""
_SHOWN = 40
_ANSWERS = ("label", "target", "id")


@dataclass(frozen=True)
class Text:
    """One text, or a pair of texts that the model reads together."""

    text: str
    pair: str | None = None

    @property
    def size_bytes(self) -> int:
        """About what it holds."""
        return len(self.text) + len(self.pair or "")


def is_text(item: Any) -> bool:
    """Return whether an input is meant as text: a string, a pair of strings, a mapping with ``text``, or ``Text``."""
    if isinstance(item, str | Text):
        return True
    if isinstance(item, tuple):
        return len(item) == 2 and any(isinstance(each, str) for each in item)
    return isinstance(item, Mapping) and (TEXT in item or TEXT_PAIR in item)


def text_of(item: Any, what: str = "the text") -> Text:
    """Return an input as text. Raises InputError, which names it by ``what``, for anything that is none."""
    if isinstance(item, Text):
        return item
    if isinstance(item, Mapping):
        if unknown := [key for key in item if key not in {TEXT, TEXT_PAIR}]:
            raise InputError(f'{what} has "{str(unknown[0])[:_SHOWN]}"; a text has "{TEXT}" and maybe "{TEXT_PAIR}"')
        if TEXT not in item:
            raise InputError(f'{what} has "{TEXT_PAIR}" and no "{TEXT}"')
        pair = item.get(TEXT_PAIR)
        return Text(_string(item[TEXT], what), None if pair is None else _string(pair, f"the second text of {what}"))
    if isinstance(item, tuple) and len(item) == 2:
        return Text(_string(item[0], what), _string(item[1], f"the second text of {what}"))
    return Text(_string(item, what))


def _string(value: Any, what: str) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        value = decoded(bytes(value), what)
    if not isinstance(value, str):
        raise InputError(f"{what} is {type(value).__name__}; expected a string, or a pair of strings as a tuple")
    if len(value) > MOST_CHARACTERS:
        raise InputError(
            f"{what} has {len(value):,} characters, more than {MOST_CHARACTERS:,}: the model reads its first tokens "
            "alone; cut it into passages and pass these as a list"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} has half of a character (the surrogate U+{ord(value[error.start]):04X}) at position "
            f"{error.start}: it was decoded wrongly"
        ) from None
    return str(value)


def decoded(data: bytes, what: str) -> str:
    """Return bytes in UTF-8 as a string. Raises InputError that says which byte is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; convert it, for example with iconv"
        ) from None


def read_lines(path: Path, *, blank: bool = False) -> list[tuple[str, Any]]:
    """Return what a file of texts holds, each entry with its place ``FILE:LINE``.

    It is the line, or in files of JSON lines the value: a string, or an object with ``text`` and other fields. Lines
    without a text are left out, but with ``blank`` those of plain text are texts too: then line n is result n. Raises
    InputError that names file and line.
    """
    try:
        with path.open("rb") as file:
            return list(entries(file, str(path), as_json=path.suffix.lower() in JSON_LINES, blank=blank))
    except OSError as error:
        raise InputError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error


def entries(file: BinaryIO, name: str, *, as_json: bool, blank: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the entries of an open file, as ``read_lines`` does."""
    for number, raw in enumerate(file, 1):
        where = f"{name}:{number}"
        line = decoded(raw, where).rstrip("\r\n")
        if number == 1:
            line = line.removeprefix("\ufeff")  # editors on Windows write it
        if not line.strip() and (as_json or not blank):
            continue
        yield where, _json(line, where) if as_json else line


def without_answers(item: Any) -> Any:
    """Return an entry of a file without the fields that files for evaluation have beside the texts."""
    if not isinstance(item, dict):
        return item
    return {key: value for key, value in item.items() if key not in _ANSWERS}


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
