"""What comes after the last layers and makes boxes, places or rates of their results: FP32 on every engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.stages.quantize import quantize
from helpers.captured import Net
from helpers.lowered import needs_kernels
from helpers.tiny_models import EIGHT_BITS, calibrated, quantized, recipe, run, samples, target

BOUND_DB = 25.0
"""A rounding to 8 bits costs 35 to 45 dB. In the range of boxes, scores have one code, and 0 dB."""

Forward = Callable[[Net, torch.Tensor], torch.Tensor]


def grid(size: int) -> torch.Tensor:
    down, right = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack((right, down), 2).float()


def anchors(net: Net, x: torch.Tensor) -> torch.Tensor:
    """YOLOv5's: two levels, boxes by sigmoids, grids and anchors, beside the scores."""
    found = []
    for head, map_, stride in ((net.head, x, 16.0), (net.other, F.max_pool2d(x, 2), 32.0)):
        size = map_.shape[-1]
        y = head(map_).view(len(x), 2, 7, size, size).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        middle, extent, scores = y.split((2, 2, 3), 4)
        middle = (middle * 2 + grid(size)) * stride
        extent = (extent * 2) ** 2 * net.anchors.view(1, 2, 1, 1, 2) * stride
        found.append(torch.cat((middle, extent, scores), 4).view(len(x), -1, 7))
    return torch.cat(found, 1)


def written_over(net: Net, x: torch.Tensor) -> torch.Tensor:
    """YOLOv5's first form: the parts of the result are written one after the other."""
    y = net.head(x).view(len(x), 2, 7, 8, 8).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
    y[..., 0:2] = (y[..., 0:2] * 2.0 - 0.5 + grid(8)) * 16.0
    y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * net.anchors.view(1, 2, 1, 1, 2)
    return y.view(len(x), -1, 7)


def distances(net: Net, x: torch.Tensor) -> torch.Tensor:
    """YOLOv8's: distances are means of distributions, which a fixed convolution makes."""
    y = net.wide(x).flatten(2)
    sides, scores = y.split((16, 3), 1)
    sides = net.mean(sides.view(len(x), 4, 4, 64).transpose(2, 1).softmax(1)).view(len(x), 4, 64)
    low, high = sides.chunk(2, 1)
    points = (grid(8) + 0.5).view(64, 2).t()
    boxes = torch.cat((points - low, points + high), 1) * 32.0
    return torch.cat((boxes, scores.sigmoid()), 1).transpose(1, 2)


def priors(net: Net, x: torch.Tensor) -> torch.Tensor:
    """SSD's: boxes relative to prior ones, whose sizes are exponentials."""
    y = net.head(x).flatten(2).transpose(1, 2)
    places = torch.cat((grid(8).view(64, 2) * 40.0, torch.full((64, 2), 40.0)), 1)
    middle = places[:, :2] + y[..., :2] * 0.1 * places[:, 2:]
    extent = places[:, 2:] * torch.exp(y[..., 2:4] * 0.2)
    return torch.cat((middle - extent / 2, middle + extent / 2, y[..., 4:].softmax(-1)), -1)


def units(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Values of each step in units of their own."""
    return net.line(F.relu(net.steps(x.flatten(2))).transpose(1, 2)) * net.spreads + net.means


def rates(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Exponentials of a map that is resized: nothing is rounded after them."""
    return torch.exp(F.interpolate(net.head(x), scale_factor=2, mode="bilinear")).permute(0, 2, 3, 1)


def amounts(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Shares of each pixel in units of their own: millimetres, metres, and a term that hides both."""
    y = torch.sigmoid(net.wide(x)[:, :3]) * net.units.view(1, 3, 1, 1)
    return (y + torch.tensor([0.0, 40.0, 0.0]).view(1, 3, 1, 1)).movedim(1, 3)


def counts(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Positive numbers of a row, each by a factor of its own."""
    return F.softplus(net.line(x.mean((2, 3)))) * net.units


NETS: dict[str, Forward] = {
    each.__name__: each for each in (anchors, written_over, distances, priors, units, rates, amounts, counts)
}  # fmt: skip


def net(name: str) -> Net:
    torch.manual_seed(0)
    forward = NETS[name]
    mean = nn.Conv2d(4, 1, 1, bias=False)
    mean.weight.data[:] = torch.arange(4.0).view(1, 4, 1, 1)
    return Net(
        lambda net, x: forward(net, F.silu(net.first(x)) if forward is not units else x),
        first=nn.Conv2d(3, 16, 3, padding=1), head=nn.Conv2d(16, 14 if name != "priors" else 7, 1),
        other=nn.Conv2d(16, 14, 1), wide=nn.Conv2d(16, 19, 1), mean=mean,
        units=torch.tensor([100.0, 1.0, 0.01]),
        anchors=torch.tensor([[1.0, 1.3], [1.6, 3.0]]), steps=nn.Conv1d(3, 16, 3, padding=1), line=nn.Linear(16, 3),
        means=torch.tensor([0.2, 1013.0, 20.0]), spreads=torch.tensor([0.1, 8.0, 300.0]),
    )  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("engine", ["native", EIGHT_BITS])
@pytest.mark.parametrize("name", NETS)
def test_each_decoded_value_has_steps_of_its_own(name: str, engine: str) -> None:
    """``name`` gives ``(n, ..., values)``: boxes in pixels, and scores up to 1."""
    model, int8 = quantized(net(name), engine, data=samples(count=32))
    fresh = samples(count=8, seed=1)
    expected, found = run(model, fresh), run(int8, fresh)
    for value in range(expected.shape[-1]):
        assert accuracy.sqnr_db(expected[..., value], found[..., value]) > BOUND_DB, value


@needs_kernels
@pytest.mark.parametrize("name", ["anchors", "distances", "priors", "units"])
def test_the_layers_stay_int8_and_nothing_needs_torch(name: str) -> None:
    spec = recipe()
    model, stats = calibrated(net(name), spec, samples(count=32))
    int8 = quantize(stats, model.module, spec, target("native"))
    assert int8.module.is_program
    layers = {layer.name: layer.precision for layer in int8.layers if layer.kind.startswith(("Conv", "Linear"))}
    assert layers.pop("mean", "fp32") == "fp32"  # the mean of a distribution
    assert layers
    assert set(layers.values()) == {"int8"}


@needs_kernels
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda x: torch.sigmoid(x) * 2.0 - 1.0, id="scaled"),
        pytest.param(lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bilinear"), id="resized"),
        pytest.param(lambda x: torch.cat((x[:, :8], x[:, 8:] * 0.5), 1), id="of like ranges"),
    ],
)
def test_maps_that_are_only_scaled_and_resized_stay_int8(end: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    module = Net(
        lambda net, x: end(net.last(F.relu(net.conv(x)))),
        conv=nn.Conv2d(3, 16, 3, padding=1),
        last=nn.Conv2d(16, 16, 1),
    )
    _, int8 = quantized(module, "native", data=samples(count=8))
    assert not [layer for layer in int8.layers if layer.precision == "fp32"]


@needs_kernels
def test_the_batch_decides_nothing() -> None:
    _, int8 = quantized(net("anchors"), "native", data=samples(count=32))
    fresh = samples(count=5, seed=2)
    together = run(int8, fresh)
    alone = np.concatenate([run(int8, fresh.take(np.array([row]))) for row in range(5)])
    np.testing.assert_array_equal(together, alone)
