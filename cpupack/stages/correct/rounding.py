"""Weight rounding by the layer's output: each weight goes up or down so that the output changes least.

AdaRound (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization") shows that rounding each
weight to the nearest step is not the best for the layer. It states the problem that is solved here: minimize
``e^T H e`` over the roundings of each output channel, where e is the change of its weights and H the second moment of
the layer's inputs (equation 13). AdaRound relaxes the problem for gradient descent. This module instead starts from the
rounding that GPTQ finds and sets one weight after another to its best value given all others (cyclic coordinate
descent, as QuantEase, Behdin et al. 2023). A channel that this does not improve keeps the nearest rounding. A layer
takes about a second instead of a minute.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import nn

from cpupack.graph.weight_grid import LARGEST_CODE, weight_scales

_SWEEPS = 3
_BLOCK = 64
_DAMPING = 0.01
_ROWS_PER_WEIGHT = 2
_LEAST_ROWS = 4096


def reconstruct_rounding(
    weight: torch.Tensor, moments: torch.Tensor, scales: torch.Tensor, sweeps: int = _SWEEPS
) -> torch.Tensor:
    """Return float32 weights, rounded to their grid so that the layer's output changes least.

    ``weight`` is float32 ``(groups, outputs, inputs)``, ``moments`` ``(groups, inputs, inputs)`` the second moments of
    each group's inputs, ``scales`` broadcasts over ``weight``. Each weight is rounded to the step below or above it.
    The largest weight of each scale is not changed, so that the result has the same scale.
    """
    moments = moments.float()
    diagonal = moments.diagonal(dim1=1, dim2=2)
    # A direction in which the samples do not vary must still have a cost.
    floor = _DAMPING * diagonal.mean(dim=1, keepdim=True) + torch.finfo(torch.float32).tiny
    moments = moments + torch.diag_embed(floor.expand_as(diagonal))
    grid = _Grid(weight / scales)
    codes = _descend(grid, _feed_back(grid, moments), moments, sweeps)
    better = _errors(grid, codes, moments) < _errors(grid, grid.nearest, moments)
    return torch.where(better[:, :, None], codes, grid.nearest) * scales


class _Grid:
    """Weights in steps of their scale, and the two codes that each may get: the next below and the next above."""

    def __init__(self, position: torch.Tensor) -> None:
        self.position = position
        self.nearest = torch.round(position).clamp(-LARGEST_CODE, LARGEST_CODE)
        fixed = self.nearest.abs() >= LARGEST_CODE
        self.lower = torch.where(fixed, self.nearest, torch.floor(position))
        self.upper = torch.where(fixed, self.nearest, self.lower + 1.0)

    def code(self, wanted: torch.Tensor, at: int) -> torch.Tensor:
        """Return the allowed codes closest to ``wanted``, float32 ``(groups, outputs)``, for input ``at``."""
        return torch.minimum(torch.maximum(torch.round(wanted), self.lower[:, :, at]), self.upper[:, :, at])


def _feed_back(grid: _Grid, moments: torch.Tensor) -> torch.Tensor:
    """Round one input after another. The inputs that are not rounded yet compensate for the error of each.

    GPTQ (Frantar et al. 2023): the optimal compensation comes from the inverse of ``moments``, by its Cholesky factor.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    wanted, codes = grid.position.clone(), torch.empty_like(grid.position)
    inputs = wanted.shape[2]
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = torch.empty_like(wanted[:, :, start:end])
        for at in range(start, end):
            codes[:, :, at] = grid.code(wanted[:, :, at], at)
            error = (wanted[:, :, at] - codes[:, :, at]) / factor[:, at, at, None]
            wanted[:, :, at:end] -= error[:, :, None] * factor[:, None, at, at:end]
            errors[:, :, at - start] = error
        wanted[:, :, end:] -= torch.bmm(errors, factor[:, start:end, end:])
    return codes


