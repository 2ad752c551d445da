"""A small residual network for 8 x 8 grey images: conv-bn-relu blocks with residual adds, 151 thousand parameters."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 10
WIDTH = 32


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016); float32 ``(n, c, h, w)`` in and out."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class DigitsNet(nn.Module):
    """Grey images float32 ``(n, 1, 8, 8)`` to logits float32 ``(n, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.relu = nn.ReLU()
        self.block1 = Block(WIDTH, WIDTH, stride=1)
        self.block2 = Block(WIDTH, 2 * WIDTH, stride=2)
        self.block3 = Block(2 * WIDTH, 2 * WIDTH, stride=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def digits_net() -> DigitsNet:
    """The factory that the recipe names."""
    return DigitsNet()
