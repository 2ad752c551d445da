"""Observers and qconfigs: ranges come from the calibration statistics, weights are symmetric."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import nn
from torch.ao.quantization import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.observer import HistogramObserver, ObserverBase

from cpupack.errors import QuantizationError
from cpupack.graph.fused import TRANSPOSED_CONVS
from cpupack.graph.weight_grid import LARGEST_CODE
from cpupack.targets import Target

FIXED_RANGES = (nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softmax)
"""Modules whose INT8 results have the same range whatever goes in."""


class StatsObserver(ObserverBase):
    """An observer for torch whose scale and zero point are set from statistics, not from data that it sees.

    quint8 affine per tensor with ``levels`` steps (256, or 128 if 16-bit sums could saturate).
    """

    def __init__(self, levels: int) -> None:
        super().__init__(dtype=torch.quint8)
        self.qscheme = torch.per_tensor_affine
        self.quant_min, self.quant_max = 0, levels - 1
        self.levels = levels
        self.range: tuple[float, float] | None = None
        self.stands_on = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale float32 ``(1,)`` and zero point int64 ``(1,)``. Raises QuantizationError without a range."""
        if self.range is None:
            raise QuantizationError(
                f"internal: {self.stands_on or 'an activation'} has no range: no calibration data went through it"
            )
        low, high = self.range
        scale = (high - low) / (self.levels - 1)
        if scale < torch.finfo(torch.float32).tiny:
            scale = 1.0  # a tensor that is always zero still needs a scale, and 1 / scale must be finite; any will do
        zero_point = min(max(round(-low / scale), 0), self.levels - 1)
        return torch.tensor([scale], dtype=torch.float32), torch.tensor([zero_point], dtype=torch.int64)


class _Grid:
    """Scales of weights, at least the smallest normal float. Weights that are all zero get scale 1.

    ``least`` is a lower bound of the scales. It is set if a bias would not fit into 32 bits at smaller steps.
    """

    least: torch.Tensor | None

    def bounded(self, qparams: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        scales, zeros = qparams
        if self.least is not None:
            scales = torch.maximum(scales, self.least.amax().reshape(1) if scales.numel() == 1 else self.least)
        empty = scales <= torch.finfo(torch.float32).tiny
        return torch.where(empty, torch.ones_like(scales), scales), zeros


class TensorGrid(_Grid, MinMaxObserver):
    """One scale for all weights."""

    def __init__(self, least: torch.Tensor | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.least = least

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point."""
        return self.bounded(super().calculate_qparams())


class ChannelGrid(_Grid, PerChannelMinMaxObserver):
    """A scale for each output channel."""

    def __init__(self, least: torch.Tensor | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.least = least

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scales and zero points."""
        return self.bounded(super().calculate_qparams())


def static_qconfig(target: Target, weights: str = "per_channel") -> QConfig:
    """Return the qconfig of an engine: ``activation_bits`` for activations, int8 weights on the grid of all engines.

    ``weights`` is the recipe's key: one scale for each output channel, or one for all. qnnpack also gets per-channel
    weights. torch's default for qnnpack is per tensor, which lowers a trained MobileNetV2 from 78 % to chance.
    """
    activation = StatsObserver.with_args(levels=2**target.activation_bits)
    # torch's least scale of 1.2e-7 is too coarse for weights in front of a norm that undoes any scale
    grid = {
        "dtype": torch.qint8,
        "quant_min": -LARGEST_CODE,
        "quant_max": LARGEST_CODE,
        "eps": torch.finfo(torch.float32).tiny,
    }
    if weights == "per_tensor":
        return QConfig(activation, TensorGrid.with_args(qscheme=torch.per_tensor_symmetric, **grid))
    return QConfig(activation, ChannelGrid.with_args(qscheme=torch.per_channel_symmetric, **grid))


def coarser_weights(qconfig: QConfig, least: torch.Tensor) -> QConfig:
    """Return ``qconfig`` with weight scales of at least ``least``, float32 ``(channels,)``."""
    return QConfig(activation=qconfig.activation, weight=qconfig.weight.with_args(least=least))


def limited_weights(qconfig: QConfig) -> QConfig:
    """Return ``qconfig`` with 7-bit weights, -64..64: two products with any uint8 then fit into 16 bits."""
    return QConfig(activation=qconfig.activation, weight=qconfig.weight.with_args(quant_min=-64, quant_max=63))


def qconfig_mapping(target: Target, weights: str = "per_channel") -> QConfigMapping:
    """Return torch's default mapping with cpupack's qconfig in place of its histogram observers.

    It keeps torch's settings for two cases: sigmoid-like functions have fixed ranges, and the weights of normalization
    layers are not quantized.
    """
    own = static_qconfig(target, weights)
    # fbgemm's for every engine: engines differ only in what is replaced here. onednn's would warn on a CPU without VNNI
    # that 8 bits may saturate, which the saturate stage looks at itself.
    mapping = get_default_qconfig_mapping("fbgemm")
    mapping.set_global(own)
    for object_type, default in list(mapping.object_type_qconfigs.items()):
        if default is not None and isinstance(default.activation(), HistogramObserver):
            mapping.set_object_type(object_type, QConfig(activation=own.activation, weight=default.weight))
    # With torch's own, the result of a norm before a reshape is never quantized, and the norm reads INT8 as FP32.
    mapping.set_object_type("reshape", own)
    for object_type in TRANSPOSED_CONVS:
        mapping.set_object_type(object_type, transposed_qconfig(target))
    return mapping


def transposed_qconfig(target: Target) -> QConfig:
    """Return the qconfig of transposed convolutions, whose INT8 modules take one weight scale for all channels."""
    return static_qconfig(target, "per_tensor")


def wrong_types(engine: str) -> tuple[Any, ...]:
    """Return the modules and functions whose INT8 form in torch 2.13 answers wrongly; they stay FP32.

    PReLU: the quantized weights. qnnpack's clamp: writes a channels_last tensor in contiguous order. Transposed
    convolutions called as functions: torch packs their weights with the arguments of the call and without the defaults
    of those that are left out, which raises. The sweep over layers in tests/unit/test_quantize.py shows all three.
    """
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
    clamps = (nn.Hardtanh, nn.ReLU6, F.hardtanh, F.hardtanh_, F.relu6, torch.clamp, "clamp", "clamp_")
    return (nn.PReLU, F.prelu, *transposed, *(clamps if engine == "qnnpack" else ()))
