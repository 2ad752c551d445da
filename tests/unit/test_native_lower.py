"""Lowering for the native engine: small models against FP32, what moves no bytes, what stays FP32, and refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import QuantizedModel, Samples
from cpupack.errors import QuantizationError
from cpupack.graph.native_model import MixedModel, NativeModel
from cpupack.layers import describe_layers
from cpupack.quantized_engine import engine
from cpupack.runtime.engine import library
from cpupack.runtime.images.inputs import model_input
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.fit import Fit
from cpupack.stages.quantize.native.program import BUFFER, HEADER, LAYER, Flag, Op
from cpupack.stages.script import script
from helpers import native_reference
from helpers.tiny_models import calibrated, quantized, recipe, run, samples, target

needs_kernels = pytest.mark.skipif(not native_reference.runs_here(), reason=f"the native kernels need {library.ISA}")

# With nothing clipped a rounding of normal values to 8 bits costs 41 dB (tests/unit/test_quantize.py); weights as much.
# n roundings of equal size add up to 41 - 10 log10(n): 12 of them leave 30 dB, and what is wrong leaves 10 at most.
BOUND_DB = 30.0


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def lowered(
    module: nn.Module, shape: tuple[int, ...] = (3, 8, 8), **quantize: object
) -> tuple[float, QuantizedModel, NativeModel]:
    """Return the SQNR on the calibration data with nothing clipped, and the model."""
    data = samples(shape)
    spec = recipe(shape, quantize={"observer": "minmax", **quantize})
    model, int8 = quantized(module, "native", spec=spec, data=data)
    assert isinstance(int8.module, NativeModel)
    return accuracy.sqnr_db(run(model, data), run(int8, data)), int8, int8.module


def program_layers(int8: QuantizedModel) -> np.ndarray:
    """Return the layers of a program, as it has them."""
    program = int8.module.program.numpy()
    header = program[: HEADER.itemsize].view(HEADER)[0]
    first = HEADER.itemsize + int(header["buffers"]) * BUFFER.itemsize
    return program[first : first + int(header["layers"]) * LAYER.itemsize].view(LAYER)


def fits(int8: QuantizedModel) -> list[int]:
    """Return what the program says of the products of its layers with weights, but of those that need not fit."""
    return [
        int(each["fit"])
        for each in program_layers(int8)
        if each["op"] in (Op.CONV, Op.DEPTHWISE) and not each["flags"] & Flag.WINOGRAD
    ]


def kernels(int8: QuantizedModel) -> list[str]:
    return [fact.kernel.removeprefix("cpupack::") for fact in int8.layers]


class Calls(nn.Module):
    """A convolution to ``channels``, a function of its result, and a linear layer behind."""

    def __init__(
        self, function: Callable[[torch.Tensor], torch.Tensor], channels: int = 8, after: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.function = function
        self.after = after or nn.Identity()
        self.end = nn.LazyLinear(5)
        self.end(torch.flatten(self.after(function(self.conv(torch.zeros(2, 3, 8, 8)))), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(torch.flatten(self.after(self.function(self.conv(x))), 1))


class Residual(nn.Module):
    def __init__(self, channels: int, *, relu: bool = True) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU() if relu else nn.Hardswish()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.two(self.relu(self.one(x))) + x)


class Excite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.up(F.silu(self.down(self.pool(x))))) * x


class Shuffle(nn.Module):
    """ShuffleNet's unit: half of the channels goes through, and both halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, groups=half),
            nn.Conv2d(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = x.chunk(2, dim=1)
        joined = torch.cat([one, self.branch(two)], dim=1)
        n, channels, height, width = joined.size()
        return (
            joined.view(n, 2, channels // 2, height, width)
            .transpose(1, 2)
            .contiguous()
            .view(n, channels, height, width)
        )


class Dense(nn.Module):
    """DenseNet's: BatchNorms behind concatenations, and a result that is read again and again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels + 4 * number) for number in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(channels + 4 * number, 4, 3, padding=1) for number in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return torch.cat(features, 1)


class Branches(nn.Module):
    """Inception's: branches of convolutions and pools, joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, 7, 1), nn.Conv2d(channels, 9, (1, 7), padding=(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [F.relu(self.one(x)), F.hardswish(self.two(x)), F.avg_pool2d(x, 3, stride=1, padding=1)]
        return torch.cat([*branches, F.max_pool2d(x, 3, stride=1, padding=1)], 1)


class Positions(nn.Module):
    """Linear layers over the positions of an image, and a sum there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(channels, 12), nn.Linear(12, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.two(F.gelu(self.one(tokens)))
        return tokens.transpose(1, 2).reshape(x.shape)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Calls(Residual(8)),
    "residual with hardswish": lambda: Calls(Residual(8, relu=False)),
    "excite": lambda: Calls(Excite(8)),
    "shuffle": lambda: Calls(nn.Sequential(Shuffle(8), Shuffle(8), nn.Conv2d(8, 6, 3))),
    "shuffle to the end": lambda: Calls(nn.Sequential(nn.ReLU(), nn.ChannelShuffle(2))),
    "dense": lambda: Calls(Dense(8)),
    "branches": lambda: Calls(Branches(8)),
    "positions": lambda: Calls(Positions(8)),
    "channels last": lambda: Calls(nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, 8)))),
    "groups of six": lambda: Calls(nn.Conv2d(24, 36, 3, groups=6), channels=24),
    "two filters a channel": lambda: Calls(nn.Conv2d(8, 16, 3, groups=8)),
    "dilated": lambda: Calls(nn.Conv2d(8, 8, 3, dilation=2, padding=2)),
    "same padding": lambda: Calls(nn.Conv2d(8, 8, 3, padding="same")),
    "stride 3": lambda: Calls(nn.Conv2d(8, 8, 1, stride=3)),
    "ceil_mode": lambda: Calls(nn.MaxPool2d(3, stride=2, ceil_mode=True)),
    "average with ceil_mode": lambda: Calls(nn.AvgPool2d(3, stride=2, ceil_mode=True)),
    "average of the image only": lambda: Calls(nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)),
    "adaptive windows": lambda: Calls(nn.AdaptiveAvgPool2d(4)),
    "lone batch norm": lambda: Calls(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8))),
    "relu6 alone": lambda: Calls(nn.Sequential(nn.MaxPool2d(2), nn.ReLU6())),
    "hardtanh": lambda: Calls(nn.Hardtanh(-0.4, 0.6)),
    "arithmetic": lambda: Calls(lambda x: (2.0 - x) / 3.0 * 0.5),
    "functions": lambda: Calls(lambda x: F.leaky_relu(F.elu(x)).tanh().abs()),
    "split and narrow": lambda: Calls(lambda x: torch.cat([x.split(2, 1)[3], x[:, 1:4], x.narrow(1, 0, 2)], 1)),
    "permuted vector": lambda: Calls(lambda x: x.permute(0, 2, 3, 1)),
    "pixel shuffle at the end": lambda: Calls(nn.PixelShuffle(2)),
    "sum of two branches": lambda: Calls(lambda x: F.relu(F.relu(x) + F.max_pool2d(x, 3, 1, 1))),
    "mean": lambda: Calls(lambda x: x.mean([2, 3])),
    "vectors side by side": lambda: Calls(lambda x: torch.cat([x.mean([2, 3]), x.mean((-1, -2))], 1)),
}


@needs_kernels
@pytest.mark.parametrize("name", MODELS)
def test_models_stay_close_to_fp32(name: str) -> None:
    db, int8, _ = lowered(MODELS[name]())
    assert db > BOUND_DB
    assert {fact.precision for fact in int8.layers} == {"int8"}


@needs_kernels
@pytest.mark.parametrize("isa", ["avx512_vnni", "avx2"])
@pytest.mark.parametrize("seed", range(12))
def test_random_nets_stay_close_to_fp32(seed: int, isa: str) -> None:
    """Layers of random kinds and sizes on images of odd sizes, and every one of them is looked at."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    channels, layers = int(random.integers(4, 40)), nn.ModuleList()
    layers.append(nn.Conv2d(3, channels, int(random.integers(1, 5)), int(random.integers(1, 3)), padding=1))
    for _ in range(4):
        blocks = (Residual, Excite, Branches, Dense, lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c))
        layers.append(blocks[random.integers(len(blocks))](channels))
        with torch.no_grad():
            channels = nn.Sequential(*layers)(torch.zeros(2, 3, 17, 13)).shape[1]
        layers.append((nn.ReLU, nn.Hardswish, nn.Identity)[random.integers(3)]())
    layers.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)])
    shape = (3, int(random.integers(9, 24)), int(random.integers(9, 24)))
    data, spec = samples(shape), recipe(shape, quantize={"observer": "minmax"})
    model, stats = calibrated(nn.Sequential(*layers), spec, data)
    int8 = quantize(stats, model.module, spec, target("native", isa=isa))
    if isa == "avx2":
        assert {Fit(each) for each in fits(int8)} <= {Fit.PAIRS, Fit.FOURS}
    # Three to five roundings in each of up to four blocks, of values that differ in size.
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB - 8.0
    for fact in describe_layers(int8, stats, [], data):
        assert fact.output_sqnr_db is not None
        assert fact.output_sqnr_db > 15.0, fact


