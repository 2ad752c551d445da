"""Which argument of a user's ``forward`` each input is: one of its own, or an entry of a tuple or a dict."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from cpupack.errors import RecipeError
from cpupack.runtime.tensor_spec import TensorSpec

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_IN_ORDER = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ENTRY = re.compile(r"(.+?)((?:_\d+)*)((?:\.\w+)*)")
"""The name of an argument, then entries of tuples (``_0_1``), then keys of dicts (``.image``)."""


@dataclass(frozen=True)
class Entry:
    """An input that is inside the argument ``name``: ``keys`` lead to it, numbers in tuples and texts in dicts."""

    name: str
    keys: tuple[int | str, ...]


Argument = str | Entry | None
"""The argument that an input is passed as, None for one that is passed in order."""


def argument_names(module: nn.Module, inputs: Sequence[TensorSpec], source: str) -> list[Argument]:
    """Return for each input the argument of ``forward`` that it is passed as.

    A single input may have any name. Raises RecipeError for a name that ``forward`` does not have, and for an argument
    that it needs and no input has.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # written in C, or by a decorator that hides it
        return [None] * len(inputs)
    names = [each.name for each in inputs]
    by_name = {each.name for each in parameters if each.kind in _NAMED}
    entries = {name: found for name in names if (found := _entry(name, by_name)) is not None}
    if len(names) == 1 and names[0] not in by_name and not entries and _is_only_one(parameters):
        return [None]
    rest = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    any_number = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    ordered = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_ONLY]
    if not by_name and (any_number or (ordered and names[: len(ordered)] == ordered)):
        return [None] * len(inputs)
    takes = ", ".join(each.name for each in parameters if each.kind in {*_NAMED, *_IN_ORDER}) or "no named argument"
    for name in names:
        if name not in by_name and name not in entries and not rest:
            near = get_close_matches(name, by_name, n=1)
            meant = f'; did you mean "{near[0]}"?' if near else ""
            raise RecipeError(
                f'[[input]] name = "{name}": the forward of {source} takes {takes}{meant}',
                hint="the name of an input is that of the argument of forward; entries of a tuple are NAME_0, NAME_1, "
                "those of a dict NAME.KEY",
            )
    given = {*names, *(each.name for each in entries.values())}
    for each in parameters:
        if each.kind in {*_NAMED, *_IN_ORDER} and each.default is inspect.Parameter.empty and each.name not in given:
            raise RecipeError(
                f'[[input]]: the forward of {source} needs "{each.name}", and no input has that name',
                hint=f'add an [[input]] table with name = "{each.name}"; forward takes {takes}',
            )
    arguments: list[Argument] = [entries.get(name, name) for name in names]
    _check_whole(arguments, source)
    return arguments


def with_arguments(names: Sequence[Argument], tensors: Sequence[torch.Tensor]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of ``forward`` in order and by name. There may be more tensors than names."""
    ordered, named, inside = [], {}, dict[str, dict[tuple[int | str, ...], torch.Tensor]]()
    for name, each in zip(names, tensors, strict=False):
        if name is None:
            ordered.append(each)
        elif isinstance(name, Entry):
            inside.setdefault(name.name, {})[name.keys] = each
        else:
            named[name] = each
    return ordered, named | {name: _container(entries) for name, entries in inside.items()}


def _container(entries: Mapping[tuple[int | str, ...], torch.Tensor]) -> Any:
    """Return tensors by their keys as tuples and dicts inside each other."""
    if () in entries:
        return entries[()]
    groups: dict[int | str, dict[tuple[int | str, ...], torch.Tensor]] = {}
    for (first, *rest), each in entries.items():
        groups.setdefault(first, {})[tuple(rest)] = each
    whole = {key: _container(group) for key, group in groups.items()}
    if all(isinstance(key, str) for key in whole):
        return whole
    return tuple(whole[number] for number in range(len(whole)))


def _entry(name: str, arguments: set[str]) -> Entry | None:
    """Return what a name says of an entry of an argument, None where it is no such name."""
    match = _ENTRY.fullmatch(name)
    if name in arguments or match is None or match[1] not in arguments:
        return None
    keys = [*map(int, match[2].split("_")[1:]), *match[3].split(".")[1:]]
    return Entry(match[1], tuple(keys))


def _check_whole(found: Sequence[Argument], source: str) -> None:
    """Raise RecipeError for a tuple without one of its entries, and for an entry that is also a tuple or a dict."""
    entries = {(each.name, *each.keys) for each in found if isinstance(each, Entry)}
    entries |= {(each,) for each in found if isinstance(each, str)}
    groups: dict[tuple[int | str, ...], set[int | str]] = {}
    for path in entries:
        for size in range(1, len(path)):
            groups.setdefault(path[:size], set()).add(path[size])
    for path, keys in groups.items():
        name = _written(path)
        numbers = sorted(each for each in keys if isinstance(each, int))
        if path in entries or (numbers and len(numbers) < len(keys)):
            raise RecipeError(f'[[input]]: "{name}" of {source} cannot be an input and have entries that are inputs')
        if numbers and numbers != list(range(len(numbers))):
            missing = next(each for each in range(len(numbers)) if each not in numbers)
            raise RecipeError(
                f'[[input]]: "{name}" of {source} is a tuple with the entry {name}_{numbers[-1]}, and no input is '
                f"{name}_{missing}",
                hint=f'add an [[input]] table with name = "{name}_{missing}"',
            )


def _written(path: Sequence[int | str]) -> str:
    first, *keys = path
    return f"{first}{''.join(f'_{each}' if isinstance(each, int) else f'.{each}' for each in keys)}"


def _is_only_one(parameters: list[inspect.Parameter]) -> bool:
    """Whether a function can be called with one argument by position, whatever its name is."""
    first = parameters[0] if parameters else None
    others = parameters[1:]
    return (
        first is not None
        and first.kind in {*_IN_ORDER, inspect.Parameter.VAR_POSITIONAL}
        and not any(
            each.default is inspect.Parameter.empty
            for each in others
            if each.kind not in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        )
    )
