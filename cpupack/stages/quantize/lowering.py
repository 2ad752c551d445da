"""Rewrites of the FP32 graph for INT8: conv + add (+ ReLU) as one operator, and ReLU6 as a ReLU with a range up to 6.

Calls that torch cannot run in INT8, or runs wrongly, are hidden from torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.ao.nn.intrinsic as nni
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.fused import ConvReLU6, with_relu
from cpupack.graph.vocabulary import ADAPTIVE_POOLS, AVERAGE_POOLS, MAX_POOLS, SHAPES
from cpupack.stages.quantize.qconfig import FIXED_RANGES

_FRESH_MODULES = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nni.ConvReLU2d, nni.ConvAdd2d, nni.ConvAddReLU2d)
"""Modules whose output is a new tensor, not a view of their input."""
_SHARES_RANGE = (
    *SHAPES, *MAX_POOLS, *AVERAGE_POOLS, *ADAPTIVE_POOLS, nn.ReLU, torch.mean, F.interpolate, F.pad,
)  # fmt: skip
"""What gives values that may keep their operand's scale and zero point."""
_POOLS_OF_QNNPACK = (nn.AvgPool2d, nn.MaxPool2d, nn.MaxPool3d, nn.Softmax)
_INTERPOLATED = ("nearest", "bilinear")
"""The modes of ``F.interpolate`` that torch has in INT8."""


def lower_relu6(graph_module: fx.GraphModule, activation_bits: int) -> None:
    """Turn every fused conv + ReLU6 into what INT8 runs, in place.

    The statistics of the call are those after the ReLU6, so its range ends at or below 6. With 8 bits the
    requantization to that range clamps exactly where ReLU6 does, and conv + ReLU is all it takes. With 7 bits it clamps
    at 255, twice the range, so the ReLU6 stays a call of its own.
    """
    for node in list(graph_module.graph.nodes):
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, ConvReLU6):
            continue
        name = str(node.target)
        if activation_bits == 8:
            graph_module.add_submodule(name, with_relu(module[0]))
            continue
        graph_module.add_submodule(name, module[0])
        graph_module.add_submodule(f"{name}_relu6", module[1])
        with graph_module.graph.inserting_after(node):
            clamp = graph_module.graph.call_module(f"{name}_relu6")
        node.replace_all_uses_with(clamp)
        clamp.args = (node,)
        clamp.meta.update(node.meta)
    graph_module.recompile()


