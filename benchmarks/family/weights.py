"""Random weights that hide no fault and amplify no rounding: filters are combinations of what they see.

Training changes weights by sums of gradients, and each gradient of a filter is a combination of its inputs. So trained
filters let pass what images vary in, and average out what is noise from value to value, rounding included. Filters of
noise do neither: depth amplifies every rounding, and the error says nothing about an engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_PATCHES = 64
"""How many windows a filter is a combination of."""
_LEARNT = 0.6
"""The share of a filter's energy that comes from its inputs. The rest is noise."""
_TINY = 1e-6
_LEAST = 1e-4
"""The least variance of a channel in a BatchNorm: one that is constant is not amplified."""
_Weighted = nn.Conv1d | nn.Conv2d | nn.Linear


def make_realistic(module: nn.Module, batch: torch.Tensor, seed: int) -> None:
    """Give ``module`` filters, gains, shifts and statistics like those of a trained network, in place.

    Every parameter whose elements are all equal (gains and shifts of norms, biases, layer scales, zeros of a last
    layer) becomes random. Then, layer by layer, filters become combinations of what they see of ``batch``, float32
    ``(n, 3, height, width)``, and BatchNorms get its statistics.
    """
    generator = torch.Generator().manual_seed(seed)

    def learn(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(layer, _BatchNorm):
            _settle(layer, inputs[0])
        elif isinstance(layer, _Weighted):
            _align(layer, inputs[0], generator)

    hooks = [
        each.register_forward_pre_hook(learn)
        for each in module.modules()
        if isinstance(each, _Weighted) or (isinstance(each, _BatchNorm) and each.track_running_stats)
    ]
    with torch.no_grad():
        for parameter in module.parameters():
            _vary(parameter, generator)
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


def _align(layer: nn.Conv1d | nn.Conv2d | nn.Linear, values: torch.Tensor, generator: torch.Generator) -> None:
    """Make each filter a combination of ``_PATCHES`` of the windows that it is applied to, with results of variance 1.

    Without norms, the values of a random network would become smaller from layer to layer, until the shift of the last
    layer is nearly all of the result.
    """
    weight = layer.weight
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    patches = _patches(layer, values, generator).unflatten(1, (groups, -1)).transpose(0, 1)
    patches = patches - patches.mean(1, keepdim=True)  # (groups, patches, values of a window)
    mixed = torch.randn(groups, weight.shape[0] // groups, _PATCHES, generator=generator) @ patches
    noise = weight.reshape(mixed.shape)
    learnt = _LEARNT**0.5 * mixed / (mixed.std() + _TINY) + (1 - _LEARNT) ** 0.5 * noise / (noise.std() + _TINY)
    spread = (learnt @ patches.transpose(1, 2)).std()
    if float(spread) > _TINY:
        weight.copy_((learnt / spread).reshape(weight.shape))


def _patches(layer: nn.Module, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return some windows of ``values`` as ``layer`` sees them, ``(_PATCHES, values of a window)``."""
    if isinstance(layer, nn.Linear):
        rows = values.reshape(-1, values.shape[-1])
        return rows[torch.randint(len(rows), (_PATCHES,), generator=generator)]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    spans = [(size - 1) * step + 1 for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
    short = [max(0, span - have) for span, have in zip(spans, values.shape[2:], strict=True)]
    padded = nn.functional.pad(values, [side for each in reversed(short) for side in (each // 2, each - each // 2)])
    found = []
    for _ in range(_PATCHES):
        sample = padded[int(torch.randint(len(padded), (), generator=generator))]
        for axis, (span, step) in enumerate(zip(spans, layer.dilation, strict=True), start=1):
            first = int(torch.randint(sample.shape[axis] - span + 1, (), generator=generator))
            sample = sample.narrow(axis, first, span).index_select(axis, torch.arange(0, span, step))
        found.append(sample.flatten())
    return torch.stack(found)


def _settle(norm: _BatchNorm, values: torch.Tensor) -> None:
    """Set the statistics of a BatchNorm to those of ``values``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    rows = values.transpose(0, 1).flatten(1)
    norm.running_mean.copy_(rows.mean(1))
    norm.running_var.copy_(rows.var(1, correction=0).clamp(min=_LEAST))