def _descend(grid: _Grid, codes: torch.Tensor, moments: torch.Tensor, sweeps: int) -> torch.Tensor:
    """Set each input in turn to its best code given all others. ``codes`` is changed and returned."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    for _ in range(sweeps):
        moved = False
        for start in range(0, codes.shape[2], _BLOCK):
            block = slice(start, start + _BLOCK)
            within = moments[:, block, block]
            slope = torch.bmm(codes - grid.position, moments[:, :, block])
            for index in range(within.shape[1]):
                at = start + index
                best = codes[:, :, at] - slope[:, :, index] / diagonal[:, None, at]
                step = grid.code(best, at) - codes[:, :, at]
                if step.any():
                    moved = True
                    codes[:, :, at] += step
                    slope += step[:, :, None] * within[:, None, index]
        if not moved:
            break
    return codes


def _errors(grid: _Grid, codes: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Return e^T H e for each output, ``(groups, outputs)``."""
    change = codes - grid.position
    return (torch.bmm(change, moments) * change).sum(dim=2)


def input_moments(module: nn.Module, inputs: torch.Tensor, *, centred: bool) -> torch.Tensor:
    """Return ``(groups, inputs, inputs)`` float32 second moments of what each weight is multiplied with.

    ``module`` is a Linear, or a 1-D or 2-D convolution that is not transposed. ``inputs`` is its input. With
    ``centred`` the mean is subtracted, because a bias corrects its error. Only some positions are used if there are
    many: two for each weight determine the moments well enough.
    """
    rows = _rows(module, inputs)
    wanted = max(_ROWS_PER_WEIGHT * rows.shape[2], _LEAST_ROWS)
    if rows.shape[1] > wanted:
        order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))
        rows = rows[:, order[:wanted]]
    if centred:
        rows = rows - rows.mean(dim=1, keepdim=True)
    return torch.bmm(rows.transpose(1, 2), rows) / rows.shape[1]


def can_reconstruct(module: nn.Module) -> bool:
    """Whether ``input_moments`` supports the module."""
    return type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d)


def reconstruct(module: nn.Module, inputs: torch.Tensor, channel_axis: int | None, *, centred: bool) -> torch.Tensor:
    """Return the module's weights rounded so that its output on ``inputs`` changes least (see ``can_reconstruct``)."""
    weight: torch.Tensor = module.weight.detach()  # type: ignore[operator]  # a Parameter in all of them
    groups = getattr(module, "groups", 1)
    scales = weight_scales(weight, channel_axis)
    flat_scales = scales.expand(weight.shape[0], *scales.shape[1:]).reshape(groups, -1, 1)
    flat = weight.reshape(groups, weight.shape[0] // groups, -1)
    moments = input_moments(module, inputs, centred=centred)
    return reconstruct_rounding(flat, moments, flat_scales).reshape(weight.shape)


def _rows(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return ``(groups, positions, inputs)``: the values that the weights are multiplied with at each position."""
    if isinstance(module, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = (tuple(each) for each in (module.kernel_size, module.stride, module.dilation))
    if isinstance(module, nn.Conv1d):
        padded, kernel, stride, dilation = padded[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    # One sample after another: unfolding multiplies the size by that of the kernel, too much for all samples at once.
    places = [_drawn(F.unfold(each[None], kernel, dilation, 0, stride)[0], len(padded)) for each in padded]
    patches = torch.cat(places, dim=1)
    return patches.reshape(module.groups, -1, patches.shape[1]).transpose(1, 2)


def _drawn(columns: torch.Tensor, samples: int) -> torch.Tensor:
    """Return some positions of a sample, spread over it, so that every sample contributes equally."""
    wanted = max(1, -(-max(_ROWS_PER_WEIGHT * columns.shape[0], _LEAST_ROWS) // samples))
    if columns.shape[1] <= wanted:
        return columns
    order = torch.randperm(columns.shape[1], generator=torch.Generator().manual_seed(0))
    return columns[:, order[:wanted]]
