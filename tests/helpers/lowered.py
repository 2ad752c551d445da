"""What the tests of the native engine's lowering share: a small model lowered, and looks into its program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import QuantizedModel
from cpupack.graph.native_model import NativeModel
from cpupack.runtime.engine.program_format import BUFFER, HEADER, LAYER
from cpupack.stages.quantize.native.program import Flag, Op
from helpers import native_reference
from helpers.tiny_models import quantized, recipe, run, samples

needs_kernels = pytest.mark.skipif(not native_reference.runs_here(), reason="the native kernels do not run on this CPU")

# With nothing clipped a rounding of normal values to 8 bits costs 41 dB (tests/unit/test_quantize.py); weights as much.
# n roundings of equal size add up to 41 - 10 log10(n): 12 of them leave 30 dB, and what is wrong leaves 10 at most.
BOUND_DB = 30.0


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
    assert isinstance(int8.module, NativeModel)
    assert isinstance(int8.module.program, torch.Tensor)
    program = int8.module.program.numpy()
    header = program[: HEADER.itemsize].view(HEADER)[0]
    first = HEADER.itemsize + int(header["buffers"]) * BUFFER.itemsize
    return program[first : first + int(header["layers"]) * LAYER.itemsize].view(LAYER)


def program_buffers(int8: QuantizedModel) -> np.ndarray:
    """Return the buffers of a program, as it has them."""
    assert isinstance(int8.module, NativeModel)
    assert isinstance(int8.module.program, torch.Tensor)
    program = int8.module.program.numpy()
    count = int(program[: HEADER.itemsize].view(HEADER)[0]["buffers"])
    return program[HEADER.itemsize : HEADER.itemsize + count * BUFFER.itemsize].view(BUFFER)


def fits(int8: QuantizedModel) -> list[int]:
    """Return what the program says of the products of its layers with weights, but of those that need not fit."""
    return [
        int(each["fit"])
        for each in program_layers(int8)
        if each["op"] in (Op.CONV, Op.DEPTHWISE) and not each["flags"] & Flag.WINOGRAD
    ]


def kernels(int8: QuantizedModel) -> list[str]:
    """Return what computes each layer, smoothed or not: that depends on random weights."""
    return [fact.kernel.removeprefix("cpupack::").replace(", smoothed", "") for fact in int8.layers]


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
