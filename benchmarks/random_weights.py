"""Random weights with what makes trained transformers hard to quantize."""

from __future__ import annotations

import math

import torch
from torch import nn

_GAINS = 128
"""One of so many channels of a norm is four times as large as the others."""


def like_trained(module: nn.Module) -> None:
    """Give layers weights with heavy tails, and norms a few channels that are far larger than the others."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                tails = noise(layer.weight) * (1 + 0.5 * noise(layer.weight).abs())
                layer.weight.copy_(tails * (0.7 / math.sqrt(layer.weight[0].numel())))
                if layer.bias is not None:
                    layer.bias.copy_(0.2 * noise(layer.bias))
            elif isinstance(layer, nn.LayerNorm):
                gains = 1 + 0.3 * noise(layer.weight)
                few = torch.randperm(gains.numel(), generator=generator)[: max(1, gains.numel() // _GAINS)]
                gains.view(-1)[few] *= 4.0
                layer.weight.copy_(gains)
                layer.bias.copy_(0.2 * noise(layer.bias))
        for name, value in module.named_parameters():
            if name.endswith("layer_scale"):  # they begin at 1e-6, with which no block would count
                value.copy_(0.3 * (1 + 0.5 * noise(value)))