# ---- what the parts of a model become


@needs_kernels
def test_calls_are_joined_into_kernels() -> None:
    _, int8, _ = lowered(nn.Sequential(Calls(nn.Sequential(Residual(8), nn.ReLU6(), Excite(8)))))
    assert kernels(int8) == [
        "conv", "conv + relu", "conv + add + relu + relu6", "global_average", "conv + silu", "conv + sigmoid", "scale",
        "conv",
    ]  # fmt: skip
    assert [fact.name for fact in int8.layers[:3]] == ["0.conv", "0.function.0.one", "0.function.0.two"]
    assert int8.layers[2].kind == "Conv2d+add+ReLU+ReLU6"
    assert all(fact.weight_sqnr_db > 40.0 for fact in int8.layers if fact.weight_sqnr_db is not None)


@needs_kernels
@pytest.mark.parametrize(
    ("size", "conv", "kernel"),
    [
        ((1, 1), {"kernel_size": 3, "padding": 1}, (1, 1)),
        ((1, 5), {"kernel_size": 3, "padding": 1}, (1, 3)),
        ((2, 2), {"kernel_size": 3, "padding": 1}, (3, 3)),
        ((2, 2), {"kernel_size": 3, "padding": 1, "stride": 2}, (2, 2)),
        ((2, 3), {"kernel_size": 5, "padding": 2, "groups": 8}, (3, 5)),
        ((2, 2), {"kernel_size": 3, "padding": 2, "dilation": 2}, (1, 1)),
        ((1, 1), {"kernel_size": 3, "padding": 2}, (3, 3)),  # three by three outputs, each with another tap
    ],
)
@pytest.mark.parametrize("isa", ["avx512_vnni", "avx2"])
def test_kernels_lose_what_sees_padding_alone(
    size: tuple[int, int], conv: dict[str, int], kernel: tuple[int, int], isa: str
) -> None:
    """And stay right: 8 channels of the smallest images, whose border is most of what there is."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, **conv), nn.ReLU(), nn.Flatten())
    data, spec = samples((3, *size)), recipe((3, *size), quantize={"observer": "minmax"})
    model, stats = calibrated(nn.Sequential(net), spec, data)
    int8 = quantize(stats, model.module, spec, target("native", isa=isa))
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
    last = [layer for layer in program_layers(int8) if layer["op"] in (Op.CONV, Op.DEPTHWISE)][-1]
    assert (last["kernel_h"], last["kernel_w"]) == kernel


@needs_kernels
def test_what_moves_no_values_takes_no_layer() -> None:
    _, int8, model = lowered(MODELS["shuffle to the end"]())
    assert kernels(int8) == ["conv + relu", "conv"]
    assert model.operators == {"cpupack::conv": 2, "cpupack::input_float": 1}


@needs_kernels
def test_parts_of_a_concatenation_are_written_where_they_belong() -> None:
    _, int8, model = lowered(Calls(lambda x: torch.cat([x, x], 1)))
    assert model.operators["cpupack::table"] == 2  # one value in two places
    branches = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Branches(8), nn.Flatten(), nn.Linear(8 * 8 * 32, 3))
    _, int8, model = lowered(branches)
    assert model.operators["cpupack::table"] == 2  # the pools' own
    _, int8, model = lowered(MODELS["dense"]())
    # All features are in one buffer but the first, which a BatchNorm reads alone too.
    assert model.operators == {
        "cpupack::conv": 7, "cpupack::depthwise": 1, "cpupack::input_float": 1, "cpupack::table": 1
    }  # fmt: skip
    _, int8, model = lowered(branches)
    scales = {fact.kind: fact.scale for fact in int8.layers}
    assert scales["Conv2d+ReLU"] == scales["Conv2d+Hardswish"] == scales["cat"] != scales["MaxPool2d"]


@needs_kernels
def test_a_result_in_fp32_is_not_rounded_to_eight_bits() -> None:
    """Behind the last sums there are no steps: a linear layer's and an average's results are float32."""
    for end in (
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 8, 500)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ):
        _, int8, _ = lowered(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), end))
        found = run(int8, samples(count=64))
        assert len(np.unique(found)) > 256
        assert int8.layers[-1].scale is None


@needs_kernels
@pytest.mark.parametrize(
    ("end", "shape"),
    [
        (nn.Sequential(), (8, 6, 6)),
        (nn.ReLU(), (8, 6, 6)),
        (nn.MaxPool2d(2), (8, 3, 3)),
        (nn.Flatten(), (288,)),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1)), (8, 1, 1)),
        (nn.Sequential(nn.Flatten(2), nn.Linear(36, 4)), (8, 4)),
        (nn.Sequential(nn.Flatten(), nn.Linear(288, 4), nn.ReLU()), (4,)),
        (nn.Sequential(nn.Flatten(), nn.Linear(288, 4), nn.Softmax(1)), (4,)),
        (nn.Sequential(nn.Flatten(), nn.Linear(288, 4), nn.Unflatten(1, (2, 2)), nn.LogSoftmax(2)), (2, 2)),
        (nn.Conv2d(8, 5, 6), (5, 1, 1)),
        (nn.Sequential(nn.Conv2d(8, 5, 1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Sigmoid()), (5, 12, 12)),
        (nn.Sequential(nn.Conv2d(8, 8, 1), nn.PixelShuffle(2), nn.Tanh(), nn.Flatten(2)), (2, 144)),
    ],
    ids=str,
)
def test_models_end_as_they_like(end: nn.Module, shape: tuple[int, ...]) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), end)
    db, int8, _ = lowered(module)
    assert run(int8, samples(count=3)).shape == (3, *shape)
    assert db > BOUND_DB


@needs_kernels
def test_vectors_go_in_too() -> None:
    db, int8, _ = lowered(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)), shape=(20,))
    assert db > BOUND_DB
    assert kernels(int8) == ["conv + relu", "conv"]


@needs_kernels
def test_one_scale_for_all_weights() -> None:
    module = Calls(Residual(8))
    with torch.no_grad():
        module.conv.weight[0] *= 50.0
    one = lowered(module, weights="per_tensor")[1].layers[0].weight_sqnr_db
    many = lowered(module)[1].layers[0].weight_sqnr_db
    assert one is not None
    assert many is not None
    assert one < many


# ---- parts in FP32


@needs_kernels
@pytest.mark.parametrize(
    ("skip", "kept"),
    [(["0"], ["0"]), (["1"], ["0"]), (["5"], ["5"]), (["0", "5"], ["0", "5"]), (["3", "5"], ["3", "5"])],
    ids=str,
)
def test_the_first_and_the_last_layers_may_stay_fp32(skip: list[str], kept: list[str], tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(1)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
        )
        with torch.no_grad():  # hard for weights of one scale: seven channels of eight have a fiftieth of its steps
            layers[0].weight[0] *= 50.0
            layers[5].weight[0] *= 50.0
        return layers

    db, int8, model = lowered(net(), skip=skip, weights="per_tensor")
    assert db > lowered(net(), weights="per_tensor")[0]
    facts = {fact.name: fact for fact in int8.layers}
    assert [name for name in kept if facts[name].precision == "fp32"] == kept
    assert {facts[name].reason for name in kept} == {"listed in skip"}
    assert facts["2"].precision == "int8"
    with torch.inference_mode():
        x = torch.randn(5, 3, 8, 8)
        with engine(library.ENGINE):
            expected = int8.module(x)
            saved = script(int8, (3, 8, 8), tmp_path / "model.pt")
            assert torch.equal(torch.jit.load(str(saved.path))(x), expected)
    assert saved.operators["cpupack::conv"] == model.operators["cpupack::conv"]
    assert "cpupack::run_1" not in saved.operators
    assert saved.fp32_operators >= len(skip)


@needs_kernels
def test_the_layers_of_a_mixed_model_are_described() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5), nn.Softmax(1))
    module.append(nn.Unflatten(1, (5, 1)))  # moves nothing: no layer
    data = samples()
    spec = recipe(quantize={"skip": ["0"]})
    model, stats = calibrated(module, spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    layers = describe_layers(int8, stats, ["0"], data)
    assert [(fact.name, fact.precision) for fact in layers] == [
        ("0", "fp32"), ("1", "int8"), ("3", "int8"), ("4", "fp32")
    ]  # fmt: skip
    assert [fact.output_sqnr_db is None for fact in layers] == [True, False, False, True]


# ---- refusals


class Lines(nn.Module):
    """Lines of constants: tables of channels and places, with a sign or two."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gains", torch.linspace(-4.0, 4.0, 8).reshape(8, 1, 1))
        self.register_buffer("places", torch.linspace(-2.0, 5.0, 64).reshape(1, 1, 8, 8))
        self.register_buffer("number", torch.tensor(0.3))


