"""The one form of recurrent layers in a canonical graph: one layer, the batch first, all results side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LAYERS = (nn.LSTM, nn.GRU, nn.RNN)


class Recurrent(nn.Module):
    """An LSTM, GRU or RNN of one layer, in one direction or in both.

    Takes ``(n, steps, inputs)``, and where it does not start from zeros the first hidden values ``(n, directions,
    outputs)`` and an LSTM's first cell values ``(n, directions, units)``. Returns all hidden values ``(n, steps,
    directions * outputs)``, the last ones ``(n, directions, outputs)``, and an LSTM's last cell values.
    """

    def __init__(self, layer: nn.LSTM | nn.GRU | nn.RNN) -> None:
        super().__init__()
        assert layer.num_layers == 1
        assert layer.batch_first
        self.layer = layer

    @property
    def kind(self) -> str:
        """``LSTM``, ``GRU`` or ``RNN``."""
        return type(self.layer).__name__

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor | None = None, cells: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        layer: Any = self.layer
        if hidden is None:
            y, last = layer(x)
        else:
            first = hidden.transpose(0, 1).contiguous()
            y, last = layer(x, first if cells is None else (first, cells.transpose(0, 1).contiguous()))
        return (y, *(each.transpose(0, 1) for each in (last if isinstance(last, tuple) else (last,))))


def weights_of_recurrent(module: Recurrent) -> dict[str, torch.Tensor]:
    """Return the matrices of a layer by their parameters' names in ``module``."""
    return {name: value.detach() for name, value in module.named_parameters() if ".weight_" in f".{name}"}
