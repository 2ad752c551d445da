"""The tensors in whatever a model returns, by name: out of tuples, lists, dicts, dataclasses and other objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cpupack.runtime.signature import OUTPUT

_TENSORS: tuple[Any, ...] = (torch.Tensor, torch.fx.Proxy)
"""While torch.fx traces, tensors are proxies."""


@dataclass(frozen=True)
class Leaves:
    """The tensors of an output by name, in the order of the output, and what else is in it, as text by name."""

    tensors: dict[str, torch.Tensor]
    others: dict[str, str]


def leaves_of(output: Any) -> Leaves:
    """Return the tensors in an output. None is nothing.

    Entries of a dict, a dataclass, a named tuple or an object have their own names, below each other with dots;
    those of a tuple or list are numbered: ``output_0`` at the top, ``features_0`` below ``features``. A tensor alone is
    ``output``. Of two entries with equal names the second is numbered too.
    """
    tensors: dict[str, torch.Tensor] = {}
    others: dict[str, str] = {}
    for name, value in _walk(output, "", ()):
        own, number = name or OUTPUT, 1
        while own in tensors or own in others:
            number += 1
            own = f"{name or OUTPUT}_{number}"
        if isinstance(value, _TENSORS):
            tensors[own] = value
        else:
            kind = type(value).__name__
            others[own] = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    return Leaves(tensors, others)


def _walk(value: Any, name: str, around: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if value is None or id(value) in around:  # an object may hold itself
        return
    entries = None if isinstance(value, _TENSORS) else _entries(value)
    if entries is None:
        yield name, value
        return
    for own, each in entries:
        numbered = isinstance(own, int)
        path = f"{name or OUTPUT}_{own}" if numbered else f"{name}.{own}" if name else str(own)
        yield from _walk(each, path, (*around, id(value)))


def _entries(value: Any) -> list[tuple[str | int, Any]] | None:
    """Return what is inside a container, None for anything else."""
    if isinstance(value, Mapping):  # also the ModelOutput of transformers
        return [(str(key), each) for key, each in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None)
        if names is None and type(value).__module__ == "torch.return_types":
            names = [each for each in dir(value) if isinstance(getattr(type(value), each, None), _MEMBER)]
            names.sort(key=lambda each: next(place for place, one in enumerate(value) if one is getattr(value, each)))
        return list(zip(names, value, strict=True)) if names else list(enumerate(value))
    inside = getattr(value, "__dict__", None)
    if isinstance(inside, dict) and not isinstance(value, type | torch.nn.Module):
        own = [(key, each) for key, each in inside.items() if not key.startswith("_")]
        if any(_entries(each) is not None or isinstance(each, torch.Tensor) for _, each in own):
            return own
    return None


_MEMBER = type(torch.return_types.max.values)
