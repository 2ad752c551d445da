"""Rows of more than 32768 places: a minute of sound, or the pixels of an image as tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.graph.native_model import NativeModel
from cpupack.quantized_engine import engine
from cpupack.stages.quantize import quantize
from helpers.tiny_models import calibrated, recipe, samples, target

LENGTH = 40_000


class Sound(nn.Module):
    """A convolution over a long row, and what ``leave`` makes of it."""

    def __init__(self, leave: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.leave = nn.Conv1d(1, 8, 5, padding=2), nn.Linear(8, 3), leave

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.leave(F.relu(self.first(x))))
        return result


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "largest": lambda x: x.amax(-1),
    "largest of windows": lambda x: F.max_pool1d(x, 35_000).flatten(1),
    "mean": lambda x: x.mean(-1),
    "means of windows": lambda x: F.avg_pool1d(x, 36_000).flatten(1),
    "tokens": lambda x: F.layer_norm(x.transpose(1, 2), (8,)),
    "resized": lambda x: F.interpolate(x, scale_factor=1.5, mode="linear").transpose(1, 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_long_rows_are_native(way: str) -> None:
    torch.manual_seed(0)
    spec = recipe((1, LENGTH), quantize={"observer": "minmax"})
    model, stats = calibrated(Sound(WAYS[way]), spec, samples((1, LENGTH), 2))
    found = quantize(stats, model.module, spec, target("native"))
    assert isinstance(found.module, NativeModel)
    assert not [each.name for each in found.layers if each.kernel == "aten"]
    x = torch.randn(2, 1, LENGTH)
    with engine("native"), torch.inference_mode():
        mine, exact = found.module(x), model.module(x)
    error = (mine - exact).square().sum() / exact.square().sum()
    assert mine.shape == exact.shape
    assert error < 1e-3  # 30 dB: codes of 8 bits
