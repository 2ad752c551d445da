"""The networks of tiny16.toml and tiny224.toml: almost no work, so a server's own CPU time can be seen beside it."""

from __future__ import annotations

import torch
from torch import nn


def tiny16() -> nn.Module:
    """Return a classifier of 10 classes for 3 x 16 x 16."""
    return _net(stride=4)


def tiny224() -> nn.Module:
    """Return a classifier of 10 classes for 3 x 224 x 224, whose one convolution looks at each pixel once."""
    return _net(stride=16)


def _net(stride: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, stride, stride=stride), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
