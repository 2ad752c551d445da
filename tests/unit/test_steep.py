"""Steep functions of values over many powers of ten: the logarithm of a count has no codes before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import QuantizedModel, Samples
from cpupack.stages.quantize import reasons
from helpers.captured import Net
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

CHANNELS = 6
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "log1p": torch.log1p,
    "log10": lambda x: torch.log10(x.clamp(min=1.0)),
    "root": lambda x: (x + 0.375).sqrt() * 2.0,
    "asinh": lambda x: torch.asinh(x / 50.0),
}


def counts(*shape: int) -> Samples:
    values = np.exp(np.random.default_rng(0).standard_normal((32, *shape)) * 2.5 + 4.0).round().clip(0.0, 1e5)
    return Samples(values.astype(np.float32), "counts", tuple(map(str, range(32))))


def built(net: nn.Module, data: Samples) -> tuple[float, QuantizedModel]:
    shape = data.data.shape[1:]
    model, int8 = quantized(net, "native", spec=recipe(shape, quantize={"observer": "minmax"}), data=data)
    return accuracy.sqnr_db(run(model, data), run(int8, data)), int8


@needs_kernels
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_brings_counts_to_one_range_reads_no_codes(name: str) -> None:
    """With codes of the counts these have -5 to 18 dB."""
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.last(torch.relu(net.first(FUNCTIONS[name](x)))),
        first=nn.Linear(CHANNELS, 32), last=nn.Linear(32, 4),
    )  # fmt: skip
    sqnr_db, int8 = built(net, counts(CHANNELS))
    assert sqnr_db > 28.0
    assert all(fact.kernel.startswith("cpupack::") for fact in int8.layers)


@needs_kernels
def test_layers_before_a_logarithm_are_in_fp32_with_it() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.last(torch.relu(net.first(torch.log(net.bands(x) + 1.0)))),
        bands=nn.Linear(CHANNELS, CHANNELS), first=nn.Linear(CHANNELS, 32), last=nn.Linear(32, 4),
    )  # fmt: skip
    net.bands.weight.data = torch.eye(CHANNELS) + 0.05 * torch.rand(CHANNELS, CHANNELS)
    net.bands.bias.data.zero_()
    sqnr_db, int8 = built(net, counts(CHANNELS))
    assert sqnr_db > 28.0
    assert reasons.STEEP in {fact.reason for fact in int8.layers if fact.name == "bands"}


@needs_kernels
@pytest.mark.parametrize("act", [nn.SiLU(), nn.Sigmoid()], ids=lambda act: type(act).__name__)
def test_activations_of_layers_keep_their_tables(act: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 8, 3), act, nn.Flatten(), nn.Linear(128, 4))
    data = Samples(
        np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32) * 3.0, "noise", tuple("a" * 16)
    )
    _, int8 = built(net, data)
    assert all(fact.reason != reasons.STEEP for fact in int8.layers)


class Function(nn.Module):
    """A function of torch in a module of its own, which ``skip`` can name."""

    def __init__(self, name: str, scale: float = 1.0) -> None:
        super().__init__()
        self.name, self.scale = name, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = getattr(torch, self.name)(x)
        return found / self.scale


def beside_a_layer(function: Function, data: Samples) -> tuple[np.ndarray, QuantizedModel]:
    """Return what FP32 gives, and the INT8 model with the function in FP32: its results come first."""
    torch.manual_seed(0)
    width = data.data.shape[1]
    net = Net(
        lambda net, x: torch.cat([net.function(x), net.layer(x)], 1), function=function, layer=nn.Linear(width, 4)
    )
    model, int8 = quantized(net, "native", spec=recipe((width,), quantize={"skip": ["function"]}), data=data)
    return run(model, data), int8


@needs_kernels
@pytest.mark.parametrize(("name", "scale"), [("log1p", 1e-6), ("asinh", 1e4)])
def test_functions_in_fp32_are_right_for_small_and_large_values(name: str, scale: float) -> None:
    values = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32) * scale
    data = Samples(np.abs(values) if name == "log1p" else values, "values", tuple(map(str, range(16))))
    exact, int8 = beside_a_layer(Function(name, scale), data)
    assert accuracy.sqnr_db(exact[:, :8], run(int8, data)[:, :8]) > 100.0


@needs_kernels
def test_log1p_of_large_and_infinite_values() -> None:
    small = np.abs(np.random.default_rng(0).standard_normal((16, 8))).astype(np.float32) * np.float32(1e-6)
    _, int8 = beside_a_layer(Function("log1p", 1e-6), Samples(small, "values", tuple(map(str, range(16)))))
    extremes = np.array([[1e-7, 1e-3, 0.5, 1.0, 1e10, 1e29, 3e38, np.inf]], np.float32)
    found = run(int8, Samples(extremes, "values", ("0",)))[:, :8]
    np.testing.assert_allclose(found, np.log1p(extremes) / np.float32(1e-6), rtol=1e-6)


@needs_kernels
def test_a_layer_whose_results_are_averaged_before_a_root_is_int8_and_what_reads_it_is_not() -> None:
    """Much as filter response normalization. With codes of the layer's results this has 17 dB."""
    torch.manual_seed(0)

    def normed(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.first(x)
        return net.second(y * torch.rsqrt(y.abs().mean((2, 3), keepdim=True) + 1e-6))

    net = Net(normed, first=nn.Conv2d(3, 16, 3, padding=1), second=nn.Conv2d(16, 4, 1))
    net.first.weight.data *= torch.logspace(-3, 0, 16).view(-1, 1, 1, 1)
    net.first.bias.data.zero_()
    sqnr_db, int8 = built(net, samples((3, 12, 12), count=16))
    assert {each.name: each.precision for each in int8.layers}["first"] == "int8"
    assert sqnr_db > 30.0
