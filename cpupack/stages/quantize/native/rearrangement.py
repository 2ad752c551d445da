"""Calls that only move values, as one module of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Rearrangement(nn.Module):
    """Calls that only move values, one after the other: each a function and its arguments after the tensor."""

    def __init__(self, *calls: tuple[Any, tuple[Any, ...]]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for function, arguments in self.calls:
            x = function(x, *arguments)
        return x
