"""Layers of three dimensions on the native engine: videos and scans, ``(n, channels, frames, height, width)``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from helpers.lowered import BOUND_DB, kernels, lowered, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

SHAPE = (3, 6, 9, 10)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class After(nn.Module):
    """A convolution of a video, a function of its result, and a linear layer over all of that."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, channels, 3, padding=1)
        self.function = function
        if isinstance(function, nn.Module):
            self.layers = function
        self.end = nn.LazyLinear(5)
        self.end(torch.flatten(function(self.conv(torch.zeros(2, *SHAPE))), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(torch.flatten(self.function(self.conv(x)), 1))


class Block(nn.Module):
    """The block of a (2+1)-dimensional residual network, with a gate for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(channels, 2 * channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.norm = nn.BatchNorm3d(2 * channels)
        self.time = nn.Conv3d(2 * channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.time(F.relu(self.norm(self.space(x))))
        return F.relu(x + y * self.gate(y))


class Scan(nn.Module):
    """A U-Net of scans: a pool, an upsampling by three linear interpolations, one by a transposed convolution."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv3d(8, 16, 3, padding=1), nn.LeakyReLU(0.1))
        self.up = nn.ConvTranspose3d(16, 16, 2, 2) if transposed else nn.Upsample(scale_factor=2, mode="trilinear")
        self.last = nn.Sequential(nn.Conv3d(24, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.down(x)
        return self.last(torch.cat([one, self.up(self.deep(F.max_pool3d(one, 2)))], 1))


class OverFrames(nn.Module):
    """Layers of images over the frames of a video, which are in the batch, with a shift of channels through time."""

    def __init__(self, layers: nn.Module, frames: int = 4) -> None:
        super().__init__()
        self.frames = frames
        self.first, self.layers = nn.Conv2d(3, 8, 3, padding=1), layers
        self.end = nn.LazyLinear(5)
        self(torch.zeros(2, frames, 3, 8, 8))

    def shifted(self, x: torch.Tensor) -> torch.Tensor:
        video = x.view(-1, self.frames, *x.shape[1:])
        shifted = torch.zeros_like(video)
        shifted[:, :-1, :2] = video[:, 1:, :2]
        shifted[:, 1:, 2:4] = video[:, :-1, 2:4]
        shifted[:, :, 4:] = video[:, :, 4:]
        return shifted.view_as(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = F.relu(self.first(x.reshape(-1, *x.shape[2:])))
        scores = self.end(torch.flatten(self.layers(self.shifted(images)), 1))
        return scores.view(-1, self.frames, 5).mean(1)


class Shortcut(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.hardswish(self.layer(x) + x)


OVER_FRAMES: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 6, 1), nn.SiLU()
    ),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6()),
    "shortcut": lambda: Shortcut(nn.Conv2d(8, 8, 3, padding=2, dilation=2)),
    "pools": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveMaxPool2d(2)),
    "means": lambda: nn.AdaptiveAvgPool2d(1),
    "upsampling": lambda: nn.ConvTranspose2d(8, 4, 2, 2),
    "one norm": lambda: nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(8), nn.ELU()),
    "slopes of channels": lambda: nn.Sequential(nn.Conv2d(8, 6, 3), nn.PReLU(6), nn.Conv2d(6, 4, 1)),
}
FLOATS_OVER_FRAMES: dict[str, Callable[[], nn.Module]] = {
    "norms of groups": lambda: nn.Sequential(shifted(nn.GroupNorm(2, 8)), nn.SiLU(), nn.Conv2d(8, 6, 3)),
    "norms of channels": lambda: nn.Sequential(shifted(nn.InstanceNorm2d(8, affine=True)), nn.Conv2d(8, 6, 1)),
    "bilinear": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 6, 3)),
    "bilinear of a size": lambda: nn.Sequential(nn.Upsample((5, 11), mode="bilinear", align_corners=True)),
    "nearest": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 6, 3)),
    "windows": lambda: nn.Sequential(nn.Unfold(2, stride=2), nn.Sigmoid(), nn.Fold((8, 8), 2, stride=2)),
}


def shifted(norm: nn.Module) -> nn.Module:
    """Give each channel a factor and a term of its own."""
    for each in norm.parameters():
        each.data.uniform_(0.5, 1.5)
    return norm


