"""Each operator of the vocabulary on the native engine, what runs in FP32 between its programs, and refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from cpupack import accuracy
from cpupack.errors import QuantizationError
from cpupack.graph.native_model import NativeModel
from cpupack.layers import describe_layers
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.fit import Fit
from cpupack.stages.quantize.ranges import choose_range
from helpers.lowered import BOUND_DB, Calls, fits, kernels, lowered, needs_kernels
from helpers.tiny_models import calibrated, recipe, run, samples, target


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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


class Zeroed(nn.Module):
    """A shift of rows that writes zeros in, as networks without spatial filters do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, :4, 1:] = x[:, :4, :-1]
        y[:, 4:] = x[:, 4:]
        y[:, :, :, 0] = 0.5
        return y


class BatchSecond(nn.Module):
    """A layer over ``(positions, batch, channels)``, as attention in torch has it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0)


class RowsNormalized(nn.Module):
    """A BatchNorm over ``(batch * positions, channels)``, as LeViT has it behind each linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.act, self.again = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.inner(x.flatten(2).transpose(1, 2))
        rows = self.act(self.norm(rows.flatten(0, 1))).reshape_as(rows)
        return self.again((rows * 2.0).flatten(0, 1)).reshape_as(rows) + rows


OPERATORS: dict[str, Callable[[], nn.Module]] = {
    "the batch is not first": lambda: Calls(BatchSecond()),
    "the batch is joined with positions": lambda: Calls(RowsNormalized()),
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
    "the larger": lambda: Calls(lambda x: torch.maximum(x, torch.tanh(x.flip(3)) * 2.0)),
    "the smaller": lambda: Calls(lambda x: torch.minimum(*x.chunk(2, 1))),
    "a gated unit": lambda: Calls(lambda x: F.glu(x, 1)),
    # constants of each sample
    "coordinates joined": lambda: Calls(
        lambda x: torch.cat([x, torch.linspace(-3, 2, 8).view(1, 1, 1, 8).expand(x.shape[0], 2, 8, 8)], 1)
    ),
    "a token joined": lambda: Calls(
        lambda x: torch.cat([torch.linspace(-1, 1, 8).expand(x.shape[0], 1, 8), x.flatten(2).transpose(1, 2)], 1)
    ),
    "zeros written in": lambda: Calls(Zeroed()),
    # reductions
    "the largest of three": lambda: Calls(lambda x: x[:, :6].unflatten(1, (2, 3)).amax(2)),
    "a sum of branches": lambda: Calls(lambda x: torch.stack([x, F.relu(x), torch.tanh(x)], 1).sum(1)),
    "a mean of branches": lambda: Calls(lambda x: torch.stack([x, F.relu(x)], 1).mean(1), after=nn.Conv2d(8, 4, 3)),
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
    "odd adaptive maximum": lambda: Calls(nn.AdaptiveMaxPool2d((3, 5))),
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
    "windows": lambda: Calls(lambda x: F.unfold(x, 3, padding=1, stride=2)),
    "windows, of a tensor": lambda: Calls(lambda x: x.unfold(2, 3, 2)),
    "chosen channels": lambda: Calls(lambda x: x[:, torch.tensor([5, 0, 0, 2])], after=nn.Conv2d(4, 4, 3)),
    "tiled": lambda: Calls(lambda x: x.repeat(1, 2, 1, 1), after=nn.Conv2d(16, 4, 3)),
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


# ---- calls in FP32: layers of the program, or torch's between programs


class Grows(nn.Module):
    """A concatenation that grows in one buffer. A function in FP32 reads it before it grows, and another one after."""

    def __init__(self) -> None:
        super().__init__()
        self.grow, self.again = nn.Conv2d(8, 4, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        more = F.relu(self.grow(x))
        two = torch.cat([x, more], 1)
        three = torch.cat([x, more, F.relu(self.again(two.softmax(1)))], 1)
        return torch.cat([two.softmax(2), three.softmax(1)], 1)


@needs_kernels
def test_values_of_a_concatenation_are_those_after_it_has_grown() -> None:
    """The values that were taken before it grew have nothing, or another tensor, in the new channels."""
    db, int8, _ = lowered(Calls(Grows()))
    assert db > BOUND_DB
    assert kernels(int8).count("softmax") == 3


@needs_kernels
@pytest.mark.parametrize(("threshold", "natively"), [(20.0, True), (16.0, True), (15.0, False), (0.5, False)])
def test_a_softplus_with_a_low_threshold_is_torchs(threshold: float, natively: bool) -> None:
    """Above its threshold torch gives the line x, which is another function unless the threshold is high."""
    module = nn.Sequential(nn.GroupNorm(2, 8), nn.Softplus(2.0, threshold), nn.GroupNorm(2, 8))
    spec = recipe(quantize={"observer": "minmax", "skip": ["function.1"]})
    model, stats = calibrated(Calls(module), spec)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert isinstance(int8.module, NativeModel) == natively
    assert accuracy.sqnr_db(run(model, samples()), run(int8, samples())) > BOUND_DB


# ---- refusals


@needs_kernels
def test_a_model_without_weights_is_refused() -> None:
    model, stats = calibrated(nn.Sequential(nn.ReLU(), nn.Flatten()), recipe())
    with pytest.raises(QuantizationError, match="no convolution, no linear and no recurrent layer"):
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


@needs_kernels
def test_values_that_only_max_pools_read_have_the_range_of_what_these_keep() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten(),
        nn.Linear(16, 5),
    )  # fmt: skip
    spec = recipe((3, 8, 8), quantize={"observer": "percentile", "percentile": 90.0})
    model, found = calibrated(module, spec, samples((3, 8, 8)))
    scale = quantize(found, model.module, spec, target("native")).layers[0].scale
    assert isinstance(found.fused.module, fx.GraphModule)
    pools = [node.name for node in found.fused.module.graph.nodes if str(node.target) in {"2", "3"}]
    first, last = (choose_range(found.stats[name], "percentile", 256, 90.0)[1] for name in pools)
    assert first < last  # of 16 values the second pool keeps the largest, of which fewer are cut off
    assert scale == pytest.approx(last / 255)
