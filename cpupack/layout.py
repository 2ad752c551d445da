"""channels_last: the memory layout that INT8 kernels use, and in which FP32 convolutions are faster on CPUs."""

from __future__ import annotations

import math

import torch
from torch import nn


def batch_channels_last(batch: torch.Tensor) -> torch.Tensor:
    """Return a 4-D batch in channels_last. Tensors of other ranks have no such layout and are returned unchanged."""
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def strictly_channels_last(batch: torch.Tensor) -> torch.Tensor:
    """Return a 4-D batch with the steps of channels_last also where it has one channel, as decoded images have them.

    To torch such a batch is in both layouts, and its steps say which one a convolution answers in.
    """
    if batch.ndim != 4:
        return batch
    n, channels, height, width = batch.shape
    steps = (channels * height * width, 1, channels * width, channels)
    return batch_channels_last(batch).as_strided((n, channels, height, width), steps)


def strictly_contiguous(batch: torch.Tensor) -> torch.Tensor:
    """Return a batch with the steps of contiguous tensors also where it has one channel: ``x.view`` looks at them."""
    steps = [math.prod(batch.shape[place + 1 :]) for place in range(batch.ndim)]
    return batch if list(batch.stride()) == steps else batch.clone(memory_format=torch.contiguous_format)


def weights_channels_last(module: nn.Module) -> nn.Module:
    """Convert a module's 4-D parameters and buffers to channels_last in place, and return the module.

    ``module.to(memory_format=...)`` does the same, but raises for the 5-D weights of a Conv3d.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = batch_channels_last(tensor.data)
    return module
