"""Finds the layers whose weights corrections may change: modules called once, with weights that INT8 rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx, nn

from cpupack.graph.fused import CONVS, TRANSPOSED_CONVS
from cpupack.graph.names import core, is_within

Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class Layer:
    """One call of a module in a fused graph. ``weighted`` is the module with weights, inside the chain ``module``."""

    node: fx.Node
    module: nn.Module
    weighted: Weighted
    channel_axis: int | None

    @property
    def after(self) -> Sequence[nn.Module]:
        """The modules of the chain that run after the weighted one."""
        return list(self.module)[1:] if self.module is not self.weighted else []  # type: ignore[call-overload]

    @property
    def has_spatial_axes(self) -> bool:
        return not isinstance(self.weighted, nn.Linear)


def find_layers(graph: fx.GraphModule, skip: Collection[str], *, per_channel: bool) -> dict[fx.Node, Layer]:
    """Return the layers that will run in INT8, by their call, in the order of execution.

    A module that is called twice is left out, because one correction cannot suit both calls.
    """
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    found = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or calls[node.target] > 1 or is_within(str(node.target), skip):
            continue
        module = graph.get_submodule(str(node.target))
        weighted = core(module)
        if type(weighted) in (*CONVS, nn.Linear):
            found[node] = Layer(node, module, weighted, 0 if per_channel else None)  # type: ignore[arg-type]  # as just tested
        elif type(weighted) in TRANSPOSED_CONVS:
            found[node] = Layer(node, module, weighted, None)  # type: ignore[arg-type]  # it has the same attributes
    return found
