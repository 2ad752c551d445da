"""The walk through an exported graph that splits its complex values into real and imaginary parts.

What the calls become is ``complex_parts.py``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._ops import OpOverload

from cpupack.stages.capture.export import Exported
from cpupack.stages.capture.raising.spectra import READERS

_ATEN = torch.ops.aten
_SCOPE = ("nn_module_stack", "stack_trace")


class Pair(NamedTuple):
    """The real and the imaginary part of a call's values; ``imaginary`` is None where it is zero."""

    real: fx.Node
    imaginary: fx.Node | None


class NoParts(Exception):  # noqa: N818 - no failure
    """The call that is being split stays complex."""


class Splitter:
    """Splits what ``handlers`` know, by the names of operators. The others keep their complex values."""

    def __init__(self, exported: Exported, handlers: Mapping[str, Handler]) -> None:
        self.graph, self.parts, self.handlers = exported.graph, dict[fx.Node, Any](), handlers
        self.mode = exported.source.meta["val"].fake_mode
        self.known: set[fx.Node] = set(exported.constants)
        self.node: fx.Node = exported.source

    def run(self) -> dict[fx.Node, fx.Node]:
        """Split what can be split; return the real calls that others take the place of, with these."""
        replaced: dict[fx.Node, fx.Node] = {}
        nodes = list(self.graph.nodes)
        for node in nodes:
            if node.op == "call_function" and all(each in self.known for each in node.all_input_nodes):
                self.known.add(node)
        others = _raised_otherwise(nodes, self.known)
        for node in nodes:
            reads = is_complex(node) or any(map(is_complex, node.all_input_nodes))
            if node.op != "call_function" or node in self.known or node in others or not reads:
                continue
            self.node = node
            with self.graph.inserting_before(node):
                try:
                    found = self._split(node)
                except NoParts:
                    continue
            if isinstance(found, fx.Node):
                node.replace_all_uses_with(found)
                replaced[node] = found
            else:
                self.parts[node] = found
        return replaced

    def _split(self, node: fx.Node) -> Any:
        """Return the parts of a complex result (a list for several), or the node of a real one."""
        if node.target is operator.getitem:
            parts = self.parts.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
            if not isinstance(parts, list):
                raise NoParts
            return parts[node.args[1]]  # type: ignore[index]  # a number
        if not isinstance(node.target, OpOverload):
            raise NoParts
        name = node.target._schema.name.removeprefix("aten::")
        names = [each.name for each in node.target._schema.arguments]
        defaults = {each.name: each.default_value for each in node.target._schema.arguments}
        given = defaults | dict(zip(names, node.args, strict=False)) | node.kwargs
        if name in _EACH:
            return self._each(node)
        handler = self.handlers.get(name)
        if handler is None:
            raise NoParts
        return handler(self, given)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a real call before the one that is being split."""
        node = self.graph.call_function(target, args, kwargs)
        values = fx.node.map_arg((args, kwargs), lambda each: each.meta["val"])
        with self.mode, torch.no_grad():
            node.meta = {key: self.node.meta[key] for key in _SCOPE if key in self.node.meta}
            node.meta["val"] = target(*values[0], **values[1])
        if all(each in self.known for each in node.all_input_nodes):
            self.known.add(node)
        return node

    def pair(self, value: Any) -> Pair:
        """Return the parts of an operand, real ones included."""
        if not isinstance(value, fx.Node):
            raise NoParts
        if not is_complex(value):
            return Pair(value, None)
        if value in self.parts:
            found = self.parts[value]
            if isinstance(found, Pair):
                return found
            raise NoParts
        if value not in self.known:
            raise NoParts
        pairs = self.call(_ATEN.view_as_real.default, self.call(_ATEN.resolve_conj.default, value))
        self.parts[value] = Pair(*(self.call(_ATEN.select.int, pairs, -1, place) for place in (0, 1)))
        found = self.parts[value]
        assert isinstance(found, Pair)
        return found

    def both(self, value: Any) -> tuple[fx.Node, fx.Node]:
        """Return the parts of an operand, zeros for the imaginary part of a real one."""
        real, imaginary = self.pair(value)
        return real, self.call(_ATEN.zeros_like.default, real) if imaginary is None else imaginary

    def _each(self, node: fx.Node) -> Any:
        """Make the call on the real parts and on the imaginary parts of its tensors."""
        read = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.Tensor)]
        # an index of whole numbers is the same for both
        pairs = {each: self.both(each) for each in read if _is_number(each)}
        kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
        if "dtype" in node.kwargs:
            kwargs["dtype"] = torch.float32
        made = []
        for place in (0, 1):
            part = {each: pair[place] for each, pair in pairs.items()}
            args, given = fx.node.map_arg((node.args, kwargs), _taking(part))
            made.append(self.call(node.target, *args, **given))  # type: ignore[arg-type]  # a function
        if not isinstance(node.meta["val"], list | tuple):
            return Pair(*made)
        count = len(node.meta["val"])
        return [Pair(*(self.call(operator.getitem, each, place) for each in made)) for place in range(count)]


def is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, torch.Tensor) and each.dtype == torch.complex64 for each in values)


def _taking(parts: dict[fx.Node, fx.Node]) -> Callable[[fx.Node], fx.Node]:
    return lambda each: parts.get(each, each)


def _is_number(node: fx.Node) -> bool:
    value: torch.Tensor = node.meta["val"]
    return value.is_complex() or value.is_floating_point()


def _raised_otherwise(nodes: list[fx.Node], known: set[fx.Node]) -> set[fx.Node]:
    """Return the calls that ``raising`` has a shorter form for: rotary positions, and spectra read at once."""
    found = set[fx.Node]()
    for node in nodes:
        if node.target is _ATEN.stft.default and all(user.target in READERS for user in node.users):
            found |= {node, *node.users}
        if node.target is not _ATEN.view_as_complex.default or node in known:
            continue
        turns = {user for user in node.users if user.target is _ATEN.mul.Tensor and known & set(user.all_input_nodes)}
        alike = all(each.meta["val"].ndim == one.meta["val"].ndim for one in turns for each in one.all_input_nodes)
        readers = {user for one in turns for user in one.users}
        if len(turns) == len(node.users) and alike and all(each.target in _READ_TURNS for each in readers):
            found |= {node} | turns | readers
    return found


_READ_TURNS = {_ATEN.view_as_real.default, _ATEN.contiguous.default, _ATEN.clone.default}
_EACH = {
    "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "permute", "transpose", "t", "slice", "select", "cat",
    "stack", "expand", "clone", "contiguous", "repeat", "index_select", "index", "flip", "roll", "chunk", "split",
    "split_with_sizes", "unbind", "narrow", "flatten", "unflatten", "sum", "mean", "neg", "slice_scatter",
    "select_scatter", "copy", "movedim", "moveaxis", "detach", "alias", "unfold", "zeros_like", "zeros", "new_zeros",
    "swapaxes", "view_as", "reshape_as", "expand_as", "concat", "constant_pad_nd", "pad", "lift_fresh_copy", "gather",
    "empty", "empty_like", "new_empty",
}  # fmt: skip
"""Calls that do to a complex number what they do to its parts."""


Handler = Callable[[Splitter, dict[str, Any]], Any]
"""Returns the parts of a call's result (a list for several), or the node of a real one; takes arguments by name."""
