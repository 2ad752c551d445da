"""Random weights that hide no fault: what an initialization sets to 0, 1 or 0.000001 would do nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_CENTRED = 0.3
"""The share of a channel's mean that a BatchNorm takes away. A random network that takes away all of it amplifies every
difference from layer to layer, rounding included, as no trained one does."""
_LEAST = 0.3
"""The least variance of a channel. Weak ones are not amplified, so that rounding is not either."""
_SMOOTH = 0.5
"""The spread of the filters' means, in that of the weights."""


def make_realistic(module: nn.Module, batch: torch.Tensor) -> None:
    """Give ``module`` gains, shifts and statistics like those of a trained network, in place.

    Every parameter whose elements are all equal (gains and shifts of norms, biases, layer scales, zeros of a last
    layer) becomes random. Then BatchNorms get statistics of ``batch``, float32 ``(n, 3, height, width)``.
    """
    generator = torch.Generator().manual_seed(0)
    hooks = [
        each.register_forward_pre_hook(_learn)
        for each in module.modules()
        if isinstance(each, _BatchNorm) and each.track_running_stats
    ]
    with torch.no_grad():
        for parameter in module.parameters():
            _vary(parameter, generator)
            _smooth(parameter, generator)
        module(batch)
    for hook in hooks:
        hook.remove()


def _vary(parameter: nn.Parameter, generator: torch.Generator) -> None:
    if not parameter.is_floating_point() or not parameter.numel() or bool((parameter != parameter.flatten()[0]).any()):
        return
    value = float(parameter.flatten()[0])
    if value and parameter.squeeze().dim() < 2:  # gains and layer scales
        parameter.uniform_(0.5, 1.5, generator=generator).mul_(value if abs(value) > 0.1 else 0.3)
    elif parameter.squeeze().dim() < 2:  # shifts, and gains that begin at 0
        parameter.normal_(generator=generator).mul_(0.2)
    else:
        parameter.normal_(generator=generator).mul_(parameter[0].numel() ** -0.5)


def _smooth(parameter: nn.Parameter, generator: torch.Generator) -> None:
    """Give each filter a mean of its own: filters of noise alone let the noise of rounding pass, but not the image."""
    if parameter.dim() >= 3 and parameter[0, 0].numel() > 1:
        means = torch.randn(*parameter.shape[:2], *[1] * (parameter.dim() - 2), generator=generator)
        parameter.add_(means * parameter.std() * _SMOOTH)


def _learn(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Set the statistics of a BatchNorm so that its result has a mean square of 1 in each channel."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values = inputs[0].transpose(0, 1).flatten(1)
    mean = values.mean(1) * _CENTRED
    norm.running_mean.copy_(mean)
    spread = (values - mean[:, None]).square().mean(1)
    norm.running_var.copy_(spread.clamp(min=_LEAST))
