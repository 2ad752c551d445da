"""Compares the tensors of a file with the weights of a module: names, shapes and dtypes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import nn

Tensors = Mapping[str, torch.Tensor]

_LISTED = 8
_COUNTER = re.compile(r"(^|\.)num_batches_tracked$")
"""The number of batches that a BatchNorm has seen. Older checkpoints lack it, and it is unused in eval mode."""
_EXTRAS = re.compile(r"(^|\.)(total_ops|total_params)$|^n_averaged$|^initted$|^step$|^num_updates$|^decay$")
"""Names that thop (total_ops, total_params) and tools for averaged weights store next to the weights."""


class Own:
    """What a module expects of a state dict.

    ``state`` has its tensors by name. ``aliases`` maps a name to all names of the same tensor. ``parameters`` are the
    names that are not buffers, ``trained`` those of them with gradients; both have each tensor once. ``hidden`` are the
    buffers that the module does not save.
    """

    def __init__(self, module: nn.Module) -> None:
        self.state = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
        whole: dict[str, torch.Tensor] = dict(list(module.named_parameters(remove_duplicate=False)))
        self.parameters = tuple(name for name in whole if name in self.state)
        self.trained = tuple(name for name, value in module.named_parameters() if value.requires_grad)
        self.hidden = {
            name: value for name, value in module.named_buffers(remove_duplicate=False) if name not in self.state
        }
        whole |= dict(module.named_buffers(remove_duplicate=False))
        groups: dict[int, list[str]] = {}
        for name in self.state:
            if name in whole:
                groups.setdefault(id(whole[name]), []).append(name)
        self.aliases = {name: tuple(group) for group in groups.values() for name in group if len(group) > 1}

    def names_of(self, name: str) -> tuple[str, ...]:
        """Return the other names of the same tensor."""
        return tuple(other for other in self.aliases.get(name, ()) if other != name)


@dataclass(frozen=True)
class Fit:
    """How tensors, under the module's own names, fit the module. ``state`` are the tensors to load.

    ``tied`` are pairs: a missing name, and the name under which the file has the same tensor. ``extras`` were left out
    because they are not weights. The tensors can be loaded if ``missing``, ``unexpected`` and ``differing`` are empty.
    """

    state: dict[str, torch.Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    differing: tuple[str, ...]
    tied: tuple[tuple[str, str], ...]
    extras: tuple[str, ...]

    @property
    def loads(self) -> bool:
        return not (self.missing or self.unexpected or self.differing)

    @property
    def faults(self) -> tuple[int, int]:
        """The number of faults in the module's names, then in the file's. The fit with the fewest is the nearest."""
        return len(self.missing) + len(self.differing), len(self.unexpected)


def fit(tensors: Tensors, own: Own) -> Fit:
    """Compare ``tensors`` with what a module expects. Nothing is changed."""
    missing, tied, differing, unexpected, extras = [], [], [], [], []
    state: dict[str, torch.Tensor] = {}
    for name, value in own.state.items():
        if name in tensors:
            problem = _difference(name, tensors[name], value)
            if problem is None:
                state[name] = tensors[name]
            else:
                differing.append(problem)
        elif other := next((other for other in own.names_of(name) if other in tensors), None):
            tied.append((name, other))
        elif not _COUNTER.search(name):
            missing.append(name)
    differing += _untied(tensors, own)
    for name, value in tensors.items():
        if name in own.state:
            continue
        hidden = own.hidden.get(name)
        known = hidden is not None and hidden.shape == value.shape and torch.equal(hidden, value.to(hidden.dtype))
        if known or _COUNTER.search(name) or _EXTRAS.search(name):
            extras.append(name)
        else:
            unexpected.append(name)
    return Fit(state, tuple(missing), tuple(unexpected), tuple(differing), tuple(tied), tuple(extras))


def is_extra(name: str) -> bool:
    """Whether a name is one of those that tools store next to the weights."""
    return bool(_COUNTER.search(name) or _EXTRAS.search(name))


def _difference(name: str, found: torch.Tensor, wanted: torch.Tensor) -> str | None:
    if found.is_quantized or found.layout != torch.strided or type(found.data) is not torch.Tensor:
        kind = "INT8" if found.is_quantized else type(found).__name__
        kind = f"{kind} of layout {found.layout}" if found.layout != torch.strided else kind
        return f"{name} is {kind} in the file, plain {_dtype(wanted)} in the model"
    one_number = found.shape == (1,) and wanted.shape == ()  # torch 0.3 wrote single numbers in this shape
    if found.shape != wanted.shape and not one_number and not isinstance(wanted, nn.UninitializedParameter):
        return f"{name} is {tuple(found.shape)} in the file, {tuple(wanted.shape)} in the model"
    same_kind = found.is_floating_point() == wanted.is_floating_point() and found.is_complex() == wanted.is_complex()
    if not same_kind:
        return f"{name} is {_dtype(found)} in the file, {_dtype(wanted)} in the model"
    return None


def _untied(tensors: Tensors, own: Own) -> list[str]:
    """Return the names of one tensor that have different values in the file. Loading would silently use one of them."""
    found = []
    for name, group in own.aliases.items():
        if name == group[0]:
            present = [other for other in group if other in tensors]
            if any(not torch.equal(tensors[present[0]], tensors[other]) for other in present[1:]):
                found.append(f"{', '.join(present)} have different values in the file but are one tensor in the model")
    return found


def dtypes_converted(found: Fit, own: Own) -> list[tuple[str, str]]:
    """Return the dtype pairs (in the file, in the model) that loading converts between, in order."""
    pairs = {
        (_dtype(value), _dtype(own.state[name]))
        for name, value in found.state.items()
        if name in own.state and value.dtype != own.state[name].dtype
    }
    return sorted(pairs)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def problem_lines(found: Fit, tensors: Tensors, own: Own) -> list[str]:
    """Return a line for each kind of mismatch, and one for names that may mean the same tensor."""
    lines = []
    for title, names in (
        ("missing", found.missing),
        ("unexpected", found.unexpected),
        ("other shape or type", found.differing),
    ):
        if names:
            lines.append(f"  {title} ({len(names)}): {listed(names)}")
    near = []
    for name in found.missing:
        same_shape = [other for other in found.unexpected if tensors[other].shape == own.state[name].shape]
        if close := get_close_matches(name, same_shape, n=1, cutoff=0.5):
            near.append(f"{name} may be the file's {close[0]}")
    if near:
        lines.append(f"  of the same shape: {listed(near)}")
    return lines


def listed(names: Iterable[str]) -> str:
    """Return the first few of ``names`` and the number of the others."""
    every = list(names)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(every[:_LISTED]) + more
