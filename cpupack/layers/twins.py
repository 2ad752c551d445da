"""Finds the node of the FP32 graph that computes the same value as a node of the INT8 graph: its twin.

Quantization renames nodes, hides modules and joins several into one. But each node still reads the same values. So a
module is found by its path, and a function by its inputs.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import fx, nn

_PASSED_ON = (torch.quantize_per_tensor, torch.quantize_per_channel, torch.dequantize)
_CLAMP = "_relu6"


class Twins:
    """Finds the FP32 node of each INT8 node. ``find`` must be called with the nodes in the order of the graph."""

    def __init__(self, floats: fx.GraphModule) -> None:
        self._floats = floats
        self._of: dict[fx.Node, fx.Node] = {}
        self._taken: set[fx.Node] = set()
        self._calls: defaultdict[str, list[fx.Node]] = defaultdict(list)
        for node in floats.graph.nodes:
            if node.op == "call_module":
                self._calls[str(node.target)].append(node)
        self._order = {node: number for number, node in enumerate(floats.graph.nodes)}

    def set(self, node: fx.Node, twin: fx.Node) -> None:
        """Set the FP32 node of a node for which it is known: an input."""
        self._of[node] = twin

    def get(self, node: fx.Node) -> fx.Node | None:
        """Return the FP32 node that ``find`` returned for ``node``."""
        return self._of.get(node)

    def find(self, node: fx.Node, module: nn.Module | None) -> fx.Node | None:
        """Return the FP32 node whose value ``node`` computes, or None. ``module`` is the module that it calls."""
        twin = self._find(node, module)
        if twin is not None:
            self._of[node] = twin
        return twin

    def _find(self, node: fx.Node, module: nn.Module | None) -> fx.Node | None:
        if node.target in _PASSED_ON or (node.op == "call_method" and node.target in {"dequantize", "to"}):
            first = node.args[0]
            return self._of.get(first) if isinstance(first, fx.Node) else None
        if node.op == "get_attr":
            named = (each for each in self._order if each.op == "get_attr" and each.target == node.target)
            return next(named, None)
        if node.op == "call_module" and (name := str(node.target)) in self._calls:
            calls = self._calls[name]
            return self._joined(calls.pop(0) if len(calls) > 1 else calls[0], type(module).__name__)
        if is_clamp(node) and (name := str(node.target).removesuffix(_CLAMP)) in self._calls:
            return self._calls[name][0]
        if node.op in {"call_function", "call_method", "call_module"}:
            return self._by_inputs(node, module)
        return None

    def _joined(self, conv: fx.Node, kind: str) -> fx.Node:
        """Return the last of the calls that one operator runs: conv, the addition after it, and the ReLU after that."""
        if "Add" not in kind:
            return conv
        add = next(iter(conv.users))
        return next(iter(add.users)) if "ReLU" in kind else add

    def _by_inputs(self, node: fx.Node, module: nn.Module | None) -> fx.Node | None:
        read = {self._of[each] for each in node.all_input_nodes if each in self._of}
        if not read:
            return None
        nearest = min(read, key=lambda each: len(each.users))
        candidates = [
            each
            for each in sorted(nearest.users, key=self._order.__getitem__)
            if set(each.all_input_nodes) == read and each not in self._taken and each.op != "output"
        ]
        name = called(node, module)
        alike = [each for each in candidates if _alike(name, called(each, self._module(each)))]
        if not alike and len(candidates) != 1:
            return None
        twin = (alike or candidates)[0]
        self._taken.add(twin)
        if name.endswith("relu") and "relu" not in called(twin, self._module(twin)) and len(twin.users) == 1:
            twin = next(iter(twin.users))
        return twin

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._floats.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_clamp(node: fx.Node) -> bool:
    """Whether a node is the ReLU6 of a fused convolution. With 7-bit activations it is a separate call."""
    return node.op == "call_module" and str(node.target).endswith(_CLAMP)


def called(node: fx.Node, module: nn.Module | None) -> str:
    """Return the name of a node's function or module, in lower case and without in-place marks: ``add``, ``relu``."""
    if module is not None:
        inner = getattr(module, "call", None)  # a call that was hidden from torch so that it stays FP32
        name = getattr(inner, "__name__", type(inner).__name__) if callable(inner) else type(module).__name__
    else:
        name = str(getattr(node.target, "__name__", node.target)).removesuffix(".default")
    name = name.lower().strip("_")
    return name.removeprefix("i") if name in {"iadd", "imul", "isub"} else name


def _alike(one: str, other: str) -> bool:
    return one in other or other in one
