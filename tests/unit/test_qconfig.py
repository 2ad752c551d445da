"""Observers and qconfigs: scale and zero point from a range, weights per channel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cpupack.graph.weight_grid import round_to_grid, weight_scales
from cpupack.stages.quantize.qconfig import StatsObserver, qconfig_mapping, static_qconfig
from helpers.tiny_models import ENGINES, quantized, recipe, target


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
    assert torch.allclose(scale, torch.tensor([1.0, 100.0, 0.001]) / 127, rtol=1e-5)
    assert zero_point.tolist() == [0, 0, 0]
    assert (observer.quant_min, observer.quant_max) == (-127, 127)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_scale_for_all_weights_is_that_of_the_largest(engine: str) -> None:
    observer = static_qconfig(target(engine), "per_tensor").weight()
    observer(torch.tensor([[1.0, -1.0], [100.0, -50.0]]))
    scale, zero_point = observer.calculate_qparams()
    assert (float(scale), int(zero_point)) == (pytest.approx(100.0 / 127, rel=1e-5), 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_recipe_chooses_per_tensor_weights(engine: str) -> None:
    spec = recipe(quantize={"weights": "per_tensor"})
    _, int8 = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)), engine, spec=spec)
    weights = [module.weight() for module in int8.module.modules() if hasattr(module, "weight")]
    assert [weight.qscheme() for weight in weights] == 2 * [torch.per_tensor_affine]


@pytest.mark.parametrize("axis", [0, None])
def test_the_grid_of_corrections_is_the_one_that_engines_find(axis: int | None) -> None:
    """What a correction leaves on the grid, engines round to itself."""
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-3, 3)[:, None]
    codes = torch.clamp(torch.round(weight / weight_scales(weight, axis)), -127, 127)
    observer = static_qconfig(target(), "per_tensor" if axis is None else "per_channel").weight()
    observer(round_to_grid(weight, axis))
    scale, zero_point = observer.calculate_qparams()
    if axis is None:
        found = torch.quantize_per_tensor(round_to_grid(weight, axis), float(scale), 0, torch.qint8)
    else:
        found = torch.quantize_per_channel(round_to_grid(weight, axis), scale, zero_point, 0, torch.qint8)
    assert torch.equal(found.int_repr().float(), codes)


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
