"""Tensors of classes of one's own, as torchvision and fastai have them: captured as the plain tensors that they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cpupack.errors import ModelError
from helpers.captured import Net, captured


class Named(torch.Tensor):
    """A tensor that carries no more than its class."""


class Doubled(torch.Tensor):
    """A tensor that is twice as much as torch says after each ReLU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result + result if func is torch.relu else result


def test_a_class_of_tensors_is_left_out() -> None:
    def forward(net: Net, x: torch.Tensor) -> Any:
        named = nn.functional.linear(x, net.weight.as_subclass(Named)).relu()
        return net.last(named.as_subclass(torch.Tensor))

    captured(Net(forward, last=nn.Linear(4, 3), weight=nn.Parameter(torch.randn(4, 6))), (6,))


def test_a_class_that_computes_in_another_way_is_refused() -> None:
    net = Net(
        lambda net, x: net.last(torch.relu(x.as_subclass(Doubled)).as_subclass(torch.Tensor)), last=nn.Linear(6, 3)
    )
    with pytest.raises(ModelError, match="differs from the model"):
        captured(net, (6,))
