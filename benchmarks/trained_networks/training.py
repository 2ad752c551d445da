"""Trains the U-Nets: a minute's worth of taking noise out of photographs, so that their weights are no noise."""

from __future__ import annotations

import torch
from torch import nn

from trained_networks.data import Pixels, noisy

_STEPS = 80
_BATCH = 16


def train_to_denoise(network: nn.Module, clean: Pixels) -> None:
    """Train ``network`` in place on uint8 ``(n, height, width, 3)`` photographs, and leave it in eval mode."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    network.train()
    for step in range(_STEPS):
        rows = torch.randint(len(clean), (_BATCH,)).numpy()
        targets, inputs = (_normalized(each) for each in (clean[rows], noisy(clean[rows], seed=step)))
        loss = nn.functional.mse_loss(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def _normalized(pixels: Pixels) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.0) / 128.0
