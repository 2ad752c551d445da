"""Measures what linear layers read: rows of it, and by what its channels are best divided before they become codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cpupack.artifacts import Samples
from cpupack.graph.names import core
from cpupack.stages.calibrate.smoothing import divisors_of

_SAMPLES = 8
_KEPT = 64
"""Rows of each tensor that are kept to compare the forms of the layers that read it."""


def measure_linear(
    module: nn.Module | None, samples: Samples
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return what the linear layers of a graph read on a few of ``samples``, by the names of the calls.

    First what each input channel is divided by, float32 ``(in,)``, of layers that lose at least 0.5 dB less so; then
    rows of the activations, float32 ``(n, in)``. Layers that read the same tensor have the same divisors and rows. Both
    are empty for modules that are no graph.
    """
    if not isinstance(module, fx.GraphModule):
        return {}, {}
    measured = _Measured(module)
    if measured.readers:
        with torch.inference_mode():
            measured.run(samples.spread(_SAMPLES).tensor(slice(None)))
    return measured.divisors, measured.rows


class _Measured(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.divisors: dict[str, torch.Tensor] = {}
        self.rows: dict[str, torch.Tensor] = {}
        self.readers: dict[fx.Node, list[fx.Node]] = {}
        """The linear layers that read each tensor."""
        for node in module.graph.nodes:
            if node.op == "call_module" and type(core(module.get_submodule(str(node.target)))) is nn.Linear:
                self.readers.setdefault(node.all_input_nodes[0], []).append(node)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.readers and isinstance(value, torch.Tensor) and value.ndim > 1:
            self._measure(n, value.detach().reshape(-1, value.shape[-1]).float())
        return value

    def _measure(self, n: fx.Node, rows: torch.Tensor) -> None:
        names = [each.name for each in self.readers[n]]
        # An odd step: with an even one, each sample would show the same few of its tokens.
        some = rows[:: max(1, -(-len(rows) // _KEPT)) | 1].clone()
        if bool(torch.isfinite(some).all()):
            self.rows |= dict.fromkeys(names, some)
        layers = [core(self.submodules[str(each.target)]) for each in self.readers[n]]
        weight = torch.cat([each.weight.detach() for each in layers])  # type: ignore[operator]  # a Parameter
        found = divisors_of(rows, weight.float())
        if found is not None:
            self.divisors |= dict.fromkeys(names, found)
