"""The one form of recurrent layers in a canonical graph: one layer, the batch first, all results side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

LAYERS = (nn.LSTM, nn.GRU, nn.RNN)


class Recurrent(nn.Module):
    """An LSTM, GRU or RNN of one layer, in one direction or in both.

    Takes ``(n, steps, inputs)``, with ``has_lengths`` how many steps each sequence has ``(n,)``, and where it does not
    start from zeros the first hidden values ``(n, directions, outputs)`` and an LSTM's first cell values ``(n,
    directions, units)``. Returns all hidden values ``(n, steps,
    directions * outputs)``, the last ones ``(n, directions, outputs)``, and an LSTM's last cell values.
    """

    def __init__(self, layer: nn.LSTM | nn.GRU | nn.RNN, *, has_lengths: bool = False) -> None:
        super().__init__()
        assert layer.num_layers == 1
        assert layer.batch_first
        self.layer, self.has_lengths = layer, has_lengths

    @property
    def kind(self) -> str:
        """``LSTM``, ``GRU`` or ``RNN``."""
        return type(self.layer).__name__

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        lengths, states = (others[0], others[1:]) if self.has_lengths else (None, others)
        first: Any = tuple(each.transpose(0, 1).contiguous() for each in states)
        hx = None if not first else first[0] if len(first) == 1 else first
        if lengths is None:
            layer: Any = self.layer
            y, last = layer(x, hx)
        else:
            y, last = run_lengths(self.layer, x, lengths, hx)
        return (y, *(each.transpose(0, 1) for each in (last if isinstance(last, tuple) else (last,))))


class RecurrentOfSeveral(Recurrent):
    """A recurrent layer over several sequences of each sample: all tensors have these as their second dimension."""

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = super().forward(*(each.flatten(0, 1) for each in (x, *others)))
        return tuple(each.unflatten(0, x.shape[:2]) for each in found)


def run_lengths(layer: Any, x: torch.Tensor, lengths: torch.Tensor, hx: Any = None) -> tuple[torch.Tensor, Any]:
    """Return what torch gives for packed sequences: all hidden values, zeros from each length on, and the last states.

    ``x`` is ``(n, steps, inputs)``, ``lengths`` ``(n,)`` from 0 to ``steps``, ``hx`` as the layer takes it. A sequence
    without steps ends with the states with which it begins. Raises ValueError for other lengths.
    """
    steps, counts = x.shape[1], lengths.to(torch.int64)
    if torch._C._get_tracing_state() is None and bool(((counts < 0) | (counts > steps)).any()):
        raise ValueError(f"lengths of packed sequences are from 0 to {steps}, not {counts.tolist()}")
    packed = pack_padded_sequence(x, counts.clamp(1, steps).cpu(), batch_first=True, enforce_sorted=False)
    y, last = layer(packed, hx)
    y, _ = pad_packed_sequence(y, batch_first=True, total_length=steps)
    has_steps = (counts > 0)[None, :, None]
    several = isinstance(last, tuple)
    firsts = (None,) * 2 if hx is None else hx if several else (hx,)
    ends = tuple(
        torch.where(has_steps, each, torch.zeros_like(each) if first is None else first)
        for each, first in zip(last if several else (last,), firsts, strict=False)
    )
    return torch.where(has_steps.transpose(0, 1), y, torch.zeros_like(y)), ends if several else ends[0]


def weights_of_recurrent(module: Recurrent) -> dict[str, torch.Tensor]:
    """Return the matrices of a layer by their parameters' names in ``module``."""
    return {name: value.detach() for name, value in module.named_parameters() if ".weight_" in f".{name}"}