class Gains(Lines):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.gains * x)


class Places(Lines):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.places - x) * self.number


class Both(Lines):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu((x * self.gains - self.places) / 3.0 + self.gains)


class AlongWidth(nn.Module):
    """A sequence: layers of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(2), nn.Conv1d(8, 6, 5, 2, 2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(6, 6, 3, groups=2), nn.BatchNorm1d(6), nn.AvgPool1d(3, 2, 1), nn.ConvTranspose1d(6, 4, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        return torch.cat([F.interpolate(y, 21, mode="linear"), F.pad(y, (3, 4), mode="reflect")], 1)


def slopes(count: int) -> nn.Module:
    module = nn.PReLU(count)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.5, 0.8, count))
    return module


def zeros_in_front() -> nn.Module:
    """Padding of one side, written as a row and a column of zeros in front of a filter."""
    conv = nn.Conv2d(8, 8, 4, stride=2, padding=1)
    with torch.no_grad():
        conv.weight[:, :, 0] = 0.0
        conv.weight[:, :, :, 0] = 0.0
    return conv


class Written(nn.Module):
    """A slice that is written in place, whole or in part, and read with the rest."""

    def __init__(self, part: slice) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(x) * 2.0
        y[:, self.part] += x[:, self.part]
        return y


class BatchSecond(nn.Module):
    """A layer over ``(positions, batch, channels)``, as attention in torch has it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0)


