"""Where the tensors are in a checkpoint, and their names without what wrappers added to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpupack.model.fit import Own

AVERAGED = frozenset({"ema", "swa", "averaged", "shadow", "polyak"})
"""Words in a key or prefix that mean a running average of the weights."""
_NOT_WEIGHTS = frozenset(
    {
        "optimizer",
        "optimizers",
        "optim",
        "opt",
        "scheduler",
        "grad",
        "grads",
        "scaler",
        "rng",
        "exp",
        "momentum",
    }
)
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_fpw_module": "FSDP",
    "_forward_module": "Lightning Fabric",
    "_original_module": "Lightning Fabric",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Private attributes in which wrappers keep a module. They may appear anywhere in a name."""
_DEEPEST = 4
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class Table:
    """Tensors in a file. ``path`` has the keys that lead to them, ``removed`` the name parts that wrappers added."""

    path: tuple[str, ...]
    tensors: dict[str, torch.Tensor]
    removed: tuple[str, ...] = ()


def words(key: str) -> set[str]:
    """Return the words of a key in lower case: ``model_ema`` and ``modelEMA`` both give "model" and "ema"."""
    return {word.lower() for word in _WORDS.findall(key)}


def tables_of(raw: Any, own: Own, path: tuple[str, ...] = ()) -> Iterator[Table]:
    """Yield the tensors of each mapping in a file's contents, and lists of averages."""
    if isinstance(raw, list | tuple) and path and words(path[-1]) & AVERAGED:
        yield from _unnamed(raw, own, path)
    if not isinstance(raw, Mapping) or len(path) > _DEEPEST:
        return
    entries = {str(key): value for key, value in raw.items() if isinstance(key, str)}
    tensors = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield _without_wrappers(Table(path, tensors), own)
    for key, value in entries.items():
        if not words(key) & _NOT_WEIGHTS:
            yield from tables_of(value, own, (*path, key))


def joined(raw: Any, own: Own, path: tuple[str, ...] = ()) -> Iterator[Table]:
    """Yield the tensors of mappings that hold a separate state dict for each part of the model."""
    if not isinstance(raw, Mapping) or len(path) > 1:
        return
    parts = {key: value for key, value in raw.items() if isinstance(key, str) and isinstance(value, Mapping)}
    tensors = {
        f"{key}.{name}": value
        for key, part in parts.items()
        if not words(key) & _NOT_WEIGHTS
        for name, value in part.items()
        if isinstance(value, torch.Tensor) and isinstance(name, str)
    }
    if tensors:
        yield _without_wrappers(Table(path, tensors), own)
    for key, part in parts.items():
        yield from joined(part, own, (*path, key))


def _unnamed(values: Any, own: Own, path: tuple[str, ...]) -> Iterator[Table]:
    """Give names to a list of averaged parameters (torch_ema), which has the order of ``parameters()``."""
    found = [value for value in values if isinstance(value, torch.Tensor)]
    if found and len(found) == len(values) == len(own.trained):
        pairs = list(zip(own.trained, found, strict=True))
        if all(value.shape == own.state[name].shape for name, value in pairs):
            yield Table(path, dict(pairs))


def _without_wrappers(table: Table, own: Own, also: frozenset[str] = frozenset()) -> Table:
    """Remove the parts of names that wrappers add, unless the module itself has such parts."""
    used = {part for name in own.state for part in name.split(".")}
    droppable = (set(WRAPPERS) | also) - used
    removed: list[str] = []
    tensors: dict[str, torch.Tensor] = {}
    for name, value in table.tensors.items():
        parts = name.split(".")
        kept = ".".join(part for part in parts if part not in droppable)
        if not kept or kept in tensors:
            return table  # two names would become the same
        tensors[kept] = value
        removed += [part for part in parts if part in droppable and part not in removed]
    return replace(table, tensors=tensors, removed=tuple(removed)) if removed else table


def looser(tables: list[Table], own: Own) -> Iterator[Table]:
    """Yield the tables again without DistributedDataParallel's ``module`` inside names."""
    for table in tables:
        other = _without_wrappers(table, own, frozenset({"module"}))
        if other is not table and "module" in other.removed:
            yield replace(other, removed=(*table.removed, *other.removed))
