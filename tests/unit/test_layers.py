"""What is told of each layer, against what the INT8 model does, on every engine and in every mode."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.artifacts import CalibratedModel, LayerFact, QuantizedModel, Samples
from cpupack.graph.native_model import MixedModel, NativeModel
from cpupack.layers import describe_layers, float_notes
from cpupack.quantized_engine import engine
from cpupack.recipe import Recipe
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.stages.quantize import quantize
from cpupack.wheel.layers import format_layers
from helpers.lowered import needs_kernels
from helpers.tiny_models import EIGHT_BITS, ENGINES, calibrated, recipe, samples, target


class Block(nn.Module):
    """A residual block between two layers: torch joins convolution, sum and ReLU on one engine and not on others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.first(x)))
        result: torch.Tensor = self.fc(self.relu(self.left(x) + self.right(x)).mean((2, 3)))
        return result


class Odd(nn.Module):
    """Layers that torch has no INT8 form of, or that is wrong."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.silu, self.prelu = nn.Conv2d(3, 4, 3), nn.SiLU(), nn.PReLU()
        self.clamped = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU6())
        self.last = nn.Conv2d(4, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.clamped(self.prelu(self.silu(self.conv(x))))
        return F.softmax(self.last(x).mean((2, 3)), dim=1)


def described(
    module: nn.Module,
    engine_name: str = "onednn",
    bits: int | None = None,
    spec: Recipe | None = None,
    data: Samples | None = None,
) -> tuple[dict[str, LayerFact], QuantizedModel, CalibratedModel]:
    spec = spec or recipe()
    data = data or samples()
    model, found = calibrated(module, spec, data)
    int8 = quantize(found, model.module, spec, target(engine_name, bits))
    facts = describe_layers(int8, found, spec.quantize.skip, data)
    return {fact.name: fact for fact in facts}, int8, found


@pytest.mark.parametrize("engine_name", ENGINES)
def test_each_layer_has_the_operator_scale_and_weights_that_run_it(engine_name: str) -> None:
    facts, int8, _ = described(Block(), engine_name)
    joined = engine_name == "onednn"
    assert ("add" in facts) is not joined
    pooling = facts.pop("adaptive_avg_pool2d")
    assert pooling.reason == "the FP32 layer that reads it needs finer steps than INT8 has"
    assert all(fact.precision == "int8" and not fact.reason for fact in facts.values())
    assert facts["first"].kind == "Conv2d+ReLU"
    assert facts["first"].kernel == "quantized::conv2d_relu"
    if joined:
        (conv,) = [fact for fact in facts.values() if fact.kind == "Conv2d+add+ReLU"]
        assert conv.kernel == "quantized::conv2d_add_relu"
    else:
        assert facts["add"].kind == "add+ReLU"
        assert facts["add"].kernel == "quantized::add_relu"
    assert (facts["fc"].kernel.split(" + ")[-1], facts["fc"].scale) == (
        "quantized::linear_dynamic",
        None,
    )  # FP32 results
    for name in ("first", "left", "right"):
        child = int8.module.get_submodule(name)
        assert facts[name].scale == pytest.approx(float(child.scale))
        assert facts[name].zero_point == int(child.zero_point)


def test_the_sqnr_is_that_of_the_layers_weights_and_of_its_output_with_all_errors_before() -> None:
    data = samples(count=4)
    facts, int8, found = described(Block(), "fbgemm", data=data)
    batch = data.tensor(slice(None)).contiguous(memory_format=torch.channels_last)
    conv = found.fused.module.first[0]
    weight = conv.weight.detach().numpy()
    rounded = int8.module.first.weight().dequantize().numpy()
    expected: dict[str, np.ndarray] = {}
    actual: dict[str, np.ndarray] = {}
    for module, into in ((found.fused.module, expected), (int8.module, actual)):
        handle = module.first.register_forward_hook(
            lambda _, __, out, into=into: into.update(first=(out.dequantize() if out.is_quantized else out).numpy())
        )
        with torch.inference_mode(), engine("fbgemm"):
            module(batch)
        handle.remove()
    assert facts["first"].weight_sqnr_db == pytest.approx(decibels(weight, rounded), abs=1e-3)
    assert facts["first"].output_sqnr_db == pytest.approx(decibels(expected["first"], actual["first"]), abs=1e-3)


def test_the_sqnr_of_a_summand_is_that_of_what_passes_the_relu() -> None:
    """Of x in relu(x + y), what lies below -y does not count: its range is not chosen for it."""
    data = samples(count=4)
    facts, int8, found = described(Block(), "fbgemm", data=data)
    batch = data.tensor(slice(None)).contiguous(memory_format=torch.channels_last)
    expected: dict[str, torch.Tensor] = {}
    actual: dict[str, torch.Tensor] = {}
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda _, __, out, into=into, name=name: into.update({name: out.dequantize() if out.is_quantized else out})
        )
        for module, into in ((found.fused.module, expected), (int8.module, actual))
        for name in ("left", "right")
    ]
    with torch.inference_mode(), engine("fbgemm"):
        found.fused.module(batch)
        int8.module(batch)
    for handle in handles:
        handle.remove()
    hidden = -expected["right"]
    passed = [torch.maximum(each["left"], hidden).numpy() for each in (expected, actual)]
    assert facts["left"].output_sqnr_db == pytest.approx(decibels(*passed), abs=1e-3)


def decibels(reference: np.ndarray, actual: np.ndarray) -> float:
    noise = reference.astype(np.float64) - actual
    return 10.0 * math.log10(np.square(reference.astype(np.float64)).sum() / np.square(noise).sum())


def test_what_stayed_fp32_is_named_with_the_reason() -> None:
    facts, int8, _ = described(Odd())
    assert int8.notes == ()  # the quantize stage sees weights only
    assert facts["silu"].precision == "fp32"
    assert facts["silu"].reason == "torch has no INT8 form of SiLU here (onednn)"
    assert facts["prelu"].reason == "onednn computes it wrongly in INT8"
    assert facts["conv"].precision == facts["last"].precision == "int8"
    assert "softmax" in facts
    notes = float_notes(tuple(facts.values()))
    assert "silu (SiLU) stayed FP32: torch has no INT8 form of SiLU here (onednn)" in notes
    assert all(fact.reason for fact in facts.values() if fact.precision == "fp32")


@needs_kernels
@pytest.mark.parametrize("engine_name", ["native", EIGHT_BITS])
def test_every_engine_says_in_the_same_words_what_levels_the_input(engine_name: str) -> None:
    values = np.random.default_rng(0).standard_normal((64, 3)) * [1e-2, 1.0, 1e4]
    data = Samples(values.astype(np.float32), "rows", tuple(map(str, range(64))))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        net[0].weight /= torch.tensor([1e-2, 1.0, 1e4])
    facts, _, _ = described(net, engine_name, spec=recipe((3,)), data=data)
    words = "brings the channels of the input, whose ranges differ, to one range"
    found = [(fact.kind, fact.precision) for fact in facts.values() if fact.reason == words]
    assert found == [("BatchNorm1d", "fp32")]


def test_a_skipped_layer_says_so_and_those_behind_it_follow() -> None:
    spec = recipe(quantize={"skip": ["first", "left", "right"]})
    facts, _, _ = described(Block(), spec=spec)
    assert {name for name, fact in facts.items() if fact.reason == "listed in skip"} == {"first", "left", "right"}
    assert facts["first"].output_sqnr_db == math.inf
    assert facts["fc"].precision == "int8"
    notes = float_notes(tuple(facts.values()))
    # The sum is joined to a convolution that stays FP32, and so stays FP32 with it.
    assert set(notes) == {
        "first (Conv2d+ReLU), right (Conv2d), left (Conv2d+add+ReLU) stayed FP32: listed in skip",
        "adaptive_avg_pool2d (AdaptiveAvgPool2d) stayed FP32: "
        "the FP32 layer that reads it needs finer steps than INT8 has",
    }


def test_a_relu6_that_seven_bits_split_off_is_one_layer() -> None:
    facts, _, _ = described(Odd(), "fbgemm", bits=7)
    fact = facts["clamped.0"]
    assert fact.kind == "Conv2d+ReLU6"
    assert fact.kernel == "quantized::conv2d + aten::hardtanh"
    assert fact.weight_sqnr_db is not None


def test_a_model_that_takes_pixels_is_described_on_pixels() -> None:
    table = {"resize": 8, "crop": 8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
    spec = recipe(preprocess=table)
    assert spec.preprocess is not None
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    preprocess = PreprocessSpec.from_dict(spec.preprocess.model_dump())
    data = Samples(pixels, "noise", tuple(map(str, range(16))), preprocess)
    facts, int8, _ = described(Block(), EIGHT_BITS, spec=spec, data=data)
    assert int8.pixel_input
    assert next(iter(facts)) == "first"
    assert facts["first"].kernel == "quantized::conv2d_relu"
    assert facts["first"].weight_sqnr_db is not None
    assert facts["first"].weight_sqnr_db > 35.0
    assert all(fact.output_sqnr_db is not None and fact.output_sqnr_db > 20.0 for fact in facts.values())


@pytest.mark.parametrize("engine_name", [EIGHT_BITS, pytest.param("native", marks=needs_kernels)])
def test_a_model_that_takes_pixels_is_described_on_floats_too(engine_name: str) -> None:
    """Calibration data may be the model's own floats: ``samples`` are of no images."""
    spec = recipe(preprocess={"resize": 8, "crop": 8})
    facts, int8, _ = described(Block(), engine_name, spec=spec, data=samples((3, 8, 8)))
    assert int8.pixel_input
    assert "first" in facts
    assert all(fact.output_sqnr_db is None or fact.output_sqnr_db > 20.0 for fact in facts.values())
    assert any(fact.output_sqnr_db is not None for fact in facts.values())


