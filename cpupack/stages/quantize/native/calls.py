"""The calls of a graph as lowering asks for them: what is called, with which settings, who reads the result."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn
from torch.fx.node import map_arg

from cpupack.errors import QuantizationError
from cpupack.graph.names import kind_of, scoped_name
from cpupack.stages.quantize.native.functions import activation_of

ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
CONCATENATIONS = (torch.cat, torch.concat)
MEANS = (torch.mean, "mean")
_REARRANGEMENTS = (
    torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.chunk, torch.split, torch.squeeze,
    torch.unsqueeze, torch.swapaxes, torch.movedim, torch.narrow, torch.unbind, torch.channel_shuffle, torch.unflatten,
    F.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle, operator.getitem,
    "flatten", "reshape", "view", "transpose", "permute", "chunk", "split", "squeeze", "unsqueeze", "swapaxes",
    "movedim", "narrow", "unbind", "unflatten",
)  # fmt: skip
_REARRANGING_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)
_ALIASES = (F.dropout, F.dropout2d, "contiguous", "clone", "detach")
_ALIAS_MODULES = (nn.Dropout, nn.Dropout2d, nn.Identity)


class Calls:
    """The calls of ``graph``, which ``record`` has run on a batch of two of inputs of ``input_shape``."""

    def __init__(self, graph: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
        self.graph = graph
        with torch.inference_mode():
            _Record(graph).run(torch.zeros(2, *input_shape))

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that is called, None for a function."""
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def target(self, node: fx.Node) -> Any:
        """Return what is called: a module's class, a function, or a method's name."""
        return type(self.module(node)) if node.op == "call_module" else node.target

    def kind(self, node: fx.Node) -> str:
        """Return what is called as people read it."""
        module = self.module(node)
        return kind_of(module) if module is not None else getattr(node.target, "__name__", str(node.target))

    def refusal(self, node: fx.Node, what: str = "") -> QuantizationError:
        """Return the error that names a call which has no kernel."""
        text = f"the native engine has no kernel for {scoped_name(node)} ({self.kind(node)}) {what}".rstrip()
        return QuantizationError(text, hint='use engine = "auto" or one of torch\'s engines for this model')

    def only_reader(self, node: fx.Node) -> fx.Node | None:
        """Return the one call that reads a result, None where there are several or it is the model's."""
        readers = list(node.users)
        return readers[0] if len(readers) == 1 and readers[0].op != "output" else None

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a result is no tensor: a size, or arithmetic on sizes."""
        return node.op not in {"placeholder", "output"} and "constant" in node.meta

    def rearranges(self, node: fx.Node) -> bool:
        """Whether a call gives its operand's values in another order, shape or selection."""
        return isinstance(self.module(node), _REARRANGING_MODULES) or self.target(node) in _REARRANGEMENTS

    def is_activation(self, node: fx.Node) -> bool:
        """Whether a call is a function of one value."""
        return activation_of(self.graph, node) is not None

    def is_alias(self, node: fx.Node) -> bool:
        """Whether a call returns its operand."""
        return isinstance(self.module(node), _ALIAS_MODULES) or self.target(node) in _ALIASES

    def settings(self, node: fx.Node, names: tuple[str, ...]) -> list[Any]:
        """Return a pooling call's settings, from its module or its arguments (all in the order of ``names``)."""
        module = self.module(node)
        if module is not None:
            return [getattr(module, name, None) for name in names]
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        return [given.get(name) for name in names]

    def rearranged(self, node: fx.Node, operands: dict[fx.Node, Any]) -> Any:
        """Run a call on other operands: a tensor, or a tuple of them."""

        def operand(each: fx.Node) -> Any:
            return operands[each] if each in operands else each.meta["constant"]

        args: Any = map_arg(node.args, operand)
        kwargs: Any = map_arg(node.kwargs, operand)
        module = self.module(node)
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_method":
            method, (first, *rest) = str(node.target), args
            return getattr(first.contiguous() if method == "view" else first, method)(*rest, **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)


def is_plain(node: fx.Node) -> bool:
    """Whether a call has two operands by position and nothing else (no ``alpha``, no ``out``)."""
    return len(node.args) == 2 and not node.kwargs


def is_concatenation(node: fx.Node) -> bool:
    """Whether a call joins images, or vectors, along their channels."""
    dimensions = len(node.meta.get("shape", ()))
    if node.target not in CONCATENATIONS or dimensions not in {2, 4}:
        return False
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return isinstance(node.args[0], list | tuple) and axis in (1, 1 - dimensions)


def parts_of(node: fx.Node) -> list[fx.Node]:
    """Return what a concatenation joins."""
    return list(node.args[0])  # type: ignore[arg-type]  # a list of calls: it is a concatenation


def whole_concatenations(graph: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Return for each concatenation the longest that begins with it, mostly itself."""
    found = [node for node in graph.graph.nodes if is_concatenation(node)]
    parts = {node: parts_of(node) for node in found}
    return {
        node: max(
            (each for each in found if parts[each][: len(parts[node])] == parts[node]), key=lambda n: len(parts[n])
        )
        for node in found
    }


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a call's result for a batch of two."""
    shape: tuple[int, ...] = node.meta["shape"]
    return shape


def pair(value: Any) -> tuple[int, int]:
    """Return a setting for height and width; None is 0."""
    return (int(value[0]), int(value[-1])) if isinstance(value, list | tuple) else (int(value or 0), int(value or 0))


class _Record(fx.Interpreter):
    """Notes each result's shape in ``meta["shape"]``, or the result in ``meta["constant"]`` where it is no tensor."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        elif not _has_tensors(value):
            n.meta["constant"] = value
        return value


def _has_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_tensors(each) for each in value)
    return isinstance(value, torch.Tensor)
