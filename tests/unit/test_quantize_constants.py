"""What has a range of its own in INT8: constants, sums and products with a number, tiny weights, parts of a join."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.errors import QuantizationError
from cpupack.graph.weight_grid import round_to_grid, weight_scales
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.qconfig import StatsObserver
from helpers.captured import Net, random
from helpers.tiny_models import ENGINES, calibrated, quantized, recipe, run, samples, target


def conv(inputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, 4, 3, padding=1)


Forward = Callable[[Net, torch.Tensor], torch.Tensor]
NETS: dict[str, Forward] = {
    "a position table": lambda net, x: net.b(F.relu(net.a(x)) + net.table * 3.0),
    "a table of one sample": lambda net, x: net.b(F.relu(net.a(x)) * net.table),
    "a table that is joined": lambda net, x: net.c(torch.cat([net.a(x), net.table.expand(x.shape[0], -1, -1, -1)], 1)),
    "a table that two calls read": lambda net, x: net.b((net.a(x) + net.table) * net.table),
    "a large product": lambda net, x: net.b(F.relu(net.a(x)) * 100.0).mean((2, 3)),
    "a large sum": lambda net, x: net.b(F.relu(net.a(x)) + 50.0).mean((2, 3)),
    "a product that both read": lambda net, x: torch.cat([(y := net.a(x)) * 1e4, net.b(y) * 1e4], 1),
    "a sigmoid of FP32 values": lambda net, x: net.b(torch.sigmoid(F.gelu(net.a(x)) * 3.0 - 1.0)),
    "a tanh of a sum": lambda net, x: net.b(torch.tanh((net.a(x) + net.a(x.abs())) * 2.0)),
    "parts of unequal ranges": lambda net, x: net.c(torch.cat([net.a(x) * 0.01, F.silu(net.a(x.abs())) * 9.0], 1)),
    "a quick GELU": lambda net, x: net.b((y := net.a(x)) * torch.sigmoid(1.702 * y)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("net", NETS)
def test_each_constant_and_result_has_its_own_range(net: str, engine: str) -> None:
    torch.manual_seed(0)
    module = Net(NETS[net], a=conv(), b=conv(4), c=conv(8), table=nn.Parameter(random(1, 4, 8, 8) * 4.0))
    model, int8 = quantized(module, engine)
    evaluation = samples(seed=1)
    # A handful of roundings, each 35 dB or better; a clipped or shared range costs 10 dB and more.
    assert accuracy.sqnr_db(run(model, evaluation), run(int8, evaluation)) > 23.0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("factor", [1e-6, 1e-9, 1e-20, 1e-30])
def test_tiny_weights_before_a_norm_keep_their_digits(engine: str, factor: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.0), nn.ReLU())
    with torch.no_grad():
        module[2].weight *= factor
    model, stats = calibrated(module, recipe(fuse={"modules": []}))
    del stats
    with torch.no_grad():
        module[3].running_mean.zero_()
        module[3].running_var.fill_(max(factor**2, 1e-37))
    model, int8 = quantized(module, engine)
    evaluation = samples(seed=1)
    assert accuracy.sqnr_db(run(model, evaluation), run(int8, evaluation)) > 20.0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bias_far_larger_than_the_weights_fits(engine: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(conv(), nn.ReLU(), conv(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        module[2].weight[:2] *= 1e-12
        module[2].weight[3] = 0.0
        module[2].bias.copy_(torch.tensor([-4.5, 5.0, 1.0, 3.0]))
    model, int8 = quantized(module, engine)
    evaluation = samples(seed=1)
    assert accuracy.sqnr_db(run(model, evaluation), run(int8, evaluation)) > 25.0


def test_weights_of_zero_have_scale_one_and_tiny_ones_their_own() -> None:
    weight = torch.tensor([[0.0, 0.0], [1e-30, -5e-31], [2.0, 1.0]])
    scales = weight_scales(weight, 0).flatten()
    assert scales.tolist() == pytest.approx([1.0, 1e-30 / 127, 2.0 / 127], rel=1e-6)
    rounded = round_to_grid(weight, 0)
    assert torch.equal(rounded[0], weight[0])
    assert float(rounded[1, 0]) == pytest.approx(1e-30, rel=1e-6)


def test_an_activation_without_a_range_is_an_error() -> None:
    observer = StatsObserver(256)
    observer.stands_on = "layer1_add"
    with pytest.raises(QuantizationError, match="layer1_add has no range"):
        observer.calculate_qparams()
    model, stats = calibrated(nn.Sequential(conv(), nn.ReLU(), conv(4), nn.ReLU()), recipe())
    del stats.stats["_0"]
    with pytest.raises(QuantizationError, match="_0 has no range: no calibration data went through it"):
        quantize(stats, model.module, recipe(), target("fbgemm"))
