"""The calls of a graph, for lowering: the called function or module, its settings, the readers of the result."""

from __future__ import annotations

from collections.abc import Collection, Container
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn
from torch.fx.node import map_arg

from cpupack.errors import QuantizationError
from cpupack.graph.names import core, kind_of, scoped_name
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.vocabulary import CONVOLUTIONS, SHAPES, UNFOLD
from cpupack.stages.quantize.native.functions import activation_of, constant_of
from cpupack.stages.quantize.native.rearrangement import Rearrangement

_REARRANGEMENTS = (
    *SHAPES,
    *(
        getattr(getattr(torch.ops.aten, name), overload)
        for name, overload in (
            ("roll", "default"), ("flip", "default"), ("rot90", "default"), ("unfold", "default"),
            ("diagonal", "default"), ("repeat", "default"), ("tile", "default"), ("repeat_interleave", "self_int"),
            ("index_select", "default"), ("index", "Tensor"), ("reshape", "default"),
        )
    ),
)  # fmt: skip
_WITHOUT_INTEGERS = (F.interpolate, F.pad, UNFOLD)
"""Functions that take no integers: numbers of elements are given to them as float64, exact up to 2^53."""
_NEAREST = ("nearest", "nearest-exact")


class Calls:
    """The calls of ``graph``, run once on a batch of two of inputs of ``input_shapes`` to know every size.

    ``apart`` has the names of calls that stay FP32: no kernel for codes includes them.
    """

    def __init__(
        self, graph: fx.GraphModule, *input_shapes: tuple[int, ...], apart: Collection[str] = frozenset()
    ) -> None:
        self.graph, self._input_shapes, self.apart = graph, input_shapes, apart
        types = [each.meta.get("dtype", torch.float32) for each in graph.graph.nodes if each.op == "placeholder"]
        with torch.inference_mode():
            _Record(graph).run(
                *(torch.zeros(2, *shape, dtype=each) for shape, each in zip(input_shapes, types, strict=True))
            )

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that is called, None for a function."""
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def target(self, node: fx.Node) -> Any:
        """Return what is called: a module's class, a function, or a method's name."""
        return type(self.module(node)) if node.op == "call_module" else node.target

    def kind(self, node: fx.Node) -> str:
        """Return the name of the called function or module, for messages."""
        module = self.module(node)
        if module is not None:
            return kind_of(module)
        name = str(getattr(node.target, "__name__", node.target))
        return name.removesuffix(".default")  # of an operator of cpupack's own

    def refusal(self, node: fx.Node, what: str = "") -> Refusal:
        """Return the error that names a call which has no kernel."""
        return Refusal(node, self.kind(node), what)

    def only_reader(self, node: fx.Node) -> fx.Node | None:
        """Return the only call that reads a result. None if there are several, if it is the model's, or in FP32."""
        readers = [each for each in node.users if each.name not in self.apart]
        return readers[0] if len(readers) == len(node.users) == 1 and readers[0].op != "output" else None

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a result is not a tensor: a size, or arithmetic on sizes."""
        return node.op not in {"placeholder", "output"} and "constant" in node.meta

    def counts_samples(self, node: fx.Node) -> bool:
        """Whether a call reads a size that changes with the batch."""
        return any(self.is_constant(each) and depends_on_batch(each) for each in node.all_input_nodes)

    def rearranges(self, node: fx.Node) -> bool:
        """Whether a call gives its operand's values in another order, shape or selection."""
        target = self.target(node)
        if target is Rearrangement:
            return True
        if target is F.interpolate:
            return argument(node, 3, "mode", "nearest") in _NEAREST
        if target is F.pad:
            given: Any = node.args[1]
            return bool(argument(node, 2, "mode", "constant") != "constant" or min(given) < 0 >= max(given))
        return target in _REARRANGEMENTS

    def observed(self, node: fx.Node, names: Container[str]) -> fx.Node:
        """Return the call whose values this one only moves, where ``names`` has this one not; else this one."""
        while node.name not in names and node.op.startswith("call") and self.rearranges(node):
            sources = [each for each in node.all_input_nodes if not self.is_constant(each)]
            if not sources:
                break
            node = sources[0]
        return node

    def across_samples(self) -> list[fx.Node]:
        """Return the calls that take or give a tensor whose first dimension is not the batch: run on three samples."""
        sizes = _Sizes(self.graph)
        with torch.inference_mode():
            sizes.run(*(torch.zeros(3, *shape) for shape in self._input_shapes))
        apart = {
            node
            for node, first in sizes.first.items()
            if "shape" in node.meta and (shape_of(node)[:1] != (2,) or first != 3)
        }
        return [
            node
            for node in self.graph.graph.nodes
            if node.op.startswith("call") and (node in apart or any(each in apart for each in node.all_input_nodes))
        ]

    def takes_floats(self, node: fx.Node) -> bool:
        """Whether a call computes on tensors of float32 alone."""
        return all(
            each.op == "get_attr" or each.meta.get("dtype", torch.float32) == torch.float32
            for each in node.all_input_nodes
        )

    def of_other_types(self) -> list[fx.Node]:
        """Return the calls that take or give numbers that float32 does not hold: complex ones, and of other precisions.

        A move of them would keep the real parts alone.
        """
        other = {
            node
            for node in self.graph.graph.nodes
            if (dtype := node.meta.get("dtype")) is not None and dtype != torch.float32
            and (dtype.is_complex or dtype.is_floating_point)
        }  # fmt: skip
        return [
            node
            for node in self.graph.graph.nodes
            if node.op.startswith("call") and (node in other or any(each in other for each in node.all_input_nodes))
        ]

    def beyond_floats(self) -> list[fx.Node]:
        """Return the calls that take or give what no buffer has: another type than float32 (a comparison, indices), one
        number of each sample without a dimension, no value at all. A recurrent layer may take lengths."""
        other = {
            node
            for node in self.graph.graph.nodes
            if node.op != "get_attr"
            and (
                node.meta.get("dtype", torch.float32) != torch.float32
                or ("shape" in node.meta and (len(shape_of(node)) < 2 or 0 in shape_of(node)))
            )
        }
        return [
            node
            for node in self.graph.graph.nodes
            if node.op.startswith("call")
            and (
                node in other
                or (
                    any(each in other for each in node.all_input_nodes) and not isinstance(self.module(node), Recurrent)
                )
            )
        ]

    def is_convolution(self, node: fx.Node) -> bool:
        """Whether a call is of an INT8 convolution, which can take zeros around its image."""
        module = self.module(node)
        return module is not None and type(core(module)) in CONVOLUTIONS and node.name not in self.apart

    def is_activation(self, node: fx.Node) -> bool:
        """Whether a call is a function of one value."""
        return activation_of(self.graph, node) is not None

    def constant(self, operand: object) -> torch.Tensor | None:
        """Return a tensor that belongs to the graph, or a number as one; None for what is computed."""
        return constant_of(self.graph, operand)

    def attribute(self, node: fx.Node) -> torch.Tensor:
        """Return the tensor of a ``get_attr`` node as the graph has it."""
        found: Any = self.graph
        for name in str(node.target).split("."):
            found = getattr(found, name)
        assert isinstance(found, torch.Tensor)
        return found

    def settings(self, node: fx.Node, names: tuple[str, ...]) -> list[Any]:
        """Return settings of a pooling module, None for settings that it does not have."""
        return [getattr(self.module(node), name, None) for name in names]

    def rearranged(self, node: fx.Node, operands: dict[fx.Node, Any]) -> Any:
        """Run a call on other operands: a tensor, or a tuple of them."""

        module = self.module(node)
        called = [each for each, _ in module.calls] if isinstance(module, Rearrangement) else [self.target(node)]
        floats = any(each in _WITHOUT_INTEGERS for each in called)

        def operand(each: fx.Node) -> Any:
            if each.op == "get_attr":
                return getattr(self.graph, str(each.target))  # the indices of a selection
            if each not in operands:
                return each.meta["constant"]
            return operands[each].double() if floats else operands[each]

        args: Any = map_arg(node.args, operand)
        kwargs: Any = map_arg(node.kwargs, operand)
        target: Any = module or node.target
        result = target(*args, **kwargs)
        return result.long() if floats else result


