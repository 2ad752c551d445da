"""Inputs whose channels have ranges that differ by factors of a thousand: they are brought to one range in FP32."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from cpupack.graph.tags import LEVELS
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.stages.capture import capture
from helpers.captured import Net, kind
from helpers.lowered import needs_kernels
from helpers.tiny_models import EIGHT_BITS, Recorder, float_model, quantized, recipe, run

MEANS = torch.tensor([1.0, 0.0, 2020.0, 20.0, 5e4])
SPREADS = torch.tensor([0.01, 1.0, 10.0, 300.0, 2e4])


def data(*sizes: int, axis: int = -1, seed: int = 0, count: int = 64) -> Samples:
    """Columns (or bands, or steps) of measured values, 5 along ``axis``."""
    wide = [1] * (len(sizes) + 1)
    wide[axis] = 5
    values = np.random.default_rng(seed).standard_normal((count, *sizes))
    values = values * SPREADS.numpy().reshape(wide) + MEANS.numpy().reshape(wide)
    return Samples(values.astype(np.float32), "rows", tuple(map(str, range(count))))


def fitted(layer: Any, *, reads: slice = slice(0, 5)) -> Any:
    """Give the inputs of a layer weights as training does: each column counts alike, and their means cancel out."""
    with torch.no_grad():
        recurrent = isinstance(layer, nn.LSTM)
        weight, bias = (layer.weight_ih_l0, layer.bias_ih_l0) if recurrent else (layer.weight, layer.bias)
        weight[:, reads] /= SPREADS.reshape(1, 5, *[1] * (weight.ndim - 2))
        own = weight[:, reads].flatten(2).sum(2) if weight.ndim > 2 else weight[:, reads]
        if not any(getattr(layer, "padding", ())):
            bias -= own @ MEANS
    return layer


class Normed(nn.Module):
    """A norm of the input with the statistics of ``data``, and a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("means", MEANS)
        self.register_buffer("variances", SPREADS**2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(F.batch_norm(x, self.means, self.variances))
        return result


def nets() -> dict[str, tuple[nn.Module, Samples, list[str]]]:
    """Return nets, samples for them, and the calls that level them."""
    torch.manual_seed(0)
    linear, images = nn.Linear(16, 3), data(5, 8, 8, axis=1)
    mapped = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    around = dataclasses.replace(images, data=images.data - MEANS.numpy().reshape(1, 5, 1, 1))
    padded = fitted(nn.Conv2d(5, 16, 3, padding=1))
    means, spreads = MEANS.clone(), SPREADS.clone()
    table = Net(
        lambda net, x: net.head(torch.relu(net.first(torch.cat([net.words(x[:, 5:].long()).flatten(1), x[:, :5]], 1)))),
        words=nn.Embedding(9, 4), first=fitted(nn.Linear(9, 16), reads=slice(4, 9)), head=nn.Linear(16, 3),
    )  # fmt: skip
    ids = np.random.default_rng(1).integers(0, 9, (64, 1)).astype(np.float32)
    rows = data(5)
    beside = Samples(np.concatenate([rows.data, ids], axis=1), "rows", rows.names)
    steps = Net(
        lambda net, x: net.head(net.layer(x)[0][:, -1]),
        layer=fitted(nn.LSTM(5, 16, batch_first=True)), head=nn.Linear(16, 3),
    )  # fmt: skip
    scaled = Net(
        lambda net, x: net.rest(net.conv((x - net.means[:, None, None]) / net.spreads[:, None, None])),
        means=means, spreads=spreads, conv=nn.Conv2d(5, 16, 3, padding=1), rest=mapped,
    )  # fmt: skip
    return {
        "columns": (nn.Sequential(fitted(nn.Linear(5, 16)), nn.ReLU(), linear), data(5), ["BatchNorm1d"]),
        "norm of columns": (
            nn.Sequential(Normed(nn.Linear(5, 16)), nn.ReLU(), linear), data(5), ["BatchNorm1d"]
        ),
        "bands": (nn.Sequential(fitted(nn.Conv2d(5, 16, 3)), mapped), images, ["BatchNorm2d"]),
        "bands with zeros around": (nn.Sequential(padded, mapped), around, ["BatchNorm2d"]),
        "norm of bands": (
            nn.Sequential(Normed(nn.Conv2d(5, 16, 3, padding=1)), mapped), images, ["BatchNorm2d"]
        ),
        "scaled bands": (scaled, images, ["BatchNorm2d"]),
        "columns of steps": (nn.Sequential(fitted(nn.Linear(5, 16)), nn.ReLU(), linear), data(7, 5), ["add", "mul"]),
        "channels of steps": (
            nn.Sequential(fitted(nn.Conv1d(5, 16, 3)), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), linear),
            data(5, 9, axis=1), ["add", "mul"],
        ),
        "recurrent": (steps, data(7, 5), ["add", "mul"]),
        "beside embeddings": (table, beside, ["cat", "BatchNorm1d"]),
    }  # fmt: skip


