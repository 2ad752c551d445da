"""Lowering for the native engine: small models against FP32, what moves no bytes, what stays FP32, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from cpupack.layers import describe_layers
from cpupack.quantized_engine import engine
from cpupack.runtime.engine import library
from cpupack.runtime.images.inputs import model_input
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.fit import Fit
from cpupack.stages.quantize.native.program import Op
from cpupack.stages.script import script
from helpers.lowered import BOUND_DB, Calls, Residual, fits, kernels, lowered, needs_kernels, program_layers
from helpers.tiny_models import calibrated, recipe, run, samples, target


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
    assert "cpupack::run_3" not in saved.operators
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
    # The softmax reads float32 values of the last linear layer, which are compared as they are.
    assert [fact.output_sqnr_db is None for fact in layers] == [True, False, False, True]


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