def is_batch_size(node: fx.Node) -> bool:
    """Whether a call asks for the first dimension of a tensor that has the batch there."""
    asks = node.target == "size" or node.target is torch.ops.aten.sym_size.int
    return asks and node.args[1:] == (0,) and shape_of(node.all_input_nodes[0])[:1] == (2,)


def depends_on_batch(node: fx.Node) -> bool:
    """Whether a number was computed from the size of the batch."""
    if is_batch_size(node):
        return True
    return any("constant" in each.meta and depends_on_batch(each) for each in node.all_input_nodes)


def argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    """Return an argument of a call by its place or its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def is_plain(node: fx.Node) -> bool:
    """Whether a call has two operands by position and nothing else."""
    return len(node.args) == 2 and not node.kwargs


def is_concatenation(node: fx.Node) -> bool:
    """Whether a call joins images, vectors or videos along their channels."""
    dimensions = len(node.meta.get("shape", ()))
    return node.target is torch.cat and dimensions in {2, 4, 5} and argument(node, 1, "dim", 0) in (1, 1 - dimensions)


def parts_of(node: fx.Node) -> list[fx.Node]:
    """Return what a concatenation joins."""
    return list(node.args[0])  # type: ignore[arg-type]  # a list of calls: it is a concatenation


def whole_concatenations(graph: fx.GraphModule, apart: Collection[str]) -> dict[fx.Node, fx.Node]:
    """Return for each concatenation of codes the longest one that begins with it, which is mostly itself."""
    found = [node for node in graph.graph.nodes if is_concatenation(node) and node.name not in apart]
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


Triple = tuple[int, int, int]
"""A setting for frames, rows and columns."""


def triple(value: Any, axes: int, other: int) -> Triple:
    """Return a setting of a layer over ``axes`` dimensions for frames, rows and columns: ``other`` for those before.

    None is 0.
    """
    own = [int(each) for each in value] if isinstance(value, list | tuple) else [int(value or 0)] * axes
    one, two, three = [*[other] * (3 - axes), *(own * axes if len(own) == 1 else own)]
    return one, two, three


def lengths_of(shape: tuple[int, ...]) -> Triple:
    """Return frames, height and width of a tensor ``(n, channels, ...)``."""
    one, two, three = [*[1] * (5 - len(shape)), *shape[2:]]
    return one, two, three


def pair(value: Any) -> tuple[int, int]:
    """Return a setting for height and width; None is 0."""
    return (int(value[0]), int(value[-1])) if isinstance(value, list | tuple) else (int(value or 0), int(value or 0))


class Refusal(QuantizationError):  # noqa: N818 - not an error: the build continues
    """The engine has no kernel for the call ``node``. ``what`` names the unsupported feature."""

    def __init__(self, node: fx.Node, kind: str, what: str = "") -> None:
        self.node, self.what = node, what
        super().__init__(
            f"the native engine has no kernel for {scoped_name(node)} ({kind}) {what}".rstrip(),
            hint='use engine = "auto" or one of torch\'s engines for this model',
        )


class _Sizes(fx.Interpreter):
    """Keeps the size of each computed tensor's first dimension, 0 for a single number."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.first: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and n.op != "get_attr":
            self.first[n] = len(value) if value.ndim else 0
        return value


class _Record(fx.Interpreter):
    """Notes each result's shape and type in ``meta``, or the result in ``meta["constant"]`` where it is no tensor."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta.pop("shape", None)  # capture's, which is None where there is no tensor
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
            n.meta["dtype"] = value.dtype
        elif not _has_tensors(value):
            n.meta["constant"] = value
        return value


def _has_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_tensors(each) for each in value)
    return isinstance(value, torch.Tensor)