class InFloat(nn.Module):
    """A call that stays FP32. It is hidden from torch's lowering, which uses the type and ignores a missing qconfig."""

    def __init__(self, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.call(*args, **kwargs)


def keep_float(
    graph_module: fx.GraphModule, targets: Collection[Any], also: Callable[[fx.Node], bool] = lambda _: False
) -> None:
    """Hide the calls of ``targets`` (module classes, functions), and those that ``also`` says, in place."""
    for number, node in enumerate(list(graph_module.graph.nodes)):
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if type(module) in targets or also(node):
                graph_module.add_submodule(str(node.target), InFloat(module))
        elif node.op == "call_function" and (node.target in targets or also(node)):
            _hide(graph_module, node, node.target, number)
        elif node.op == "call_method" and node.target == "expand":
            # of a constant by the batch size, which a second trace cannot call
            _hide(graph_module, node, torch.Tensor.expand, number)
    graph_module.recompile()


def _hide(graph_module: fx.GraphModule, node: fx.Node, call: Any, number: int) -> None:
    name = f"in_float_{number}"
    graph_module.add_submodule(name, InFloat(call))
    node.op, node.target = "call_module", name


def call_as_methods(graph_module: fx.GraphModule) -> None:
    """Call reshape and permute as methods, in place: torch keeps INT8 through the methods but not the functions."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in {torch.reshape, torch.permute}:
            node.op, node.target = "call_method", node.target.__name__
    graph_module.recompile()


def is_wrong_arithmetic(engine: str) -> Callable[[fx.Node], bool]:
    """Return a function that finds sums and products that torch's INT8 computes wrongly.

    With a number, the result has the range of its operand, so x * 100 saturates. qnnpack accepts only equal shapes, so
    a constant of another shape is wrong too.
    """

    def wrong(node: fx.Node) -> bool:
        if node.target not in {torch.add, torch.mul}:
            return False
        if any(isinstance(each, int | float) for each in node.args):
            return True
        shapes = {each.meta.get("shape") for each in node.all_input_nodes}
        constant = any(each.op == "get_attr" for each in node.all_input_nodes)
        return engine == "qnnpack" and constant and len(shapes) > 1

    return wrong


def is_wrong_pooling(graph_module: fx.GraphModule, engine: str) -> Callable[[fx.Node], bool]:
    """Return what tells poolings and softmaxes that torch's INT8 gets wrong.

    qnnpack's averages count the padding and divide by the size of the kernel, whatever the module says, and its
    maximum takes neighbours without dilation. Its softmax over another dimension than the last one may raise,
    and it has no maximum of volumes.
    """

    def wrong(node: fx.Node) -> bool:
        if engine != "qnnpack" or not _is_module(graph_module, node, _POOLS_OF_QNNPACK):
            return False
        pool = graph_module.get_submodule(str(node.target))
        if isinstance(pool, nn.MaxPool3d):
            return True
        if isinstance(pool, nn.Softmax):
            return pool.dim != -1
        if isinstance(pool, nn.MaxPool2d):
            return any(step != 1 for step in _pair(pool.dilation))
        assert isinstance(pool, nn.AvgPool2d)
        return pool.divisor_override is not None or (any(_pair(pool.padding)) and not pool.count_include_pad)

    return wrong


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def is_fixed_in_cat(graph_module: fx.GraphModule) -> Callable[[fx.Node], bool]:
    """Return what tells sigmoids, softmaxes and the like that ``torch.cat`` joins to other values.

    The parts of a concatenation need one range, and torch takes the first one's for all. That of a sigmoid is fixed: 0
    to 1, which clips the others.
    """

    def wrong(node: fx.Node) -> bool:
        if not _is_module(graph_module, node, FIXED_RANGES):
            return False
        pending = [node]
        while pending:
            for reader in pending.pop().users:
                if reader.target is torch.cat:
                    return True
                called = type(graph_module.get_submodule(str(reader.target))) if reader.op == "call_module" else None
                if (called or reader.target) in _SHARES_RANGE:
                    pending.append(reader)
        return False

    return wrong


def is_interpolated_otherwise(node: fx.Node) -> bool:
    """Whether a call interpolates in a way that torch has in FP32 alone."""
    return node.target is F.interpolate and (node.args[3] if len(node.args) > 3 else "nearest") not in _INTERPOLATED


def own_constants(graph_module: fx.GraphModule) -> None:
    """Give each reader of a constant a ``get_attr`` of its own, right before it, in place.

    That is how torch retraces a graph, and statistics are matched by the order of its nodes.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op not in {"get_attr", "output"}:

            def own(each: fx.Node, reader: fx.Node = node) -> fx.Node:
                if each.op != "get_attr":
                    return each
                with graph.inserting_before(reader):
                    return graph.node_copy(each)

            node.args, node.kwargs = fx.node.map_arg(node.args, own), fx.node.map_arg(node.kwargs, own)
    for node in [each for each in graph.nodes if each.op == "get_attr" and not each.users]:
        graph.erase_node(node)
    graph_module.recompile()


def fuse_conv_add(graph_module: fx.GraphModule) -> int:
    """Turn conv + add (+ ReLU) into one call with the other summand as accumulator, in place; return how many.

    ``quantized::conv2d_add[_relu]`` writes its result into the accumulator's memory, and FX does not check who else
    reads it. Here the accumulator must be a tensor of its own whose every other reader comes before the convolution
    because the convolution depends on it, and whose memory the convolution does not read itself.
    """
    fused = 0
    for add in list(graph_module.graph.nodes):
        if add.op != "call_function" or add.target is not torch.add:
            continue
        for conv, accumulator in (add.args, reversed(add.args)):
            if _can_accumulate(graph_module, add, conv, accumulator):
                _replace(graph_module, add, conv, accumulator)
                fused += 1
                break
    graph_module.graph.lint()
    graph_module.recompile()
    return fused


def _can_accumulate(graph_module: fx.GraphModule, add: fx.Node, conv: object, accumulator: object) -> bool:
    if not (isinstance(conv, fx.Node) and isinstance(accumulator, fx.Node)) or conv is accumulator:
        return False
    if not _is_module(graph_module, conv, (nn.Conv2d,)) or list(conv.users) != [add]:
        return False
    if _may_share(graph_module, conv.all_input_nodes[0], accumulator) or not _owns_memory(graph_module, accumulator):
        return False
    if conv.meta.get("shape") != accumulator.meta.get("shape"):
        return False  # a broadcast sum
    ancestors = _ancestors(conv)
    pending = [accumulator]
    while pending:  # the accumulator, and whatever may be a view of it
        for reader in pending.pop().users:
            if reader is not add and reader not in ancestors:
                return False
            if reader is not add and not _is_fresh(graph_module, reader):
                pending.append(reader)
    return True


def _is_module(graph_module: fx.GraphModule, node: fx.Node, types: tuple[type[nn.Module], ...]) -> bool:
    return node.op == "call_module" and type(graph_module.get_submodule(str(node.target))) in types


def _is_fresh(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call writes a new tensor whatever it reads: a whitelist, since any other operator may return a view."""
    if node.op == "call_function" and node.target is torch.add:
        return True
    return _is_module(graph_module, node, _FRESH_MODULES)


def _owns_memory(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether no other call's output shares the memory of a call's output."""
    if _is_module(graph_module, node, (nn.ReLU,)):
        # An in-place ReLU returns its input's memory, so that must be a tensor of its own that only the ReLU reads.
        source = node.args[0]
        return isinstance(source, fx.Node) and list(source.users) == [node] and _owns_memory(graph_module, source)
    return _is_fresh(graph_module, node)


def _may_share(graph_module: fx.GraphModule, node: fx.Node, other: fx.Node) -> bool:
    """Whether ``node`` is ``other`` or may be a view of it, or of what it was made from in place."""
    pending, seen = [node], set[fx.Node]()
    while pending:
        each = pending.pop()
        if each is other:
            return True
        if each not in seen and not _is_fresh(graph_module, each):
            seen.add(each)
            pending.extend(each.all_input_nodes)
    return False


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = list(node.all_input_nodes)
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending.extend(each.all_input_nodes)
    return found


def _replace(graph_module: fx.GraphModule, add: fx.Node, conv: fx.Node, accumulator: fx.Node) -> None:
    name = str(conv.target)
    module = graph_module.get_submodule(name)
    readers = list(add.users)
    last = add
    fused: nn.Module
    if len(readers) == 1 and _is_module(graph_module, readers[0], (nn.ReLU,)):
        last = readers[0]
        fused = nni.ConvAddReLU2d(module, torch.add, nn.ReLU())
    else:
        fused = nni.ConvAdd2d(module, torch.add)
    graph_module.add_submodule(name, fused)
    with graph_module.graph.inserting_after(last):
        call = graph_module.graph.call_module(name, (conv.args[0], accumulator))
    call.meta.update(last.meta)
    last.replace_all_uses_with(call)
    for node in (last, add, conv) if last is not add else (add, conv):
        graph_module.graph.erase_node(node)
