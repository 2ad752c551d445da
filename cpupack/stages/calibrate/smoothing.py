"""Brings the channels of tokens to nearer sizes before they become codes, where a linear layer then loses less.

In a transformer a few channels are many times as large as the others, which share few codes then. Divided by a number
of its own, each channel has more codes; the weights are multiplied with it, so that the layer computes the same (Xiao
et al. 2022). The engine gives each token a scale at run time, and divides in the same pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cpupack.artifacts import Samples
from cpupack.graph.names import core
from cpupack.graph.weight_grid import round_to_grid

_SAMPLES, _ROWS = 8, 256
_SHARES = (0.35, 0.5, 0.65)
"""How much of the difference between channels goes from the tokens to the weights."""
_LEAST_GAIN_DB = 0.5
"""Below it the division is not worth its time."""


def measure_divisors(module: nn.Module | None, samples: Samples) -> dict[str, torch.Tensor]:
    """Return what each input channel of linear layers is divided by, float32 ``(in,)``, by the names of the calls.

    ``module`` is a graph, run on a few of ``samples``. Layers that read the same tensor have the same divisors. Empty
    for other modules, and where no layer loses at least 0.5 dB less.
    """
    if not isinstance(module, fx.GraphModule):
        return {}
    measured = _Measured(module)
    if measured.readers:
        with torch.inference_mode():
            measured.run(samples.spread(_SAMPLES).tensor(slice(None)))
    return measured.divisors


class _Measured(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.divisors: dict[str, torch.Tensor] = {}
        self.readers: dict[fx.Node, list[fx.Node]] = {}
        """The linear layers that read each tensor."""
        for node in module.graph.nodes:
            if node.op == "call_module" and type(core(module.get_submodule(str(node.target)))) is nn.Linear:
                self.readers.setdefault(node.all_input_nodes[0], []).append(node)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.readers and isinstance(value, torch.Tensor) and value.ndim > 2:
            layers = [core(self.submodules[str(each.target)]) for each in self.readers[n]]
            weight = torch.cat([each.weight.detach() for each in layers])  # type: ignore[operator]
            found = divisors_of(value.detach().reshape(-1, value.shape[-1]).float(), weight.float())
            if found is not None:
                self.divisors |= dict.fromkeys((each.name for each in self.readers[n]), found)
        return value


def divisors_of(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """Return the divisors of the channels of ``rows (n, in)`` with which ``weight (out, in)`` loses least.

    None where that is less than 0.5 dB better than without. The values of the rows must be finite for any.
    """
    largest, weights = rows.abs().amax(0), weight.abs().amax(0)
    if not (bool(torch.isfinite(largest).all()) and float(largest.max()) > 0 and float(weights.max()) > 0):
        return None
    # A channel without values, or without weights, is not divided by anything extreme.
    largest, weights = largest.clamp(min=1e-3 * float(largest.max())), weights.clamp(min=1e-3 * float(weights.max()))
    some = rows[:: max(1, len(rows) // _ROWS)]
    wanted = some @ weight.T
    least, best = _error(some, weight, wanted) / 10 ** (_LEAST_GAIN_DB / 10), None
    for share in _SHARES:
        divisors = largest**share / weights ** (1 - share)
        divisors = divisors / divisors.log().mean().exp()
        error = _error(some / divisors, weight * divisors, wanted)
        if error < least:
            least, best = error, divisors
    return best


def _error(rows: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the squared error of a layer in INT8, each row with a scale of its own."""
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-30)
    zero_point = torch.round(-low / scale)
    values = (torch.clamp(torch.round(rows / scale + zero_point), 0, 255) - zero_point) * scale
    return float((values @ round_to_grid(weight, 0).T - wanted).square().sum())