def test_a_note_names_the_users_module_in_a_model_that_takes_pixels() -> None:
    spec = recipe(preprocess={"resize": 8, "crop": 8}, quantize={"skip": ["fc"]})
    model, found = calibrated(Block(), spec)
    int8 = quantize(found, model.module, spec, target(EIGHT_BITS))
    assert int8.pixel_input
    assert int8.notes == ("fc (Linear) stayed FP32: listed in skip",)


def test_a_module_that_is_called_twice_is_two_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.fc(self.conv(self.conv(x) + 1.0).mean((2, 3)))
            return result

    spec = recipe()
    model, found = calibrated(Twice(), spec)
    int8 = quantize(found, model.module, spec, target())
    facts = describe_layers(int8, found, [], samples())
    convs = [fact for fact in facts if fact.name in {"conv", "conv_1"}]
    assert len(convs) == 2
    assert all(fact.output_sqnr_db is not None and fact.output_sqnr_db > 20.0 for fact in convs)


class Stubbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.relu, self.second = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)
        self.sum = torch.ao.nn.quantized.FloatFunctional()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(self.quant(x if x.sum() < 1e9 else -x)))  # what no graph can hold
        x = self.sum.add(x, self.second(x))
        return torch.sigmoid(self.dequant(self.fc(x.mean((2, 3)))))


