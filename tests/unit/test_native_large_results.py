"""Maps of more than 2^24 values, as a segmentation of 1024 x 2048 pixels has them, leave the engine as others do."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.graph.native_model import NativeModel
from helpers.lowered import kernels, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

CLASSES, SIZE = 9, (1024, 1848)
"""9 x 1024 x 1848 are 17.0 million values, and 2^24 are 16.8 million."""


class Scores(nn.Module):
    def __init__(self, end: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.end = nn.Conv2d(3, CLASSES, 3, padding=1), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = F.interpolate(self.conv(x), SIZE, mode="bilinear", align_corners=False)
        return scores.sigmoid() if self.end == "sigmoid" else scores


@needs_kernels
@pytest.mark.parametrize("end", ["scores", "sigmoid"])
def test_a_map_of_many_values_is_native(end: str) -> None:
    """The engine took them for channels, and refused the program: the wheel was one of torch's engines."""
    assert CLASSES * SIZE[0] * SIZE[1] > 1 << 24
    shape = (3, 16, 28)
    data = samples(shape, count=2)
    model, int8 = quantized(Scores(end), "native", spec=recipe(shape, quantize={"observer": "minmax"}), data=data)
    assert isinstance(int8.module, NativeModel)
    assert "aten" not in kernels(int8)
    one = dataclasses.replace(data, data=data.data[:1], names=data.names[:1])
    assert accuracy.sqnr_db(run(model, one), run(int8, one)) > 30.0  # a wrong place is 0 dB
