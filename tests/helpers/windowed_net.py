"""Nets with attention in windows, as Swin transformers, MaxViT and nets of image restoration have it."""

from __future__ import annotations

import torch
from torch import nn


class Windowed(nn.Module):
    """Attention in windows of 2 x 2 pixels that are shifted by one: the last ones hold pixels of two sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.qkv, self.out = (
            nn.Conv2d(3, 8, 1),
            nn.LayerNorm(8),
            nn.Linear(8, 24),
            nn.Linear(8, 5),
        )
        self.biases = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        y = self.attend(torch.roll(self.norm(x), (-1, -1), (1, 2)))
        result: torch.Tensor = self.out(x + torch.roll(y, (1, 1), (1, 2))).permute(0, 3, 1, 2)
        return result

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        samples, rows, columns, _ = x.shape
        q, k, v = self.qkv(self.cut(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        regions = torch.zeros(1, rows, columns, 1)
        regions[:, -1], regions[:, :, -1] = 2, regions[:, :, -1] + 1
        own = self.cut(regions)[..., 0]
        hidden = (own[:, None] != own[:, :, None]).float() * -100
        scores = (q @ k.transpose(-2, -1) * 0.5).unflatten(0, (samples, -1)) + self.biases + hidden[:, None]
        whole = (scores.flatten(0, 1).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return whole.reshape(samples, rows // 2, columns // 2, 2, 2, 8).transpose(2, 3).reshape(x.shape)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        samples, rows, columns, channels = x.shape
        return x.reshape(samples, rows // 2, 2, columns // 2, 2, channels).transpose(2, 3).reshape(-1, 4, channels)


class Parted(Windowed):
    """Attention in windows of 2 x 2 pixels, of queries, keys and values that three layers compute."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        samples, rows, columns, _ = x.shape
        q, k, v = (layer(self.cut(x)).unflatten(-1, (2, 4)).transpose(1, 2) for layer in self.each)
        whole = ((q @ k.transpose(-2, -1) * 0.5 + self.biases).softmax(-1) @ v).transpose(1, 2)
        return whole.reshape(samples, rows // 2, columns // 2, 2, 2, 8).transpose(2, 3).reshape(x.shape)