OPERATORS: dict[str, Callable[[], nn.Module]] = {
    # padding
    "zeros before a convolution": lambda: Calls(lambda x: F.pad(x, (0, 1, 2, 1)), after=nn.Conv2d(8, 8, 3, 2)),
    "zeros for two readers": lambda: Calls(
        lambda x: (lambda y: y[:, :, 1:] + F.max_pool2d(y, (2, 1), 1))(F.pad(x, (1, 2)))
    ),
    "a border of its own": lambda: Calls(lambda x: F.pad(x, (1, 0, 2, 1), value=0.7)),
    "reflected": lambda: Calls(lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), after=nn.Conv2d(8, 8, 3)),
    "replicated": lambda: Calls(lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate")),
    "circular": lambda: Calls(lambda x: F.pad(x, (1, 2, 2, 1), mode="circular")),
    "cropped": lambda: Calls(lambda x: F.pad(x, (-1, -2, 0, -1))),
    "zeros in channels": lambda: Calls(lambda x: F.pad(x, (0, 0, 0, 0, 3, 2))),
    "even filter": lambda: Calls(nn.Conv2d(8, 8, 4, padding=1)),
    "even filter, same": lambda: Calls(nn.Conv2d(8, 8, (3, 4), padding="same")),
    "zeros in front": lambda: Calls(zeros_in_front()),
    # constants
    "gains": lambda: Calls(Gains()),
    "places": lambda: Calls(Places()),
    "gains and places": lambda: Calls(Both()),
    "gains behind a view": lambda: Calls(lambda x: x.permute(0, 2, 3, 1), after=nn.Sequential(Permuted(Gains()))),
    # functions of one value
    "slopes": lambda: Calls(slopes(8)),
    "one slope": lambda: Calls(slopes(1)),
    "several functions": lambda: Calls(lambda x: torch.log(F.silu(x * 0.8).abs() + 1.0) * 3.0),
    "relu twice": lambda: Calls(nn.Sequential(nn.ReLU(), nn.ReLU6())),
    "a power": lambda: Calls(lambda x: torch.pow(x.abs() + 0.1, 1.5)),
    # two activations
    "a product": lambda: Calls(lambda x: F.relu(torch.tanh(x) * torch.sigmoid(x))),
    "a square": lambda: Calls(lambda x: x * x),
    "a difference": lambda: Calls(lambda x: F.relu(F.relu(x) - torch.sigmoid(x))),
    "a gate of places": lambda: Calls(lambda x: x * torch.sigmoid(x.mean(1, keepdim=True))),
    "broadcast": lambda: Calls(lambda x: F.relu(x) + x.mean([2, 3])[:, :, None, None]),
    "outer product": lambda: Calls(lambda x: x.mean(2, keepdim=True) * x.mean(3, keepdim=True)),
    "rows joined": lambda: Calls(lambda x: torch.cat([x, F.relu(x)], 2)),
    "columns joined": lambda: Calls(lambda x: torch.cat([x, F.relu(x), x[..., 2:3]], 3)),
    "positions joined": lambda: Calls(
        lambda x: torch.cat([x.flatten(2).transpose(1, 2), x.flatten(2)[:, :, :3].transpose(1, 2)], 1)
    ),
    # reductions
    "half a mean": lambda: Calls(lambda x: x.mean(2)),
    "mean of channels": lambda: Calls(lambda x: torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)),
    "mean of positions": lambda: Calls(lambda x: x.flatten(2).transpose(1, 2).mean(1)),
    "a sum": lambda: Calls(lambda x: x.sum((2, 3))),
    "the largest": lambda: Calls(lambda x: torch.amax(x, (2, 3), keepdim=True)),
    # pooling
    "negative values": lambda: Calls(lambda x: F.max_pool2d(F.relu(x) - 5.0, 3, 2, padding=1)),
    "dilated pool": lambda: Calls(lambda x: F.max_pool2d(x, 3, 2, padding=1, dilation=2)),
    "average beyond the padding": lambda: Calls(lambda x: F.avg_pool2d(x, 3, 3, padding=1, ceil_mode=True)),
    "average of the image only": lambda: Calls(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "own divisor": lambda: Calls(nn.AvgPool2d((2, 3), padding=1, divisor_override=3)),
    "odd adaptive": lambda: Calls(nn.AdaptiveAvgPool2d((3, 11))),
    "adaptive maximum": lambda: Calls(nn.AdaptiveMaxPool2d((4, 1))),
    "pool of rows apart": lambda: Calls(lambda x: F.max_pool2d(x.transpose(1, 2), 2)),
    # other sizes
    "transposed": lambda: Calls(nn.ConvTranspose2d(8, 6, 4, 2, 1)),
    "transposed, groups": lambda: Calls(
        nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2), nn.ReLU()), after=nn.Conv2d(6, 5, 3)
    ),
    "transposed, channels": lambda: Calls(nn.ConvTranspose2d(8, 8, 3, 2, 1, groups=8, output_padding=1)),
    "transposed, two by two": lambda: Calls(
        lambda x: x, after=nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.Hardswish())
    ),
    "transposed, gaps": lambda: Calls(nn.ConvTranspose2d(8, 6, 3, (3, 2), 2, dilation=2)),
    "transposed, one by one": lambda: Calls(nn.ConvTranspose2d(8, 8, 1, 2)),
    "transposed, stride 1": lambda: Calls(nn.ConvTranspose2d(8, 6, 3, 1, 1)),
    "transposed, batch norm": lambda: Calls(
        nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6), nn.ReLU())
    ),
    "nearest": lambda: Calls(lambda x: F.interpolate(x, size=(5, 13)), after=nn.Conv2d(8, 4, 3)),
    "nearest, exact": lambda: Calls(lambda x: F.interpolate(x, size=(5, 13), mode="nearest-exact")),
    "bilinear": lambda: Calls(lambda x: F.interpolate(x, size=(16, 3), mode="bilinear", align_corners=False)),
    "bilinear, corners": lambda: Calls(lambda x: F.interpolate(x, size=(5, 13), mode="bilinear", align_corners=True)),
    "bicubic": lambda: Calls(lambda x: F.interpolate(x, size=(16, 11), mode="bicubic", align_corners=False)),
    "area": lambda: Calls(lambda x: F.interpolate(x, size=(3, 5), mode="area")),
    "pixel shuffle": lambda: Calls(nn.PixelShuffle(2), after=nn.Conv2d(2, 4, 3)),
    "pixel unshuffle": lambda: Calls(nn.PixelUnshuffle(2), after=nn.Conv2d(32, 4, 3)),
    # orders
    "rolled": lambda: Calls(lambda x: torch.roll(x, (1, 2), (2, 3)), after=nn.Conv2d(8, 4, 3)),
    "slices": lambda: Calls(lambda x: x[:, 1:7, ::2, 3:]),
    "a slice written": lambda: Calls(Written(slice(1, 8, 3))),
    "all of it written": lambda: Calls(Written(slice(0, 8))),
    "repeated": lambda: Calls(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True).expand_as(x))),
    "columns as features": lambda: Calls(nn.Linear(8, 5)),
    "one dimension": lambda: Calls(AlongWidth()),
}


