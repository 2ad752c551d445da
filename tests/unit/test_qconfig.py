"""Observers and qconfigs: scale and zero point from a range, weights per channel."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ENGINES, quantized, target
from torch import nn

from cpupack.stages.quantize.qconfig import StatsObserver, qconfig_mapping, static_qconfig


def parameters(low: float, high: float, levels: int = 256) -> tuple[float, int]:
    observer = StatsObserver(levels)
    observer.range = (low, high)
    scale, zero_point = observer.calculate_qparams()
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int64)
    return float(scale), int(zero_point)


@pytest.mark.parametrize("levels", [128, 256])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.0), (-0.01, 100.0), (-1e-6, 1e-5)])
def test_zero_and_both_ends_are_representable(low: float, high: float, levels: int) -> None:
    scale, zero_point = parameters(low, high, levels)
    assert 0 <= zero_point <= levels - 1
    assert scale == pytest.approx((high - low) / (levels - 1), rel=1e-6)
    for end in (low, high):  # to half a step, and half a step more for the rounded zero point
        step = min(max(round(end / scale) + zero_point, 0), levels - 1)
        assert abs((step - zero_point) * scale - end) <= scale * (1.0 + 1e-6)
    assert (0 - zero_point) * scale <= 0.0 <= (levels - 1 - zero_point) * scale


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*deprecated")
@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.0, 1e-44), (-1e-42, 1e-42)])
def test_a_tensor_of_nothing_still_has_a_scale_that_can_be_divided_by(limits: tuple[float, float]) -> None:
    scale, _ = parameters(*limits)
    assert 1.0 / scale < float("inf")
    quantized_zeros = torch.quantize_per_tensor(torch.zeros(4), scale, 0, torch.quint8)
    assert quantized_zeros.dequantize().tolist() == [0.0] * 4


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_are_symmetric_with_one_scale_a_channel(engine: str) -> None:
    weight = torch.tensor([[1.0, -1.0], [100.0, -50.0], [0.001, 0.0]])
    observer = static_qconfig(target(engine)).weight()
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    steps = 127 if engine == "qnnpack" else 127.5  # torch spreads the larger magnitude over half of the range's width
    assert torch.allclose(scale, torch.tensor([1.0, 100.0, 0.001]) / steps, rtol=1e-5)
    assert zero_point.tolist() == [0, 0, 0]
    assert observer.quant_min == (-127 if engine == "qnnpack" else -128)


@pytest.mark.filterwarnings("ignore:.*reduce_range will be deprecated")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [7, 8])
def test_every_activation_observer_is_ours_with_the_targets_bits(engine: str, bits: int) -> None:
    mapping = qconfig_mapping(target(engine, bits))
    own = [mapping.global_qconfig, *(each for each in mapping.object_type_qconfigs.values() if each is not None)]
    for qconfig in own:
        observer = qconfig.activation()
        assert type(observer).__name__ != "HistogramObserver"
        if isinstance(observer, StatsObserver):
            assert observer.levels == 2**bits


@pytest.mark.parametrize("engine", ENGINES)
def test_a_quantized_convolution_has_per_channel_weights_on_every_engine(engine: str) -> None:
    _, int8 = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), engine)
    conv = next(module for module in int8.module.modules() if hasattr(module, "weight"))
    assert conv.weight().qscheme() == torch.per_channel_affine
    assert conv.weight().q_per_channel_scales().numel() == 4
    assert engine != "qnnpack" or int(conv.weight().int_repr().min()) >= -127
