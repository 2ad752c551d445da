"""Which argument of a user's ``forward`` each input is: one of its own, or an entry of a container."""

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
from cpupack.model.containers import container, types_of
from cpupack.runtime.tensor_spec import TensorSpec

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_IN_ORDER = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ENTRY = re.compile(r"(.+?)((?:_\d+)*)((?:\.\w+)*)")
"""The name of an argument, then entries of tuples (``_0_1``), then keys of dicts and entries in them (``.image.0``)."""
_HOW = (
    "the name of an input is that of the argument of forward; entries of a tuple are NAME_0, NAME_1, those of a dict "
    "or a dataclass NAME.KEY, of a tuple in a dict NAME.KEY.0"
)


@dataclass(frozen=True)
class Entry:
    """An input that is inside the argument ``name``: ``keys`` lead to it, numbers in tuples and texts in dicts.

    ``kind`` is the annotation of the argument, which says what else than a tuple or a dict it is.
    """

    name: str
    keys: tuple[int | str, ...]
    kind: Any = None


@dataclass(frozen=True)
class Place:
    """An input that is passed by position."""

    number: int


Argument = str | Entry | Place | None
"""The argument that an input is passed as, None for one that is passed in the order of the recipe."""


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
    own = {each.name for each in parameters if each.kind in {*_NAMED, *_IN_ORDER}}
    rest = next((each.name for each in parameters if each.kind is inspect.Parameter.VAR_POSITIONAL), None)
    kinds = types_of(module.forward)
    entries = {name: found for name in names if (found := _entry(name, {*own, *([rest] if rest else [])}, kinds))}
    if len(names) == 1 and names[0] not in own and not entries and _is_only_one(parameters):
        return [None]
    if not own and rest and not entries:
        return [None] * len(inputs)
    takes = ", ".join([*(each.name for each in parameters if each.name in own), *([f"*{rest}"] if rest else [])])
    any_name = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    for name in names:
        if name not in own and name not in entries and not any_name:
            near = get_close_matches(name, own, n=1)
            meant = f'; did you mean "{near[0]}"?' if near else f"; those of *{rest} are {rest}_0, ..." if rest else ""
            raise RecipeError(
                f'[[input]] name = "{name}": the forward of {source} takes {takes or "no named argument"}{meant}',
                hint=_HOW,
            )
    given = {*names, *(each.name for each in entries.values())}
    for each in parameters:
        if each.name in own and each.default is inspect.Parameter.empty and each.name not in given:
            raise RecipeError(
                f'[[input]]: the forward of {source} needs "{each.name}", and no input has that name',
                hint=f'add an [[input]] table with name = "{each.name}"; forward takes {takes}',
            )
    arguments: list[Argument] = [entries.get(name, name) for name in names]
    _check_whole(arguments, source)
    return _in_place(arguments, parameters, rest, source)


def _in_place(
    arguments: Sequence[Argument], parameters: Sequence[inspect.Parameter], rest: str | None, source: str
) -> list[Argument]:
    """Return arguments with a place for those that have to be passed by position: before ``*rest``, and its own."""
    ordered = [each for each in parameters if each.kind in _IN_ORDER]
    many = any(isinstance(each, Entry) and each.name == rest for each in arguments)
    places = {
        each.name: number
        for number, each in enumerate(ordered)
        if many or each.kind is inspect.Parameter.POSITIONAL_ONLY
    }
    if missing := [name for name in places if name not in {_of(each) for each in arguments}]:
        raise RecipeError(
            f'[[input]]: the forward of {source} takes "{missing[0]}" before other inputs by position, and no input '
            "has that name",
            hint=f'add an [[input]] table with name = "{missing[0]}"',
        )
    found: list[Argument] = []
    for each in arguments:
        if isinstance(each, Entry) and each.name == rest:
            if len(each.keys) > 1 or not isinstance(each.keys[0], int):
                raise RecipeError(f"[[input]]: the inputs of *{rest} of {source} are tensors: {rest}_0, {rest}_1")
            found.append(Place(len(ordered) + each.keys[0]))
        elif isinstance(each, str) and each in places:
            found.append(Place(places[each]))
        elif isinstance(each, Entry) and each.name in places:
            raise RecipeError(
                f'[[input]]: "{each.name}" of {source} is passed by position, so it has to be a tensor',
                hint="let forward take it by name: no / after it, and no *args",
            )
        else:
            found.append(each)
    return found


def _of(argument: Argument) -> str | None:
    return argument.name if isinstance(argument, Entry) else argument if isinstance(argument, str) else None


def with_arguments(names: Sequence[Argument], tensors: Sequence[torch.Tensor]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of ``forward`` in order and by name. There may be more tensors than names."""
    ordered, named, inside = dict[int, Any](), {}, dict[str, dict[tuple[int | str, ...], torch.Tensor]]()
    kinds = {each.name: each.kind for each in names if isinstance(each, Entry)}
    for name, each in zip(names, tensors, strict=False):
        if name is None:
            ordered[len(ordered)] = each
        elif isinstance(name, Place):
            ordered[name.number] = each
        elif isinstance(name, Entry):
            inside.setdefault(name.name, {})[name.keys] = each
        else:
            named[name] = each
    made = {name: container(entries, kinds[name]) for name, entries in inside.items()}
    return [ordered[number] for number in sorted(ordered)], named | made


def _entry(name: str, arguments: set[str], kinds: Mapping[str, Any]) -> Entry | None:
    """Return what a name says of an entry of an argument, None where it is no such name."""
    match = _ENTRY.fullmatch(name)
    if name in arguments or match is None or match[1] not in arguments:
        return None
    below = [int(each) if each.isdecimal() else each for each in match[3].split(".")[1:]]
    return Entry(match[1], (*map(int, match[2].split("_")[1:]), *below), kinds.get(match[1]))


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
