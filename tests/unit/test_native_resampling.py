"""Interpolation and averages over windows in FP32: products with their weights, without torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.graph.native_model import NativeModel
from helpers.lowered import kernels, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

SEQUENCE, IMAGE, VIDEO, SCORES = (3, 13), (3, 9, 11), (3, 5, 6, 7), 4
CLOSE_DB = 30.0
"""The results are rounded to INT8 at the end, together with the scores. A wrong weight is 20 dB or less."""


class Kept(nn.Module):
    """A function of a convolution's result, both in FP32, and after it scores in INT8, which a program must have."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], convolution: nn.Module) -> None:
        super().__init__()
        self.conv = convolution
        self.function = function
        self.scores = nn.LazyLinear(SCORES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.flatten(self.function(self.conv(x)), 1), self.scores(torch.flatten(x, 1))], 1)


class Resized(nn.Module):
    def __init__(self, size: tuple[int, ...], mode: str, *, corners: bool | None = None, antialias: bool = False):
        super().__init__()
        self.size, self.mode, self.corners, self.antialias = size, mode, corners, antialias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, self.size, mode=self.mode, align_corners=self.corners, antialias=self.antialias)


IMAGES: dict[str, nn.Module] = {
    "bilinear": Resized((20, 24), "bilinear", corners=False),
    "bilinear from corner to corner": Resized((4, 30), "bilinear", corners=True),
    "bilinear, many results": Resized((150, 70), "bilinear", corners=False),
    "bilinear of one dimension": Resized((9, 31), "bilinear", corners=False),
    "bilinear to the same size": nn.Sequential(nn.Tanh(), Resized((9, 11), "bilinear", corners=False)),
    "bicubic": Resized((5, 23), "bicubic", corners=False),
    "bicubic from corner to corner, many results": Resized((131, 12), "bicubic", corners=True),
    "bilinear without aliases": Resized((4, 5), "bilinear", corners=False, antialias=True),
    "bicubic without aliases": Resized((4, 25), "bicubic", corners=False, antialias=True),
    "areas": Resized((4, 5), "area"),
    "averages to any positions": nn.AdaptiveAvgPool2d((4, 7)),
    "averages that end beyond the padding": nn.AvgPool2d(3, 3, padding=1, ceil_mode=True),
    "averages of what is inside": nn.AvgPool2d(4, 3, padding=1, ceil_mode=True, count_include_pad=False),
    "normalized by neighbours": nn.LocalResponseNorm(3, alpha=0.3, beta=0.6, k=1.5),
}
VIDEOS: dict[str, nn.Module] = {
    "trilinear": Resized((3, 11, 12), "trilinear", corners=False),
    "averages": nn.AvgPool3d(3, 2, 1),
    "averages of what is inside": nn.AvgPool3d((2, 3, 3), (1, 2, 2), (1, 1, 1), count_include_pad=False),
    "averages with a divisor": nn.AvgPool3d((2, 3, 1), (1, 2, 1), divisor_override=5),
    "averages to any positions": nn.AdaptiveAvgPool3d((3, 4, 7)),
    "averages to one position": nn.AdaptiveAvgPool3d(1),
}


def check(function: nn.Module, convolution: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    data, module = samples(shape), Kept(function, convolution).eval()
    module(torch.zeros(2, *shape))
    spec = recipe(shape, quantize={"observer": "minmax", "skip": ["conv", "function"]})
    model, int8 = quantized(module, "native", spec=spec, data=data)
    assert isinstance(int8.module, NativeModel)
    assert accuracy.sqnr_db(run(model, data)[:, :-SCORES], run(int8, data)[:, :-SCORES]) > CLOSE_DB


@needs_kernels
@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    check(IMAGES[name], nn.Conv2d(3, 5, 3, padding=1), IMAGE)


@needs_kernels
@pytest.mark.parametrize("name", VIDEOS)
def test_videos(name: str) -> None:
    check(VIDEOS[name], nn.BatchNorm3d(3), VIDEO)


@needs_kernels
@pytest.mark.parametrize("function", [Resized((29,), "linear", corners=False), nn.AdaptiveAvgPool1d(4)])
def test_sequences(function: nn.Module) -> None:
    check(function, nn.Conv1d(3, 5, 3), SEQUENCE)


@needs_kernels
@pytest.mark.parametrize("function", [nn.Identity(), nn.Softmax(1)])
@pytest.mark.parametrize(("size", "corners"), [((20, 24), False), ((4, 30), True), ((27, 33), False)])
def test_what_leaves_is_not_rounded(size: tuple[int, int], corners: bool, function: nn.Module) -> None:
    """A map at the end is what torch makes of the codes before it; the caller reads it, or a function in FP32."""
    torch.manual_seed(0)
    data, before = samples(IMAGE), nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
    after = nn.Sequential(Resized(size, "bilinear", corners=corners), function)
    _, codes = quantized(before, "native", spec=recipe(IMAGE), data=data)
    _, int8 = quantized(nn.Sequential(before, after), "native", spec=recipe(IMAGE), data=data)
    expected = after(torch.from_numpy(run(codes, data)))
    np.testing.assert_allclose(run(int8, data), expected.numpy(), rtol=0.0, atol=2e-6)
    assert "resample" in kernels(int8)
