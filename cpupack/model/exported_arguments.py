"""The arguments of an exported program: its tensors by name, and the values that the export has fixed.

What is no tensor (a number, a text, None) is part of the program once it is exported. So no input can give it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from cpupack.errors import ModelError

_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD


@dataclass(frozen=True)
class _Leaf:
    """A value in the arguments of a program: ``keys`` lead to it inside the argument ``name``.

    ``tensor`` is the program's name of it, None for a value that the export has fixed, which is then ``value``.
    """

    name: str
    keys: tuple[Any, ...]
    tensor: str | None
    value: Any = None


@dataclass(frozen=True)
class Arguments:
    """How a program is called. ``names`` are its arguments in order, ``leaves`` what is in them, as ``spec`` has it."""

    names: tuple[str, ...]
    leaves: tuple[_Leaf, ...]
    spec: pytree.TreeSpec

    @property
    def free(self) -> tuple[str, ...]:
        """The arguments that have a tensor: others are as they were when the program was exported."""
        holders = {each.name for each in self.leaves if each.tensor is not None}
        return tuple(name for name in self.names if name in holders)

    @property
    def tensors(self) -> tuple[str | None, ...]:
        """The program's name of each of ``values``, None for what the export has fixed."""
        return tuple(each.tensor for each in self.leaves)

    def values(self, given: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        """Return what is in the arguments of a call, in the order of ``leaves``.

        Raises TypeError for an argument or an entry that is missing, and for one that the program does not have.
        """
        every = inspect.Signature([inspect.Parameter(name, _KIND) for name in self.free])
        arguments = every.bind(*given, **named).arguments
        wanted = [each for each in self.leaves if each.tensor is not None]
        found = {each: _entry(arguments[each.name], each) for each in wanted}
        for name, argument in arguments.items():
            count = sum(each.name == name for each in wanted)
            if (entries := sum(isinstance(each, torch.Tensor) for each in pytree.tree_leaves(argument))) > count:
                others = [each for each in self.leaves if each.name == name and each.tensor is None]
                fixed = ", ".join(f"{_path(each)} = {each.value!r}" for each in others)
                raise TypeError(
                    f"the argument {name} has {entries} tensors, and the program was exported with {count} in it"
                    + (f"; fixed are {fixed}" if fixed else "")
                )
        return [found.get(each, each.value) for each in self.leaves]


def arguments_of(program: ExportedProgram, module: nn.Module, path: Any) -> Arguments:
    """Return the arguments of a program, of which ``module`` was made.

    Raises ModelError for a program that takes a number which is no tensor.
    """
    spec = program.call_spec.in_spec
    names = tuple(inspect.signature(module.forward).parameters)
    given = [each.arg for each in program.graph_signature.input_specs if each.kind is InputKind.USER_INPUT]
    for argument in given:
        if not isinstance(argument, TensorArgument | ConstantArgument):
            raise ModelError(
                f"[model] source: {path} takes a number that is no tensor, {getattr(argument, 'name', argument)}",
                hint="export it again with a value of it that is fixed, or with a tensor of one value for each sample",
            )
    positional, keywords = spec.children()
    template = pytree.tree_unflatten(range(spec.num_leaves), spec)
    paths: list[tuple[Any, ...]] = [keys for keys, _ in pytree.tree_flatten_with_path(template)[0]]
    if len(names) != positional.num_children + keywords.num_children or len(paths) != len(given):
        raise ModelError(f"[model] source: {path} does not say what its arguments are")
    keyword = dict(zip(keywords.context, names[positional.num_children :], strict=True))
    leaves = list[_Leaf]()
    for keys, argument in zip(paths, given, strict=True):
        first, inner = keys[1], keys[2:]
        name = keyword[first.key] if isinstance(first, pytree.MappingKey) else names[first.idx]
        fixed = isinstance(argument, ConstantArgument)
        leaves.append(_Leaf(name, inner, None if fixed else argument.name, argument.value if fixed else None))
    return Arguments(names, tuple(leaves), spec)


def take_by_name(module: nn.Module, arguments: Arguments) -> None:
    """Have every argument of a program taken by its name too, in place: it insists on what was a keyword when exported.

    Values that are no tensors are left out: they are those of the export.
    """
    module._forward_pre_hooks.clear()  # they compare a call with that of the export
    module._forward_pre_hooks_with_kwargs.clear()
    call = module.forward

    def forward(*given: Any, **named: Any) -> Any:
        ordered, keywords = pytree.tree_unflatten(arguments.values(given, named), arguments.spec)
        return call(*ordered, **keywords)

    forward.__signature__ = inspect.Signature([inspect.Parameter(name, _KIND) for name in arguments.free])  # type: ignore[attr-defined]  # inspect reads it
    module.forward = forward


def _entry(argument: Any, leaf: _Leaf) -> Any:
    found = argument
    try:
        for key in leaf.keys:
            found = key.get(found)
    except (LookupError, AttributeError, TypeError):
        raise TypeError(f"the program was exported with {_path(leaf)}, and a call has no such entry") from None
    return found


def _path(leaf: _Leaf) -> str:
    return f"{leaf.name}{pytree.keystr(leaf.keys)}"
