"""What the handlers of ATen operators have in hand: operands, constants, shapes, and the graph that they add to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.tags import CONSTANT_NAME, WORD
from cpupack.stages.capture.export import Exported, is_dynamic

_SCOPE = ("nn_module_stack", "stack_trace")


@dataclass(frozen=True)
class Symbol:
    """A size that changes with the batch: the exported ``node`` computes it."""

    node: fx.Node


class NotRaised(Exception):  # noqa: N818 - no failure: the call is kept as it is
    """Raised by a handler for a call that has no form in the vocabulary; it is kept as an ATen call."""


class Arguments(dict[str, Any]):
    """A call's arguments by name. One that is not there is another overload's, which the handler has no form for."""

    def __missing__(self, name: str) -> Any:
        raise NotRaised


class Raiser:
    """Walks an exported graph and builds the canonical one beside it.

    ``known`` has the values of what depends on constants alone, ``made`` the new nodes (a list for a call of several
    results, None for a result that nothing may read).
    """

    def __init__(self, exported: Exported) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.known: dict[fx.Node, Any] = {}
        self.made: dict[fx.Node, Any] = {}
        self.put: dict[Any, tuple[fx.Node, int, int, int]] = {}  # updates: (new part, dimension, start, end)
        self._names: dict[fx.Node, str] = {}
        self._constants: dict[tuple[int, str], fx.Node] = {}
        self._count = 0
        self.node: fx.Node = exported.source  # the exported call that is being raised
        self.input = self.graph.placeholder(exported.source.name)
        self.input.meta["shape"] = self.shape(exported.source)
        self.made[exported.source] = self.input
        for node, (name, value) in exported.constants.items():
            self.known[node] = value
            self._names[node] = name
        self.source = exported.source

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the current call by their names, defaults included, as exported nodes and values."""
        schema = self.node.target._schema  # type: ignore[union-attr]  # the target is an OpOverload
        given = dict(zip((each.name for each in schema.arguments), self.node.args, strict=False))
        given |= self.node.kwargs
        return Arguments({each.name: given.get(each.name, each.default_value) for each in schema.arguments})

    def constant(self, value: object) -> Any:
        """Return an argument's value where it is known, else raise NotRaised."""
        if isinstance(value, fx.Node):
            if value not in self.known:
                raise NotRaised
            return self.known[value]
        return value

    def tensor(self, value: object) -> torch.Tensor | None:
        """Return a constant tensor, None for None; raise NotRaised for what is computed."""
        found = self.constant(value)
        if found is not None and not isinstance(found, torch.Tensor):
            raise NotRaised
        return found

    def operand(self, value: object) -> Any:
        """Return an argument for a call of the new graph: a node (of a constant, a ``get_attr``) or a plain value."""
        if not isinstance(value, fx.Node):
            return value
        if value in self.known:
            found = self.known[value]
            return self.attribute(found, self._name_of(value)) if isinstance(found, torch.Tensor) else found
        found = self.made.get(value)
        if not isinstance(found, fx.Node):
            raise NotRaised
        return found

    def activation(self, value: object) -> fx.Node:
        """Return the new node of an argument that is computed from the input; raise NotRaised for a constant."""
        if not isinstance(value, fx.Node) or value in self.known:
            raise NotRaised
        found = self.operand(value)
        if not isinstance(found, fx.Node):
            raise NotRaised
        return found

    def is_known(self, value: object) -> bool:
        return not isinstance(value, fx.Node) or value in self.known

    def shape(self, node: fx.Node | None = None) -> tuple[int, ...]:
        """Return the shape of an exported call's tensor (the current one's) for the example's batch."""
        value = (node or self.node).meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise NotRaised
        return tuple(_hint(size) for size in value.shape)

    def dynamic(self, node: fx.Node | None = None) -> tuple[bool, ...]:
        """Return which dimensions of an exported call's tensor (the current one's) change with the batch."""
        value = (node or self.node).meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise NotRaised
        return tuple(is_dynamic(size) for size in value.shape)

    def is_float(self, node: object = None) -> bool:
        """Whether an exported call (the current one) gives a float32 tensor."""
        value = (node if isinstance(node, fx.Node) else self.node).meta.get("val")
        return isinstance(value, torch.Tensor) and value.dtype == torch.float32

    def module(self, module: nn.Module, *operands: fx.Node, word: str, owner: str = "") -> fx.Node:
        """Add a call of a new module; ``owner`` is the user's name of its weights where they are parameters."""
        target = f"m{self._count}"
        self._count += 1
        self.root.add_module(target, module.eval().requires_grad_(requires_grad=False))
        return self._noted(self.graph.call_module(target, operands), word, owner)

    def call(self, function: Callable[..., Any], *args: Any, word: str = "", **kwargs: Any) -> fx.Node:
        """Add a call of a function."""
        return self._noted(self.graph.call_function(function, args, kwargs), word or function.__name__)

    def method(self, name: str, *args: Any) -> fx.Node:
        """Add a call of a tensor's method."""
        return self._noted(self.graph.call_method(name, args), name)

    def attribute(self, value: torch.Tensor, name: str) -> fx.Node:
        """Return the ``get_attr`` node of a constant with the user's ``name``."""
        key = id(value), name
        if key not in self._constants:
            target = f"c{len(self._constants)}"
            self.root.register_buffer(target, value.detach().clone().contiguous())
            node = self.graph.get_attr(target)
            node.meta["shape"] = tuple(value.shape)
            node.meta[CONSTANT_NAME] = name
            node.meta["kept"] = value  # so that its id stays its own
            self._constants[key] = node
        return self._constants[key]

    def batch(self) -> fx.Node:
        """Return a node with the batch size."""
        return self.method("size", self.input, 0)

    def weight_name(self, value: object) -> str:
        """Return the user's name of a parameter without its last part (``layer1.conv``), "" where it is computed."""
        name = self._names.get(value, "") if isinstance(value, fx.Node) else ""
        owner, _, own = name.rpartition(".")
        prefix = own.removesuffix("weight").strip("_.")
        return ".".join(part for part in (owner, prefix) if part) if own.endswith("weight") else ""

    def _name_of(self, node: fx.Node) -> str:
        if node in self._names:
            return self._names[node]
        scopes = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        return ".".join(part for part in (scopes[-1] if scopes else "", node.name) if part)

    def _noted(self, new: fx.Node, word: str, owner: str = "") -> fx.Node:
        new.meta.update({key: self.node.meta[key] for key in _SCOPE if key in self.node.meta})
        new.meta[WORD] = word
        if owner:
            new.meta["owner"] = owner
        return new


def _hint(size: Any) -> int:
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.hint is None:
        raise NotRaised  # it depends on values, as that of x[mask] does
    return int(size.node.hint)


def numbers(value: Any, count: int) -> tuple[int, ...]:
    """Return ``count`` sizes, of which torch may have been given one for all."""
    values = list(value) if isinstance(value, Sequence) else [value]
    if not all(isinstance(each, int) for each in values):
        raise NotRaised
    return tuple(values * count if len(values) == 1 else values)


def name_of(node: fx.Node) -> str:
    """Return the name of an ATen operator without its overload, empty for another call."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.removeprefix("aten::")
