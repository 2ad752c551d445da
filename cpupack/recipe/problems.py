"""Turns pydantic's errors about a recipe into plain words, which come from the schema.

Nothing here uses files or lines. A Problem says where it is by its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from cpupack.recipe import Recipe
from cpupack.recipe import schema as recipe_schema
from cpupack.recipe.lines import Key
from cpupack.templates import to_toml

_VALUE_WIDTH = 60
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LONG = re.compile(r"(\S{200})\S{200,}(\S{100})")
_TYPE_ERRORS = ("_type", "literal_error")
_KINDS = {
    **dict.fromkeys(("float", "double", "half", "bfloat"), "float32"),
    **dict.fromkeys(("uint8", "byte"), "uint8"),
    **dict.fromkeys(("int", "uint", "long", "short"), "int64"),
    "bool": "bool",
}
"""How the names of other dtypes begin, and the dtype of a recipe that holds their values; the first that fits."""


@dataclass(frozen=True)
class Problem:
    """One thing to fix. ``near`` is what was probably meant. ``missing`` says that a required key is absent."""

    key: Key
    message: str
    near: str | None = None
    missing: bool = False

    def __str__(self) -> str:
        where = f"{dotted(self.key)}: " if self.key else ""
        return one_line(where + self.message + (f'; did you mean "{self.near}"?' if self.near else ""))


def one_line(text: str) -> str:
    """Return text with line breaks, control characters and those that turn its direction written as escapes.

    A value of a recipe stands in the message about it, and must not look like another message. Of a very long word the
    middle is left out.
    """
    text = _LONG.sub(lambda match: f"{match[1]}...{match[2]}", text)
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def dotted(key: Key) -> str:
    """Return a key as a reader writes it: ``fuse.modules[0][1]``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{toml_key(part)}" if text else toml_key(part)
    return text


def toml_key(part: str) -> str:
    """Return one part of a key, in quotes if TOML requires them."""
    return to_toml({part: 0})[1:].rpartition(" = ")[0]


def nearest(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the choice most similar to ``word``, ignoring case and dashes, or None if none is similar."""
    plain = {_plain(choice): choice for choice in choices}
    found = get_close_matches(_plain(word), plain, n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def schema_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Return every way in which ``data`` is not a recipe: unknown and missing keys, types, values."""
    try:
        Recipe.model_validate(data)
    except ValidationError as error:
        return [
            _problem(key, kind, value) for key, kind, value in _settle_unions(data, error.errors(include_url=False))
        ]
    return []


def _settle_unions(data: Mapping[str, Any], errors: Iterable[Any]) -> list[tuple[Key, str, Any]]:
    """Turn pydantic's locations into keys, and drop the errors of a union that do not help.

    For ``int | list[int]`` and the value ``[1, "x"]`` pydantic reports two errors: the value is not an integer, and
    its second element is not an integer. Only the second helps, because the value is a list. If the value has the
    type of no branch, one problem at the union's own key replaces all errors.
    """
    found: dict[Key, list[tuple[Key, str, Any]]] = {}
    for error in errors:
        key, union = _key_of(data, error["loc"])
        found.setdefault(union or key, []).append((key, error["type"], error["input"]))
    result = []
    for group_key, group in found.items():
        inside = [item for item in group if len(item[0]) > len(group_key) or not item[1].endswith(_TYPE_ERRORS)]
        result += inside or group[:1]
    return result


def _key_of(data: Any, loc: tuple[str | int, ...]) -> tuple[Key, Key | None]:
    """Return the key that ``loc`` means, and the key of the union it passes through, if any."""
    key: Key = ()
    union: Key | None = None
    value = data
    for part in loc:
        if isinstance(part, str) and not isinstance(value, Mapping):
            union = key  # pydantic's name of a branch, which is not a key in the data
            continue
        key = (*key, part)
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
    return key, union


def _problem(key: Key, kind: str, value: Any) -> Problem:
    if kind == "extra_forbidden":
        return unknown_key(key)
    node = recipe_schema.node_at(key) or {}
    expected = recipe_schema.expected(node)
    if kind == "missing":
        return Problem(key, f"is missing; it must be {expected}", missing=True)
    most = {option.get("maximum") for option in node.get("anyOf", [node])}
    if kind == "less_than_equal" and recipe_schema.LARGEST_COUNT in most:
        return Problem(key, f"must be below 2^31, not {_short(value)}")
    choices = [choice for choice in recipe_schema.choices(node) if isinstance(choice, str)]
    near = (_like(value, choices) or nearest(value, choices, cutoff=0.5)) if isinstance(value, str) else None
    return Problem(key, f"must be {expected}, not {_describe(value, node)}", near)


def _like(name: str, choices: Sequence[str]) -> str | None:
    """Return the dtype of a recipe that holds the values of another one, None for any other word.

    By its letters ``int32`` is as near to ``uint8`` as to ``int64``.
    """
    plain = name.lower().rpartition(".")[2]
    found = next((ours for start, ours in _KINDS.items() if plain.startswith(start)), None)
    return found if found in choices else None


def unknown_key(key: Key) -> Problem:
    """Return the problem of an unknown key, with the most similar known key."""
    name = str(key[-1])
    near = nearest(name, recipe_schema.known_keys(key[:-1]))
    if near is None:
        # The right key in the wrong table is as common a mistake as a misspelt key.
        everywhere = {known.rpartition(".")[2]: known for known in reversed(recipe_schema.all_keys())}
        near = everywhere.get(nearest(name, everywhere, cutoff=0.85) or "")
    return Problem(key, "unknown key", near)


def without_consequences(problems: list[Problem]) -> list[Problem]:
    """Drop "is missing" for a key if an unknown key in the same table is that key misspelt."""
    meant = {(*problem.key[:-1], problem.near) for problem in problems if problem.near and not problem.missing}
    return [problem for problem in problems if not (problem.missing and problem.key in meant)]


def _describe(value: Any, node: recipe_schema.Node) -> str:
    types = {option.get("type") for option in node.get("anyOf", [node])}
    match value:
        case bool():
            return to_toml(value)
        case str():
            return ("" if "string" in types else "the string ") + _short(value)
        case int() | float():
            return ("" if types & {"integer", "number"} else "the number ") + _short(value)
        case list():
            return f"a list of {len(value)}" if "array" in types else "a list"
        case Mapping():
            return "a table"
    return "a date or time"


def _short(value: str | float) -> str:
    text = to_toml(value)
    return text if len(text) <= _VALUE_WIDTH else text[: _VALUE_WIDTH - 4] + "..." + text[-1]
