"""The networks of tiny16.toml and tiny224.toml, with almost no work, so that a server's own CPU time can be seen beside
it; and of kept.toml, whose layers stay FP32.
"""

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


class Kept(nn.Module):
    """Ten convolutions that ``kept.toml`` keeps in FP32, between two in INT8, on images of 56 x 56."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.small = nn.Conv2d(64, 64, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(64, 256, 1), nn.Conv2d(256, 64, 1)
        self.each = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.groups = nn.Conv2d(64, 64, 3, padding=1, groups=4)
        self.down, self.up = nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ConvTranspose2d(128, 64, 2, stride=2)
        self.head, self.few = nn.Conv2d(64, 18, 1), nn.Conv2d(64, 4, 3, padding=1)
        self.large, self.last = nn.Conv2d(3, 32, 7, stride=2, padding=3), nn.Conv2d(32, 16, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return two maps of 56 x 56, and a vector."""
        y = self.stem(x)
        for layer in (self.small, self.wide, self.narrow, self.each, self.groups, self.down, self.up):
            y = layer(torch.relu(y))
        y = torch.relu(y)
        return self.head(y), self.few(y), self.last(self.large(x)).mean((2, 3))


def kept() -> nn.Module:
    """Return the net of ``kept.toml``."""
    return Kept()