class Permuted(nn.Module):
    """A function of an image that has its channels last."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x.permute(0, 3, 1, 2))


@needs_kernels
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_run_natively(name: str) -> None:
    db, int8, _ = lowered(OPERATORS[name]())
    assert db > BOUND_DB
    assert [(fact.name, fact.reason) for fact in int8.layers if fact.precision == "fp32"] == []


@needs_kernels
@pytest.mark.parametrize("name", [name for name in OPERATORS if name.startswith(("transposed", "zeros", "one dim"))])
def test_filters_of_every_shape_fit_into_16_bits(name: str) -> None:
    """For CPUs with AVX2 alone: weights of filters that were made from others, and sums of all of them that fit."""
    data, spec = samples(), recipe(quantize={"observer": "minmax"})
    model, stats = calibrated(OPERATORS[name](), spec, data)
    int8 = quantize(stats, model.module, spec, target("native", isa="avx2"))
    assert {Fit(each) for each in fits(int8)} <= {Fit.PAIRS, Fit.FOURS}
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB - 3.0  # their grids are coarser


@needs_kernels
def test_each_layer_of_them_is_close_to_fp32() -> None:
    """Not only in the end: what a look at a layer shows is where its values are."""
    data, spec = samples(), recipe(quantize={"observer": "minmax"})
    for name in ("transposed, groups", "gains and places", "bilinear", "a gate of places", "one dimension"):
        model, stats = calibrated(OPERATORS[name](), spec, data)
        int8 = quantize(stats, model.module, spec, target("native"))
        for fact in describe_layers(int8, stats, [], data):
            assert fact.output_sqnr_db is None or fact.output_sqnr_db > BOUND_DB, (name, fact)


# ---- several programs with FP32 between them


class Normalized(nn.Module):
    """A GroupNorm in the middle of a residual block: both sides of it read what comes before."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.one(x))
        return F.relu(self.two(self.norm(y))) + y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        weights = torch.matmul(self.q(tokens) * 0.35, self.k(tokens).transpose(1, 2)).softmax(-1)
        return tokens + self.out(torch.matmul(weights, self.v(tokens)))


