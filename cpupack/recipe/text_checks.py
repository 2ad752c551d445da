"""Checks of text as input: ``[tokenizer]``, its file, and the directories of models that take text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cpupack.recipe.lines import Key
from cpupack.recipe.places import NoPlaceError, is_in_package, located
from cpupack.recipe.problems import Problem
from cpupack.recipe.view import Check, View

DIRECTORIES = ("transformers", "sentence-transformers")
"""Kinds of sources that are directories as these two libraries save models."""
_TABLE = "tokenizer"
_MARKS = {"transformers": "config.json", "sentence-transformers": "modules.json"}
"""The file that a directory of each kind has."""


def place_problem(view: View, key: Key, text: str, *, directory: bool) -> Problem | None:
    """Return what is wrong with a place that should be a file or a directory, None if nothing is."""
    try:
        path = located(text, view.path(".")) if is_in_package(text) else view.path(text)
    except NoPlaceError as error:
        return Problem(key, f"{error}; install it in cpupack's environment")
    wanted = "directory" if directory else "file"
    if path.is_dir() if directory else path.is_file():
        return None
    return Problem(key, f"{path} is no {wanted}" if path.exists() else f"{path} does not exist")


def directory_source(view: View, kind: str, place: str) -> Iterator[Problem]:
    """Yield what is wrong with the directory that ``[model] source`` names."""
    key = ("model", "source")
    if (problem := place_problem(view, key, place, directory=True)) is not None:
        yield problem
        return
    path: Path = located(place, view.path("."))
    mark = _MARKS[kind]
    if not (path / mark).is_file():
        other = "transformers" if mark == "modules.json" else None
        fits = other is not None and (path / _MARKS[other]).is_file()
        yield Problem(key, f"{path} has no {mark}, which {kind} saves", f"{other}:{place}" if fits else None)


def _tokenizer(view: View) -> Iterator[Problem]:
    if not view.given(_TABLE):
        return
    source = view(_TABLE, "source")
    kind = view("model", "source").partition(":")[0]
    if source is None and kind not in DIRECTORIES:
        yield Problem((_TABLE, "source"), "is missing; it must be the file tokenizer.json of the model", missing=True)
    elif source is not None and (found := place_problem(view, (_TABLE, "source"), source, directory=False)) is not None:
        yield found
    if view.given("model", "input_shape"):
        yield Problem((_TABLE,), "needs inputs of integers, and input_shape describes one of float32; use [[input]]")


def _shapes(view: View) -> Iterator[Problem]:
    """Check that the inputs that are made from text have one length, that of max_length."""
    if not view.given(_TABLE) or not view.given("input"):
        return
    made = ("input_ids", "attention_mask", "token_type_ids")
    tables = view("input")
    places = {each["name"]: number for number, each in enumerate(tables) if each["name"] in made}
    if "input_ids" not in places and len(tables) == 1 and tables[0].get("dtype") == "int64":
        places = {tables[0]["name"]: 0}
    if not places or ("input_ids" not in places and len(tables) > 1):
        yield Problem((_TABLE,), 'makes inputs from text, and no [[input]] has the name "input_ids"')
        return
    length = view(_TABLE, "max_length")
    for name, number in places.items():
        shape = tables[number]["shape"]
        length = length or (shape[0] if len(shape) == 1 else None)
        if len(shape) != 1 or shape[0] != length:
            wanted = f"[{length}], as long as the other inputs of text and max_length" if length else "[max_length]"
            yield Problem(("input", number, "shape"), f'of "{name}" must be {wanted}, not {shape}')
        if tables[number].get("dtype", "float32") not in {"int64", "bool"}:
            yield Problem(("input", number, "dtype"), f'of "{name}" must be int64 (or bool for a mask)', "int64")
    for number, table in enumerate(tables):
        if number not in places.values() and "default" not in table:
            yield Problem(("input", number), f'"{table["name"]}" is not made from text; give it a default')


CHECKS: tuple[Check, ...] = (_tokenizer, _shapes)