torch.manual_seed(0)  # the weights of these are made here, after what other modules have drawn
LAYERS: dict[str, nn.Module] = {
    "stride": nn.Conv3d(8, 12, 3, 2, 1),
    "other stride, padding and dilation in each dimension": nn.Conv3d(
        8, 12, (3, 1, 3), (1, 2, 3), (2, 0, 4), (2, 1, 4)
    ),
    "same padding": nn.Conv3d(8, 4, (3, 5, 1), padding="same"),
    "reflected borders": nn.Conv3d(8, 4, 3, padding=1, padding_mode="reflect"),
    "borders that wrap around": nn.Conv3d(8, 4, (3, 1, 3), padding=(1, 0, 1), padding_mode="circular"),
    "groups": nn.Conv3d(8, 12, 3, padding=1, groups=4),
    "depthwise": nn.Sequential(nn.Conv3d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm3d(8), nn.Hardswish()),
    "depthwise of time": nn.Conv3d(8, 8, (5, 1, 1), padding=(2, 0, 0), groups=8),
    "one norm": nn.Sequential(nn.SiLU(), nn.BatchNorm3d(8)),
    "slopes": nn.Sequential(nn.Conv3d(8, 8, 1), nn.PReLU(8)),
    "transposed": nn.ConvTranspose3d(8, 6, 3, 2, 1, 1),
    "transposed in time": nn.ConvTranspose3d(8, 6, (4, 1, 1), (2, 1, 1), (1, 0, 0)),
    "transposed in groups": nn.ConvTranspose3d(8, 6, (1, 2, 3), (1, 2, 3), groups=2),
    "max pool": nn.MaxPool3d(3, 2, 1),
    "max pool of time": nn.MaxPool3d((3, 1, 1), (1, 1, 1), (1, 0, 0)),
    "max pool, dilated, to the end": nn.MaxPool3d((2, 2, 3), 2, dilation=(2, 1, 2), ceil_mode=True),
    "average pool": nn.AvgPool3d(3, 2, 1),
    "average pool of what is inside": nn.AvgPool3d((2, 3, 3), (1, 2, 2), (1, 1, 1), count_include_pad=False),
    "average pool, to the end": nn.AvgPool3d(4, 3, 1, ceil_mode=True),
    "average pool with a divisor": nn.AvgPool3d(2, divisor_override=3),
    "adaptive average": nn.AdaptiveAvgPool3d((3, 3, 5)),
    "adaptive average, odd": nn.AdaptiveAvgPool3d((4, 2, 7)),
    "adaptive maximum, odd": nn.AdaptiveMaxPool3d((4, 2, 7)),
    "nearest": nn.Upsample(scale_factor=2),
    "trilinear": nn.Upsample(scale_factor=(2, 1, 3), mode="trilinear", align_corners=True),
    "block": Block(8),
}
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean of each frame": lambda x: x.mean((3, 4)),
    "mean over frames": lambda x: x.mean(2),
    "largest of each frame": lambda x: x.amax((3, 4)),
    "largest over frames": lambda x: x.amax(2),
    "mean over rows": lambda x: x.mean(3),
    "slices of time": lambda x: x[:, :, 1:5:2].abs(),
    "the last frame": lambda x: x[:, :, -1].tanh(),
    "frames that are shifted": lambda x: torch.cat([x[:, :4], x[:, 4:].roll(1, 2)], 1).relu(),
    "frames as channels": lambda x: x.flatten(1, 2).sigmoid(),
    "joined in time": lambda x: torch.cat([x, x.tanh()], 2),
    "zeros around": lambda x: F.pad(x, (1, 2, 0, 1, 2, 0)).tanh(),
    "difference of frames": lambda x: (x[:, :, 1:] - x[:, :, :-1]).abs(),
    "constants of channels": lambda x: x * torch.linspace(-2.0, 2.0, 8).reshape(8, 1, 1, 1) + 0.5,
    "constants of frames": lambda x: x + torch.linspace(-2.0, 2.0, 6).reshape(6, 1, 1),
    "frames last": lambda x: x.permute(0, 3, 4, 1, 2).relu(),
    "frames of two by two pixels": lambda x: F.pixel_unshuffle(x[..., :8, :].transpose(1, 2), 2).relu(),
}


@needs_kernels
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    sqnr_db, int8, _ = lowered(After(LAYERS[name]).eval(), SHAPE)
    assert sqnr_db > BOUND_DB
    assert {fact.precision for fact in int8.layers} == {"int8"}


@needs_kernels
@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("max pool")])
def test_pools_of_the_maximum_between_calls_in_fp32(name: str) -> None:
    """As in Hiera, whose blocks pool the queries of windows that are frames."""
    function = nn.Sequential(nn.Softmax(1), LAYERS[name], nn.Softmax(2))
    sqnr_db, int8, _ = lowered(After(function).eval(), SHAPE)
    assert sqnr_db > BOUND_DB
    assert kernels(int8)[:4] == ["conv", "softmax", "windows", "softmax"]


@needs_kernels
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    sqnr_db, int8, _ = lowered(After(FUNCTIONS[name]).eval(), SHAPE)
    assert sqnr_db > BOUND_DB
    assert {fact.precision for fact in int8.layers} == {"int8"}


