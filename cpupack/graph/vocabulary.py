"""The canonical graph's vocabulary: each operation has one form, which every later stage relies on.

``docs/explanation/capture.md`` describes it. A canonical graph is an ``fx.GraphModule`` with one placeholder and one
output tensor. What is not listed here is kept as torch.export gave it, an ATen call: "other", FP32 on every engine.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.recurrent import Recurrent

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMALIZATIONS = (
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
)  # fmt: skip
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU,
    nn.LeakyReLU, nn.Mish, nn.Softplus, nn.SELU, nn.CELU, nn.LogSigmoid, nn.Softsign, nn.PReLU,
)  # fmt: skip
"""Functions of one value. ``nn.PReLU`` alone has parameters: one slope, or one for each channel."""
SOFTMAXES = (nn.Softmax, nn.LogSoftmax)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
MODULES: tuple[type[nn.Module], ...] = (
    *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear, *BATCH_NORMS, *NORMALIZATIONS, *ACTIVATIONS, *SOFTMAXES,
    *MAX_POOLS, *AVERAGE_POOLS, *ADAPTIVE_POOLS, nn.Embedding, Recurrent,
)  # fmt: skip

ARITHMETIC = (torch.add, torch.sub, torch.mul, torch.div)
"""Of two operands by position, each a node, a constant (``get_attr``) or, the second one alone, a Python number."""
POINTWISE = (torch.pow, torch.sqrt, torch.rsqrt, torch.exp, torch.log, torch.abs, torch.reciprocal, torch.clamp)
"""Of one tensor, with numbers: functions of one value that torch has no module for."""
JOINS = (torch.matmul, torch.cat, F.scaled_dot_product_attention)
UNFOLD = torch.ops.aten.im2col.default
"""``F.unfold``, which calls this."""
SHAPES = (
    torch.flatten, torch.reshape, torch.permute, operator.getitem, torch.chunk, F.pixel_shuffle, F.pixel_unshuffle,
    UNFOLD,
)  # fmt: skip
"""What moves values and computes nothing. The batch stays first; in ``torch.reshape`` it is written as -1."""
OTHERS = (F.pad, F.interpolate, torch.mean, torch.sum, torch.amax)
FUNCTIONS: tuple[Any, ...] = (*ARITHMETIC, *POINTWISE, *JOINS, *SHAPES, *OTHERS)
METHODS = ("size", "expand")
"""A constant is laid out for the whole batch (a class token): ``table.expand(x.size(0), ...)``."""


def in_vocabulary(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node of a canonical graph is one of its documented forms; the others are kept ATen calls."""
    match node.op:
        case "call_module":
            return type(graph.get_submodule(str(node.target))) in MODULES
        case "call_function":
            return node.target in FUNCTIONS
        case "call_method":
            return node.target in METHODS
    return node.op in {"placeholder", "get_attr", "output"}
