"""Arguments of ``forward`` that hold several tensors: tuples, lists, dicts, and the classes that annotations name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any

import torch

Keys = tuple[int | str, ...]


def types_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function or the fields of a class, none where they cannot be resolved."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError):  # of a name that exists for type checkers alone
        return {}


def container(entries: Mapping[Keys, torch.Tensor], kind: Any = None) -> Any:
    """Return tensors by their keys as containers inside each other.

    ``kind`` is the annotation: a dataclass, a named tuple or a list is made where it says so, else a dict or a tuple.
    """
    if () in entries:
        return entries[()]
    kind = _class_of(kind)
    groups: dict[int | str, dict[Keys, torch.Tensor]] = {}
    for (first, *rest), each in entries.items():
        groups.setdefault(first, {})[tuple(rest)] = each
    whole: dict[Any, Any] = {key: container(group, _kind_of_entry(kind, key)) for key, group in groups.items()}
    own = typing.get_origin(kind) or kind
    has_fields = isinstance(own, type) and (dataclasses.is_dataclass(own) or hasattr(own, "_fields"))
    if all(isinstance(key, str) for key in whole):
        return own(**whole) if has_fields else whole
    values = [whole[number] for number in range(len(whole))]
    if has_fields:
        return own(*values)
    return values if own is list else tuple(values)


def _class_of(kind: Any) -> Any:
    """Return an annotation without None: ``Batch`` of ``Batch | None``."""
    if typing.get_origin(kind) not in {typing.Union, UnionType}:
        return kind
    some = [each for each in typing.get_args(kind) if each is not type(None)]
    return some[0] if len(some) == 1 else None


def _kind_of_entry(kind: Any, key: int | str) -> Any:
    """Return the annotation of an entry, None where nothing is known."""
    own, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if isinstance(own, type) and (dataclasses.is_dataclass(own) or hasattr(own, "_fields")):
        fields = types_of(own)
        return fields.get(key) if isinstance(key, str) else dict(enumerate(fields.values())).get(key)
    if own is tuple and isinstance(key, int) and Ellipsis not in arguments:
        return arguments[key] if key < len(arguments) else None
    place = {list: 0, tuple: 0, dict: 1}.get(own)
    return arguments[place] if place is not None and place < len(arguments) else None
