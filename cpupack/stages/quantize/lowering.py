"""Rewrites of the FP32 graph for INT8: conv + add (+ ReLU) as one operator, ReLU6 as a ReLU with a range up to 6."""

from __future__ import annotations

import torch
import torch.ao.nn.intrinsic as nni
from torch import fx, nn

from cpupack.graph.fused import ConvReLU6, with_relu
from cpupack.graph.names import calls

_FRESH_MODULES = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nni.ConvReLU2d, nni.ConvAdd2d, nni.ConvAddReLU2d)
"""Modules whose output is a new tensor, not a view of their input."""


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


def call_as_methods(graph_module: fx.GraphModule) -> None:
    """Call reshape and permute as methods, in place: torch keeps INT8 through the methods but not the functions."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in {torch.reshape, torch.permute}:
            node.op, node.target = "call_method", node.target.__name__
    graph_module.recompile()


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
    if not calls(graph_module, conv, (nn.Conv2d,)) or list(conv.users) != [add]:
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


def _is_fresh(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call writes a new tensor whatever it reads: a whitelist, since any other operator may return a view."""
    if node.op == "call_function" and node.target is torch.add:
        return True
    return calls(graph_module, node, _FRESH_MODULES)


def _owns_memory(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether no other call's output shares the memory of a call's output."""
    if calls(graph_module, node, (nn.ReLU,)):
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
    if len(readers) == 1 and calls(graph_module, readers[0], (nn.ReLU,)):
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