def test_an_eager_model_is_described_by_its_modules() -> None:
    facts, int8, _ = described(Stubbed(), "fbgemm")
    assert [facts[name].kernel for name in ("conv", "second", "sum", "fc")] == [
        "quantized::conv2d_relu",
        "quantized::conv2d",
        "quantized::add",
        "quantized::linear",
    ]
    assert facts["sum"].scale == pytest.approx(float(int8.module.sum.scale))
    assert facts["sum"].kind == "add"
    assert facts["sum"].output_sqnr_db is not None
    assert facts["sum"].output_sqnr_db > 20.0
    assert facts["sigmoid"].precision == "fp32"
    assert "QuantStub" in facts["sigmoid"].reason


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.norm, self.fc, self.head = nn.LSTM(6, 8), nn.LayerNorm(8), nn.Linear(8, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.fc(self.norm(self.lstm(x)[0][:, -1])))
        return result


def test_dynamic_quantization_has_operators_but_no_scales() -> None:
    spec = recipe((5, 6), quantize={"mode": "dynamic", "skip": ["head"]})
    facts, int8, _ = described(Recurrent(), "fbgemm", spec=spec, data=samples((5, 6)))
    assert list(facts) == ["lstm", "norm", "fc", "head"]
    assert facts["lstm"].kernel == "aten::quantized_lstm"
    assert facts["fc"].kernel == "quantized::linear_dynamic"
    assert facts["fc"].scale is None
    assert facts["fc"].weight_sqnr_db is not None
    assert facts["lstm"].output_sqnr_db is not None
    assert facts["norm"].reason == "dynamic quantization takes linear and recurrent layers only"
    assert float_notes(tuple(facts.values())) == int8.notes == ("head (Linear) stayed FP32: listed in skip",)


def test_the_table_of_a_wheel_ends_with_what_stayed_fp32() -> None:
    facts, _, _ = described(Odd())
    rows = [dataclasses.asdict(fact) for fact in facts.values()]
    text = format_layers(rows)
    assert text.splitlines()[0].split() == [
        "layer",
        "kind",
        "precision",
        "operator",
        "scale",
        "zero",
        "weights",
        "output",
    ]
    assert "silu (SiLU) stayed FP32: torch has no INT8 form of SiLU here (onednn)" in text
    int8 = sum(row["precision"] == "int8" for row in rows)
    assert f"{int8} of {len(rows)} layers run in INT8." in text


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.fc = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0].mean(1))


@needs_kernels
def test_a_model_by_dynamic_quantization_has_its_layers_described() -> None:
    data = samples((6, 8))
    facts, int8, _ = described(Steps(), "native", spec=recipe((6, 8), quantize={"mode": "dynamic"}), data=data)
    assert isinstance(int8.module, NativeModel)
    assert (facts["rnn"].precision, facts["mean"].precision) == ("int8", "fp32")
    assert all(fact.time_share is not None for fact in facts.values())


class Gathers(nn.Module):
    """Layers of every kind to a clock: INT8, FP32 by kernels, and one that only torch has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.inner, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(x))
        x = F.relu(self.inner(torch.linalg.inv(0.05 * x + torch.eye(x.shape[-1]))))
        return F.softmax(self.fc(x.mean((2, 3))), 1)


@needs_kernels
def test_each_layer_of_the_native_engine_has_its_share_of_the_time() -> None:
    facts, int8, _ = described(Gathers(), "native", spec=recipe(quantize={"skip": ["inner"]}))
    assert isinstance(int8.module, MixedModel)  # torch inverts between two programs
    assert {name for name, fact in facts.items() if fact.precision == "fp32"} >= {"inner", "linalg_inv"}
    shares = [fact.time_share for fact in facts.values()]
    assert all(share is not None and share > 0 for share in shares)
    assert sum(share or 0 for share in shares) <= 1.0
    text = format_layers([dataclasses.asdict(fact) for fact in facts.values()])
    assert "inner (Conv2d+ReLU) stayed FP32, " in text
    assert " % of the time: listed in skip" in text
