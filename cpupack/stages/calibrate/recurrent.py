"""Measures what codes of 8 bits cost recurrent layers, also with inputs of 16 bits: their error adds up over steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import RecurrentSqnr, Samples
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.weight_grid import LARGEST_CODE, weight_scales

_SAMPLES = 8


def measure_recurrent(module: nn.Module | None, samples: Samples) -> dict[str, RecurrentSqnr]:
    """Return the SQNR in dB of each recurrent layer's outputs when only that layer has codes of fewer bits.

    ``module`` is a graph, run on a few of ``samples``; keys are names of its calls. Empty for other modules.
    """
    if not isinstance(module, fx.GraphModule) or not any(isinstance(each, Recurrent) for each in module.modules()):
        return {}
    measured = _Measured(module)
    with torch.inference_mode():
        measured.run(samples.spread(_SAMPLES).tensor(slice(None)))
    return measured.sqnr_db


class _Measured(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.sqnr_db: dict[str, RecurrentSqnr] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, Recurrent):
            args, _ = self.fetch_args_kwargs_from_env(n)
            narrow, wide = (with_codes(module, *args, wide_inputs=each) for each in (False, True))
            whole = value[0].numpy()
            self.sqnr_db[n.name] = RecurrentSqnr(sqnr_db(whole, narrow.numpy()), sqnr_db(whole, wide.numpy()))
        return value


def with_codes(module: Recurrent, x: torch.Tensor, *others: torch.Tensor, wide_inputs: bool = False) -> torch.Tensor:
    """Return all hidden values ``(n, steps, directions * outputs)`` as the engine computes them with codes of 8 bits.

    Takes what the layer takes. With ``wide_inputs`` the inputs and their weights are not rounded: 16 bits lose next to
    nothing beside the 8 of the hidden values.
    """
    layer: Any = module.layer
    lengths, first = (others[0], others[1:]) if module.has_lengths else (None, others)
    hidden, cells = (*first, None, None)[:2]
    found = []
    for number, group in enumerate(layer.all_weights):
        states = [None if each is None else each[:, number] for each in (hidden, cells)]
        outputs = _one_way(layer, group, _turned(x, lengths) if number else x, *states, wide_inputs=wide_inputs)
        found.append(_turned(outputs, lengths) if number else outputs)
    y = torch.cat(found, 2)
    if lengths is None:
        return y
    return y * (torch.arange(y.shape[1]) < lengths[:, None])[..., None]


def _turned(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Return sequences from their last step to their first one; what comes after a sequence stays."""
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1])
    last = lengths.long()[:, None] - 1
    places = torch.where(steps <= last, last - steps, steps)
    return x.gather(1, places[..., None].expand(x.shape))


def _one_way(
    layer: Any,
    group: list[torch.Tensor],
    x: torch.Tensor,
    hidden: torch.Tensor | None,
    cells: torch.Tensor | None,
    *,
    wide_inputs: bool,
) -> torch.Tensor:
    mode, units = layer.mode, layer.hidden_size
    inputs, recurrent = group[0].detach() if wide_inputs else _rounded_weight(group[0]), _rounded_weight(group[1])
    projection = _rounded_weight(group[-1]) if layer.proj_size else None
    one, two = group[2:4] if layer.bias else (torch.zeros(len(inputs)), torch.zeros(len(inputs)))
    h = torch.zeros(len(x), recurrent.shape[1]) if hidden is None else hidden
    c = torch.zeros(len(x), units) if cells is None else cells
    from_inputs = (x if wide_inputs else _rounded(x)) @ inputs.T + one
    found = []
    for step in range(x.shape[1]):
        given, own = from_inputs[:, step], _rounded(h) @ recurrent.T + two
        if mode == "LSTM":
            i, f, g, o = (given + own).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            h = h if projection is None else _rounded(h) @ projection.T
        elif mode == "GRU":
            (r, z, n), (own_r, own_z, own_n) = given.chunk(3, 1), own.chunk(3, 1)
            new = (n + (r + own_r).sigmoid() * own_n).tanh()
            h = new + (z + own_z).sigmoid() * (h - new)
        else:
            h = (given + own).tanh() if mode == "RNN_TANH" else (given + own).relu()
        found.append(h)
    return torch.stack(found, 1)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Return rows of values as their codes hold them."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (x / scale).round() * scale


def _rounded_weight(weight: torch.Tensor) -> torch.Tensor:
    scales = weight_scales(weight.detach(), 0)
    return (weight.detach() / scales).round().clamp(-LARGEST_CODE, LARGEST_CODE) * scales