def levels(module: nn.Module, samples: Samples) -> list[str]:
    """Capture a net; return the calls that level its input."""
    spec = recipe(samples.data.shape[1:])
    graph = capture(float_model(module, samples.data.shape[1:]), samples, spec, Recorder()).module
    assert isinstance(graph, fx.GraphModule)
    return [kind(graph, node) for node in graph.graph.nodes if node.meta.get(LEVELS)]


@pytest.mark.parametrize("name", nets())
def test_channels_are_levelled_before_the_first_codes(name: str) -> None:
    module, samples, expected = nets()[name]
    assert levels(module, samples) == expected


@needs_kernels
@pytest.mark.parametrize("engine", ["native", EIGHT_BITS])
@pytest.mark.parametrize("name", nets())
def test_small_channels_are_heard(name: str, engine: str) -> None:
    """Without levels the result has 0 to 15 dB, and less than 0 where a norm was folded into the first layer."""
    module, samples, _ = nets()[name]
    model, int8 = quantized(module, engine, spec=recipe(samples.data.shape[1:]), data=samples)
    expected, found = run(model, samples), run(int8, samples)
    assert accuracy.sqnr_db(expected - expected.mean(0), found - expected.mean(0)) > 24.0


@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_inputs_whose_channels_are_alike_stay_as_they_are(spread: float) -> None:
    values = np.random.default_rng(0).standard_normal((64, 5)) * [spread, spread / 3, spread / 2, spread, spread / 4]
    samples = Samples(values.astype(np.float32), "rows", tuple(map(str, range(64))))
    assert levels(nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)), samples) == []


def test_values_that_are_nearly_always_zero_are_not_blown_up() -> None:
    """The corners of drawn digits: a scale of their own would clip the next digit that reaches them."""
    values = np.random.default_rng(0).random((64, 100)) * (np.arange(100) > 20)
    values[3, :20] = 0.01
    samples = Samples(values.astype(np.float32), "rows", tuple(map(str, range(64))))
    assert levels(nn.Sequential(nn.Linear(100, 16), nn.ReLU(), nn.Linear(16, 3)), samples) == []


def test_pixels_have_one_range() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    spec = PreprocessSpec(resize=(8, 8), std=(0.001, 0.25, 0.25))
    samples = Samples(pixels, "pixels", tuple(map(str, range(16))), preprocess=spec)
    graph = capture(float_model(nn.Conv2d(3, 4, 3)), samples, recipe(), Recorder()).module
    assert isinstance(graph, fx.GraphModule)
    assert not any(node.meta.get(LEVELS) for node in graph.graph.nodes)


def test_a_channel_that_is_constant_so_far_keeps_its_answer() -> None:
    samples = data(5)
    samples.data[:, 1] = 7.0
    model = float_model(nn.Sequential(fitted(nn.Linear(5, 16)), nn.ReLU(), nn.Linear(16, 3)), (5,))
    graph = capture(model, samples, recipe((5,)), Recorder()).module
    other = data(5, seed=1, count=4).tensor(slice(None))
    with torch.inference_mode():
        torch.testing.assert_close(graph(other), model.module(other), rtol=1e-3, atol=1e-2)