MIXED: dict[str, tuple[Callable[[], nn.Module], list[str], dict[str, str]]] = {
    # a model, what skip names, and the layers in FP32 with a part of their reason
    "group norm": (lambda: Calls(Normalized()), [], {"function.norm": "no kernel for it"}),
    "layer norm": (lambda: Calls(nn.LayerNorm([8, 8, 8])), [], {"function": "no kernel for it"}),
    "attention": (
        lambda: Calls(Attention()), [],
        dict.fromkeys(("matmul", "softmax", "matmul_1"), "no kernel for it"),
    ),
    "the batch is not first": (
        lambda: Calls(BatchSecond()), [], {"function.inner": "first dimension is not the batch"}
    ),
    "skipped in the middle": (lambda: Calls(Residual(8)), ["function.one"], {"function.one": "listed in skip"}),
    "skipped, and what follows": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Flatten()),
        ["1"], {"1": "listed in skip"},
    ),
    "between two in FP32": (
        lambda: Calls(nn.Sequential(nn.GroupNorm(2, 8), nn.MaxPool2d(2), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1))), [],
        {"function.0": "no kernel for it", "function.1": "between layers in FP32", "function.2": "no kernel for it"},
    ),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", MIXED)
def test_what_has_no_kernel_runs_in_fp32_between_programs(name: str, tmp_path: Path) -> None:
    make, skip, expected = MIXED[name]
    data, spec = samples(), recipe(quantize={"observer": "minmax", "skip": skip})
    model, stats = calibrated(make(), spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert isinstance(int8.module, MixedModel)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
    layers = describe_layers(int8, stats, skip, data)
    floats = {
        fact.name.removeprefix("function.").split(".")[-1]: fact.reason for fact in layers if fact.precision == "fp32"
    }
    assert set(floats) == {each.removeprefix("function.").split(".")[-1] for each in expected}
    for each, reason in expected.items():
        assert reason in floats[each.removeprefix("function.").split(".")[-1]]
    assert all(fact.output_sqnr_db is None or fact.output_sqnr_db > BOUND_DB for fact in layers)
    with torch.inference_mode(), engine(library.ENGINE):
        for count in (5, 1):
            x = torch.randn(count, 3, 8, 8)
            saved = script(int8, (3, 8, 8), tmp_path / "model.pt")
            assert torch.equal(torch.jit.load(str(saved.path))(x), int8.module(x))
    assert "cpupack::run_1" not in saved.operators
    assert saved.fp32_operators >= len(expected)


@needs_kernels
def test_a_network_cut_in_parts_takes_pixels() -> None:
    settings = {"mode": "RGB", "interpolation": "bilinear", "mean": [0.5, 0.4, 0.6], "std": [0.2, 0.3, 0.25]}
    spec = recipe(preprocess=settings, quantize={"observer": "minmax"})
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    data = Samples(pixels, "noise", tuple(map(str, range(12))), PreprocessSpec.from_dict(settings))
    model, stats = calibrated(Calls(Normalized()), spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert int8.pixel_input
    x = torch.from_numpy(model_input(pixels, data.preprocess, pixel_input=True))
    with engine(library.ENGINE), torch.inference_mode():
        found = int8.module(x)
    assert accuracy.sqnr_db(run(model, data), found.numpy()) > BOUND_DB
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
    layers = describe_layers(int8, stats, [], data)
    assert min(fact.output_sqnr_db for fact in layers if fact.output_sqnr_db is not None) > BOUND_DB


# ---- refusals


@needs_kernels
def test_a_model_without_weights_is_refused() -> None:
    model, stats = calibrated(nn.Sequential(nn.ReLU(), nn.Flatten()), recipe())
    with pytest.raises(QuantizationError, match="no convolution and no linear layer"):
        quantize(stats, model.module, recipe(), target("native"))


@needs_kernels
def test_an_activation_without_statistics_is_an_error() -> None:
    """Whatever range were taken instead, the results would be ruined without a word."""
    model, stats = calibrated(Calls(nn.SiLU()), recipe())
    for gone in stats.stats:
        missing = dataclasses.replace(stats, stats={name: each for name, each in stats.stats.items() if name != gone})
        if gone in {"end", "flatten"}:
            continue  # not rounded
        with pytest.raises(QuantizationError, match="no calibration data went through"):
            quantize(missing, model.module, recipe(), target("native"))


# ---- pixels


@needs_kernels
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, (12, 12)), (3, 2, 1, (12, 12)), (7, 2, 3, (12, 16)), (3, 2, 0, (12, 12)), (4, 2, 1, (12, 12)),
     (5, 2, 2, (12, 8)), (3, 2, 1, (11, 12)), (8, 2, 0, (12, 12)), (6, 3, 0, (12, 12)), (1, 2, 0, (12, 12)),
     (2, 2, 3, (12, 12))],
)  # fmt: skip
def test_pixels_and_floats_give_what_fp32_gives(kernel: int, stride: int, padding: int, size: tuple[int, int]) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, kernel, stride, padding), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    settings = {"mode": "RGB", "interpolation": "bilinear", "mean": [0.5, 0.4, 0.6], "std": [0.2, 0.3, 0.25]}
    spec = recipe((3, *size), preprocess=settings, quantize={"observer": "minmax"})
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, *size, 3), dtype=np.uint8)
    data = Samples(pixels, "noise", tuple(map(str, range(12))), PreprocessSpec.from_dict(settings))
    model, stats = calibrated(module, spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert int8.pixel_input
    expected = run(model, data)
    assert accuracy.sqnr_db(expected, run(int8, data)) > BOUND_DB  # normalized floats
    x = torch.from_numpy(model_input(pixels, data.preprocess, pixel_input=True))
    with engine(library.ENGINE), torch.inference_mode():
        found = int8.module(x)
    assert accuracy.sqnr_db(expected, found.numpy()) > BOUND_DB
    layers = describe_layers(int8, stats, [], data)
    assert [fact.kernel for fact in layers] == [
        "cpupack::conv + relu", "cpupack::global_average", "cpupack::conv"
    ]  # fmt: skip
    assert min(fact.output_sqnr_db or 0.0 for fact in layers) > BOUND_DB


@needs_kernels
def test_pixels_are_for_a_first_convolution_in_int8() -> None:
    settings = {"mode": "RGB", "interpolation": "bilinear", "mean": [0.5], "std": [0.2]}
    for skip, module in ((["0"], nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))), ([], Calls(nn.ReLU()))):
        if not skip:
            module = nn.Sequential(nn.MaxPool2d(1), module)
        spec = recipe(preprocess=settings, quantize={"skip": skip})
        model, stats = calibrated(module, spec, samples())
        int8 = quantize(stats, model.module, spec, target("native"))
        assert not int8.pixel_input
        assert run(int8, samples(count=2)).shape[0] == 2
