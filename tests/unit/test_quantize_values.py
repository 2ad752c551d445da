"""Values that INT8 must not spoil: sums that do not fit, divisors, integers and truth values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.quantized_engine import engine as engine_of
from helpers.tiny_models import ENGINES, SHAPE, host_bits, quantized, run, samples

# Rounding to 8 bits over a range of r costs r^2 / (12 * 255^2): for a normal tensor over +-4 sigma 41 dB below it. Ten
# such roundings add up to 31 dB; 25 leaves room for other distributions, and a wrong scale or weight is far below it.


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "groups"),
    [(16, 16, 3, 1), (16, 16, 1, 1), (16, 16, 3, 4), (16, 16, 3, 16), (64, 32, 1, 1)],
    ids=["conv", "1x1", "grouped", "depthwise", "wide 1x1"],
)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_sums_do_not_saturate_on_this_cpu(engine: str, inputs: int, outputs: int, size: int, groups: int) -> None:
    """Activations of 255, or 127 without VNNI, times weights of -128 and 127: sums are beyond 16 bits, and exact."""
    largest = 2.0 ** host_bits(engine) - 1.0
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(0, 2, (outputs, inputs // groups, size, size), generator=generator) * 255.0 - 128.0
    x = torch.randint(0, 2, (2, inputs, 8, 8), generator=generator) * 5.0 + largest - 5.0
    expected = F.conv2d(x.double(), weight.double(), groups=groups)
    scale = float(expected.abs().max()) / 127.0
    with engine_of(engine):
        conv = torch.ao.nn.quantized.Conv2d(inputs, outputs, size, groups=groups)
        conv.set_weight_bias(torch.quantize_per_tensor(weight, 1.0, 0, torch.qint8), None)
        conv.scale, conv.zero_point = scale, 128
        quantized_x = torch.quantize_per_tensor(x, 1.0, 0, torch.quint8).contiguous(memory_format=torch.channels_last)
        steps = conv(quantized_x).int_repr().double() - 128.0
    # Half a step of rounding, and a float32 rounding more.
    assert (steps - expected / scale).abs().max() <= 0.5 + 1e-3


class Guarded(nn.Module):
    """Divides by what is zero in the first row of every image, but for its guard."""

    def __init__(self, divide: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.divide = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), divide
        self.register_buffer("rows", torch.ones(1, 1, SHAPE[1], 1))
        self.get_buffer("rows")[:, :, 0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv(x)) * self.rows
        result: torch.Tensor = self.head(self.divide(y).mean((2, 3)))
        return result


@pytest.mark.parametrize("engine", [*ENGINES, "native"])
@pytest.mark.parametrize(
    "divide",
    [
        lambda y: F.normalize(y, dim=1),
        lambda y: y / (y.sum(1, keepdim=True) + 1e-12),
        lambda y: y / y.amax(1, keepdim=True).clamp(min=1e-12),
        lambda y: y / (y.norm(dim=1, keepdim=True) + 1e-10),
    ],
)
def test_a_divisor_is_not_rounded_to_zero(engine: str, divide: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    model, int8 = quantized(Guarded(divide), engine, None if engine == "native" else host_bits(engine))
    data = samples()
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 30


@pytest.mark.parametrize("engine", [*ENGINES, "native"])
@pytest.mark.parametrize(
    "mask",
    [
        lambda x, y: y * (x[:, :1] > 0).float(),
        lambda x, y: torch.where(x[:, :1] > 0, y, torch.zeros_like(y)),
        lambda x, y: y.masked_fill(y > 1, 1.0),
        lambda x, y: y + y.argmax(1, keepdim=True).float() / 8,
    ],
)
def test_values_of_other_types_are_right_too(
    engine: str, mask: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(mask(x, F.relu(self.conv(x)))).flatten(1)
            return result

    torch.manual_seed(0)
    model, int8 = quantized(Masked(), engine, None if engine == "native" else host_bits(engine))
    data = samples()
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 20
