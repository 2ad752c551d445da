"""Layers of three dimensions that stay FP32, on the native engine: the values are those of torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

SHAPE = (6, 5, 7, 9)
LAYERS = {
    "convolution": lambda: nn.Conv3d(6, 8, 3, padding=1),
    "strided": lambda: nn.Conv3d(6, 6, (3, 2, 4), stride=(2, 3, 1), padding=(1, 0, 2), groups=2),
    "dilated": lambda: nn.Conv3d(6, 6, (2, 3, 1), padding=(2, 2, 0), dilation=(3, 2, 1), bias=False),
    "of each channel": lambda: nn.Conv3d(6, 12, (3, 3, 3), stride=(1, 2, 2), padding=1, groups=6),
    "transposed": lambda: nn.ConvTranspose3d(6, 5, 2, stride=2),
    "transposed, strided": lambda: nn.ConvTranspose3d(
        6, 4, (3, 2, 4), stride=(2, 3, 2), padding=(1, 0, 2), output_padding=(1, 2, 1), groups=2
    ),
    "transposed, dilated": lambda: nn.ConvTranspose3d(6, 4, 3, padding=1, dilation=(1, 2, 3), bias=False),
    "pool": lambda: nn.MaxPool3d(2),
    "pool of frames": lambda: nn.MaxPool3d((3, 1, 1), stride=(1, 2, 1), padding=(1, 0, 0)),
    "pool beyond the end": lambda: nn.MaxPool3d(3, stride=2, padding=1, ceil_mode=True),
    "pool, dilated": lambda: nn.MaxPool3d((2, 3, 2), stride=1, padding=(0, 1, 1), dilation=(2, 1, 3)),
}
NUMBERS = 4


class Kept(nn.Module):
    """A layer in FP32, and a linear layer beside it, so that the program has one in INT8."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.linear = layer, nn.Linear(6, NUMBERS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.exp(self.layer(x) * 0.02).flatten(1), self.linear(x.cos().mean((2, 3, 4)))], 1)


def whole_numbers(count: int) -> Samples:
    """Return samples that codes of 8 bits with the scale 1 have exactly."""
    data = np.random.default_rng(count).integers(-128, 128, (count, *SHAPE)).astype(np.float32)
    data.flat[:2] = -128, 127
    return dataclasses.replace(samples(SHAPE, count), data=data)


@needs_kernels
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_three_dimensions_stay_native_in_fp32(name: str) -> None:
    """Another order of the sum is 2 ** -24 of it for each product, some 120 dB; a wrong border is less than 30."""
    torch.manual_seed(0)
    net = Kept(LAYERS[name]()).eval()
    data = whole_numbers(3)
    spec = recipe(SHAPE, quantize={"observer": "minmax", "skip": ["layer"]})
    model, int8 = quantized(net, "native", spec=spec, data=data)
    facts = {fact.name: fact for fact in int8.layers}
    assert facts["layer"].precision == "fp32"
    assert "aten" not in {fact.kernel for fact in int8.layers}
    expected, found = run(model, data)[:, :-NUMBERS], run(int8, data)[:, :-NUMBERS]
    assert accuracy.sqnr_db(expected, found) > 110
