"""Models that carry their own quant stubs and look at values, so that they cannot be captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

from cpupack import accuracy
from cpupack.errors import ModelError, QuantizationError
from cpupack.progress import SilentProgress
from cpupack.stages.quantize import quantize
from helpers.tiny_models import (
    ENGINES,
    SHAPE,
    calibrated,
    chains_of,
    float_model,
    fuse_model,
    host_bits,
    quantized,
    recipe,
    run,
    samples,
    target,
)


def looked_at(x: torch.Tensor) -> torch.Tensor:
    """Return ``x``, by its values: no graph of a model with such a line exists."""
    return x / 2 if x.abs().max() > 1e6 else x


class Residual(nn.Module):
    """A residual net whose forward looks at values, so that no graph exists."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.add, self.relu2 = FloatFunctional(), nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head, self.head_bn = nn.Linear(8, 5), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(self.quant(looked_at(x)))))
        x = self.relu2(self.add.add(self.bn2(self.conv2(x)), x))
        return self.dequant(self.head_bn(self.head(torch.flatten(self.pool(x), 1))))


CHAINS = (("conv1", "bn1", "relu1"), ("conv2", "bn2"), ("head", "head_bn"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_every_chain_is_found_and_fp32_stays_the_same() -> None:
    model = float_model(Residual())
    assert chains_of(model) == CHAINS
    fused = fuse_model(model, recipe(), SilentProgress())
    assert (fused.style, fused.chains) == ("eager", CHAINS)
    batch = torch.randn(5, *SHAPE)
    with torch.inference_mode():
        torch.testing.assert_close(fused.module(batch), model.module(batch), rtol=1e-4, atol=1e-5)


def test_a_list_is_honoured_exactly() -> None:
    model = float_model(Residual())
    fused = fuse_model(model, recipe(fuse={"modules": [["conv1", "bn1"], ["head", "head_bn"]]}), SilentProgress())
    assert fused.chains == (("conv1", "bn1"), ("head", "head_bn"))
    assert type(fused.module.bn2) is nn.BatchNorm2d
    assert type(fused.module.relu1) is nn.ReLU


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        (["conv1", "bn_1"], r"no module 'bn_1'\n  hint: did you mean 'bn1'"),
        (["conv1", "pool"], r"Conv2d \+ AdaptiveAvgPool2d does not run as one"),
        (["conv1", "head_bn"], r"Conv2d \+ BatchNorm1d does not run as one"),
        (["conv2", "relu2"], "the fused model's FP32 output differs"),
    ],
)
def test_a_listed_chain_that_cannot_be_fused_says_why(chain: list[str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fuse_model(float_model(Residual()), recipe(fuse={"modules": [chain]}), SilentProgress())


def test_a_batch_norm_without_running_statistics_is_not_fused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.conv = QuantStub(), nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4, track_running_stats=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(self.quant(looked_at(x))))

    assert chains_of(float_model(Net())) == ()


def test_modules_that_are_called_twice_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant, self.relu = QuantStub(), DeQuantStub(), nn.ReLU()
            self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dequant(self.relu(self.other(self.relu(self.conv(self.quant(looked_at(x)))))))

    assert chains_of(float_model(Twice())) == ()


@pytest.mark.parametrize("engine", ENGINES)
def test_int8_is_close_to_fp32(engine: str) -> None:
    model, int8 = quantized(Residual(), engine)
    evaluation = samples(seed=1)
    # A dozen roundings to 8 bits, each some 40 dB below its tensor; wrong ranges or weights fall far below 20 dB.
    assert accuracy.sqnr_db(run(model, evaluation), run(int8, evaluation)) > 20.0
    assert type(int8.module.conv1).__module__.startswith("torch.ao.nn.intrinsic.quantized")
    assert type(int8.module.head).__module__.startswith("torch.ao.nn.quantized")
    assert int8.notes == ()


def test_the_addition_has_the_range_of_its_result() -> None:
    _, stats = calibrated(Residual(), recipe(quantize={"observer": "minmax"}))
    int8 = quantize(stats, Residual(), recipe(quantize={"observer": "minmax"}), target())
    low, high = stats.stats["add"].minimum, stats.stats["add"].maximum
    assert int8.module.add.scale == pytest.approx((high - low) / (2 ** host_bits("onednn") - 1), rel=1e-6)


def test_quantizing_twice_gives_the_same_and_leaves_the_calibrated_model_as_it_was() -> None:
    model, stats = calibrated(Residual(), recipe())
    evaluation = samples(seed=1)
    before = run(model, evaluation)
    first, second = (quantize(stats, model.module, recipe(), target()) for _ in range(2))
    assert np.array_equal(run(first, evaluation), run(second, evaluation))
    assert np.array_equal(run(model, evaluation), before)
    assert type(stats.fused.module.conv2) is nn.Conv2d
    assert not any(child._forward_hooks for child in stats.fused.module.modules())


def test_a_skipped_module_stays_fp32_where_the_stubs_allow_it() -> None:
    class Tail(nn.Module):
        """Its last layer comes after the DeQuantStub, so it may be FP32."""

        def __init__(self) -> None:
            super().__init__()
            self.quant, self.conv, self.dequant, self.tail = (
                QuantStub(),
                nn.Conv2d(3, 4, 3),
                DeQuantStub(),
                nn.Conv2d(4, 2, 3),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tail(self.dequant(self.conv(self.quant(looked_at(x)))))

    spec = recipe(quantize={"skip": ["tail"]})
    model, int8 = quantized(Tail(), spec=spec)
    assert int8.notes == ("tail (Conv2d) stayed FP32: listed in skip",)
    assert accuracy.sqnr_db(run(model, samples()), run(int8, samples())) > 20.0


def test_a_skipped_name_that_does_not_exist_is_named() -> None:
    with pytest.raises(QuantizationError, match="no module 'conv3'") as caught:
        quantized(Residual(), spec=recipe(quantize={"skip": ["conv3"]}))
    assert "did you mean 'conv" in (caught.value.hint or "")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("channels", [3, 4])
def test_a_transposed_convolution_is_right_in_int8_or_stays_fp32(engine: str, channels: int) -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.conv, self.dequant = QuantStub(), nn.Conv2d(3, 3, 1), DeQuantStub()
            self.up = nn.ConvTranspose2d(3, channels, 2, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dequant(self.up(self.conv(self.quant(looked_at(x)))))

    model, int8 = quantized(Up(), engine)
    if channels == 4 and engine in {"onednn", "x86"}:
        assert int8.notes == (f"up (ConvTranspose2d) stayed FP32: {engine} computes it wrongly in INT8",)
        return  # between the model's own stubs it cannot run; the script stage refuses it
    assert int8.notes == ()
    assert accuracy.sqnr_db(run(model, samples()), run(int8, samples())) > 25.0