@needs_kernels
@pytest.mark.parametrize("norm", [nn.InstanceNorm3d(8), nn.InstanceNorm3d(8, affine=True), nn.GroupNorm(2, 8)])
def test_norms_of_scans_are_fp32_and_natively(norm: nn.Module) -> None:
    sqnr_db, int8, _ = lowered(After(nn.Sequential(norm, nn.LeakyReLU(0.01), Block(8))).eval(), SHAPE)
    assert sqnr_db > BOUND_DB
    assert "aten" not in kernels(int8)


@needs_kernels
@pytest.mark.parametrize("transposed", [False, True])
def test_a_network_of_scans(transposed: bool) -> None:
    sqnr_db, int8, _ = lowered(Scan(transposed=transposed).eval(), (1, 6, 8, 10))
    assert sqnr_db > BOUND_DB
    assert {fact.precision for fact in int8.layers} == {"int8"}


@needs_kernels
def test_what_follows_a_convolution_is_in_its_kernel() -> None:
    _, int8, _ = lowered(After(nn.Sequential(nn.BatchNorm3d(8), nn.ReLU(), Block(8))).eval(), SHAPE)
    assert kernels(int8)[0] == "conv + relu"
    assert "conv + relu" in kernels(int8)[1]


@needs_kernels
@pytest.mark.parametrize("name", OVER_FRAMES)
def test_layers_of_images_over_frames(name: str) -> None:
    sqnr_db, int8, _ = lowered(OverFrames(OVER_FRAMES[name]()).eval(), (4, 3, 8, 8))
    assert sqnr_db > BOUND_DB
    assert [fact.kind for fact in int8.layers if fact.precision == "fp32"] == ["mean"]  # of the scores: the end


@needs_kernels
@pytest.mark.parametrize("name", FLOATS_OVER_FRAMES)
def test_what_goes_channel_by_channel_over_frames_is_native(name: str) -> None:
    sqnr_db, int8, _ = lowered(OverFrames(FLOATS_OVER_FRAMES[name]()).eval(), (4, 3, 8, 8))
    assert sqnr_db > BOUND_DB - 3.0
    assert not [fact for fact in int8.layers if fact.kernel.startswith(("aten", "torch"))]
    assert {fact.precision for fact in int8.layers if fact.kind.startswith(("Conv", "Linear"))} == {"int8"}


def place_in_time(layer: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    """A constant for each frame, repeated for each video."""
    return images + layer.weight[:4, :, 0, 0].repeat(len(images) // 4, 1)[:, :, None, None]


def gate_of_video(layer: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    """One factor for all frames of a video."""
    return images * images.unflatten(0, (-1, 4)).mean((1, 3, 4)).sigmoid().repeat_interleave(4, 0)[:, :, None, None]


@needs_kernels
@pytest.mark.parametrize("function", [place_in_time, gate_of_video])
def test_what_is_repeated_over_frames_is_native(function: Callable[[nn.Conv2d, torch.Tensor], torch.Tensor]) -> None:
    class Repeated(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(function(self, x))

    sqnr_db, int8, _ = lowered(OverFrames(Repeated(8, 8, 1)).eval(), (4, 3, 8, 8))
    assert sqnr_db > BOUND_DB
    assert not [fact for fact in int8.layers if fact.kernel.startswith(("aten", "torch"))]


@needs_kernels
def test_a_layer_over_frames_that_is_skipped_stays_fp32() -> None:
    data = samples((4, 3, 8, 8))
    spec = recipe((4, 3, 8, 8), quantize={"skip": ["layers.0"]})
    model, int8 = quantized(OverFrames(OVER_FRAMES["convolutions"]()).eval(), "native", spec=spec, data=data)
    (skipped,) = (fact for fact in int8.layers if fact.name.startswith("layers.0"))
    assert skipped.precision == "fp32"
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


class Words(nn.Module):
    """A network of characters: the words of a text are in the batch, ``(batch * words, letters, places)``."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Sequential(
            nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 8, 3, groups=2), nn.ReLU6()
        )
        self.wider = nn.Sequential(nn.ConvTranspose1d(8, 8, 2, stride=2), nn.Tanh(), nn.AvgPool1d(2))
        self.end = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, words, letters, places = x.shape
        each = self.wider(self.letters(x.reshape(n * words, letters, places)))
        return self.end(F.adaptive_max_pool1d(each, 1).view(n, words, -1)).mean(1)


@needs_kernels
def test_signals_in_the_batch_are_images() -> None:
    sqnr_db, int8, _ = lowered(Words(), (5, 4, 12))
    assert sqnr_db > BOUND_DB
    assert not [fact for fact in int8.layers if fact.precision == "fp32" and fact.kind != "mean"]
