"""Inputs that are texts: the lines of text files, or the objects of JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..names import files_below, printable
from ..text.texts import JSON_LINES, decoded, without_answers
from .shards import Id, Item, Listing, Shard

SUFFIXES = (".txt", *JSON_LINES)


@dataclass(frozen=True)
class Fields:
    """Which field of JSON lines holds the text (None: ``text``, and ``text_pair``), and which the id (None: ``id``)."""

    text: str | None = None
    id: str | None = None


def text_files(source: Path) -> list[Path]:
    """Return the files of texts that a path names: itself, or those below it, in the order of their paths.

    Raises InputError for a directory that cannot be read.
    """
    if source.is_file():
        return [source] if source.suffix.lower() in SUFFIXES else []
    found = (path for path in files_below(source) if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(each[0] in "._" for each in path.relative_to(source).parts))


def list_lines(source: Path, files: Sequence[Path], fields: Fields, rows_per_file: int) -> Listing:
    """Return the lines of files in shards, without blank ones. Raises InputError for a file that cannot be read."""
    digest, shards, count = hashlib.sha256(repr(fields).encode()), list[Shard](), 0
    for path in files:
        name = path.name if path == source else path.relative_to(source).as_posix()
        begin = first = rows = at = number = 0
        try:
            with path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    if raw.strip():
                        if rows == rows_per_file:
                            shards.append(Shard(len(shards), (name,), rows, (), first, begin))
                            begin, first, rows = at, number - 1, 0
                        rows += 1
                        count += 1
                    at += len(raw)
        except OSError as error:
            raise InputError(f"--from {path}: {error.strerror or error}") from error
        if rows:
            shards.append(Shard(len(shards), (name,), rows, (), first, begin))
        digest.update(f"{printable(name)} {at} {number}\n".encode())
    if not count:
        raise InputError(f"--from {source}: its files hold no text")
    return Listing(tuple(shards), count, digest.hexdigest())


def items_of(source: Path, shard: Shard, fields: Fields) -> Iterator[Item]:
    """Yield the texts of a shard. Raises InputError when the file cannot be read."""
    (name,) = shard.names
    path, left = source if source.is_file() else source / name, shard.rows
    as_json = path.suffix.lower() in JSON_LINES
    try:
        with path.open("rb") as file:
            file.seek(shard.first_byte)
            for number, raw in enumerate(file, shard.first_row + 1):
                if not left:
                    return
                if raw.strip():
                    left -= 1
                    yield _item(raw, f"{printable(name)}:{number}", fields, first=number == 1, as_json=as_json)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _item(raw: bytes, place: str, fields: Fields, *, first: bool, as_json: bool) -> Item:
    """Return one line. What is wrong with it is told when it is read, so that it becomes a row with an error."""
    try:
        line = decoded(raw, place).rstrip("\r\n")
        line = line.removeprefix("\ufeff") if first else line  # editors on Windows write it
        value = json.loads(line) if as_json else line
    except InputError as error:
        return Item(place, _Failing(str(error)))
    except (ValueError, RecursionError) as error:
        return Item(place, _Failing(f"{place} is not JSON: {error}"))
    if not isinstance(value, dict):
        return Item(place, _Value(value))
    own: Id = place
    found = value.get(fields.id or "id")
    if isinstance(found, str | int) and not isinstance(found, bool):
        own = str(found)
    elif fields.id is not None:
        return Item(place, _Failing(f'{place} has no "{fields.id}" that is an id: a string or a whole number'))
    if fields.text is None:
        return Item(own, _Value(without_answers(value)))
    if fields.text not in value:
        return Item(own, _Failing(f'{place} has no "{fields.text}"'))
    return Item(own, _Value(value[fields.text]))


@dataclass(frozen=True)
class _Value:
    value: Any

    def __call__(self) -> Any:
        return self.value


@dataclass(frozen=True)
class _Failing:
    reason: str

    def __call__(self) -> Any:
        raise InputError(self.reason)
