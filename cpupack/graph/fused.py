"""The modules of fused chains: BatchNorm folded into weights, a ReLU paired with the module before it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.ao.nn.intrinsic as nni
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# torch.ao's classes have untyped constructors
_WITH_RELU: dict[type[nn.Module], Any] = {
    nn.Conv1d: nni.ConvReLU1d,
    nn.Conv2d: nni.ConvReLU2d,
    nn.Conv3d: nni.ConvReLU3d,
    nn.Linear: nni.LinearReLU,
    nn.BatchNorm2d: nni.BNReLU2d,
    nn.BatchNorm3d: nni.BNReLU3d,
}


def channel_axis(module: nn.Module) -> int | None:
    """Return the dimension, from the end, of the output that holds the channels of a layer with weights, fused or not.

    None for a module without them.
    """
    inner = module[0] if isinstance(module, nn.Sequential) and len(module) else module
    return 1 - inner.weight.ndim if isinstance(inner, (nn.Linear, *CONVS, *TRANSPOSED_CONVS)) else None


class ConvReLU6(nn.Sequential):
    """A convolution and its ReLU6. INT8 runs it as conv + ReLU, because a range that ends at 6 clamps at 6."""


def takes_relu(module: nn.Module) -> bool:
    """Whether there is one quantized operator for ``module`` and a ReLU after it."""
    return type(module) in _WITH_RELU


def with_relu(module: nn.Module) -> nn.Module:
    """Return ``module`` and a ReLU in the class that quantization runs as one operator."""
    fused: nn.Module = _WITH_RELU[type(module)](module, nn.ReLU())
    return fused


def fold_batch_norm(module: nn.Module, norm: nn.Module) -> nn.Module:
    """Return a copy of a convolution or linear module with the BatchNorm's scale and shift in its weights."""
    assert isinstance(norm, NORMS)
    if isinstance(module, nn.Linear):
        return fuse_linear_bn_eval(module, norm)
    assert isinstance(module, CONVS + TRANSPOSED_CONVS)
    if isinstance(module, TRANSPOSED_CONVS) and module.groups > 1:
        return _fold_into_groups(module, norm)
    return fuse_conv_bn_eval(module, norm, transpose=isinstance(module, TRANSPOSED_CONVS))


def _fold_into_groups(module: Any, norm: Any) -> nn.Module:
    """Fold into a transposed convolution of several groups, which torch folds as if it had one.

    Its weight is ``(inputs, outputs of a group, ...)``: the inputs of a group have the outputs of that group.
    """
    folded = copy.deepcopy(module)
    weight, zero = module.weight.detach().double(), torch.zeros(module.out_channels, dtype=torch.float64)
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    by_input = scale.reshape(module.groups, -1).repeat_interleave(module.in_channels // module.groups, dim=0)
    shift = norm.bias.detach().double() - norm.running_mean.double() * scale
    bias = (zero if module.bias is None else module.bias.detach().double()) * scale + shift
    folded.weight = nn.Parameter((weight * by_input.reshape(*by_input.shape, *[1] * (weight.ndim - 2))).float())
    folded.bias = nn.Parameter(bias.float())
    return folded.requires_grad_(requires_grad=False)  # type: ignore[no-any-return]  # a module


def normalizes(norm: nn.Module, before: nn.Module) -> bool:
    """Whether a BatchNorm works on the output channels of a convolution or linear module."""
    if not isinstance(norm, NORMS):
        return False
    if type(before) is nn.Linear:
        # After a Linear of (n, length, features), a BatchNorm1d normalizes the length.
        return type(norm) is nn.BatchNorm1d and norm.num_features == before.out_features
    if type(before) in CONVS + TRANSPOSED_CONVS:
        return type(norm).__name__[-2:] == type(before).__name__[-2:]
    return False
