"""What the native engine keeps in FP32 because INT8 would be wrong there, and tensors that are no images of a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.stages.quantize import quantize
from helpers.lowered import BOUND_DB, Calls, needs_kernels
from helpers.tiny_models import calibrated, recipe, run, samples, target


class Distance(nn.Module):
    """One number of each sample, without a dimension of its own until later."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = x.flatten(1).chunk(2, 1)
        return F.cosine_similarity(one, other).unsqueeze(1) * 2.0


def generalized_mean(x: torch.Tensor) -> torch.Tensor:
    return F.lp_pool2d(F.relu(x), 3.0, 4)


def deviations(x: torch.Tensor) -> torch.Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x.square().mean((2, 3), keepdim=True) - mean * mean).clamp(min=1e-4).sqrt()


def logarithm_of_a_sum(x: torch.Tensor) -> torch.Tensor:
    return x.exp().sum((2, 3)).log()


NETS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], set[str], str]] = {
    # what follows a convolution, calls that are in FP32 (some of them), the reason
    "a generalized mean": (generalized_mean, {"pow", "avg_pool2d", "pow_1"}, "a root of a power"),
    "deviations": (deviations, {"pow", "sub", "clamp", "sqrt"}, "a root of a power"),
    "a logarithm of a sum": (logarithm_of_a_sum, {"exp", "sum", "log"}, "a root of a power"),
    "one number of each sample": (Distance(), {"norm", "clamp"}, "what it divides would be infinite"),
}


@needs_kernels
@pytest.mark.parametrize("name", NETS)
def test_it_is_in_fp32_and_close(name: str) -> None:
    torch.manual_seed(0)
    function, expected, reason = NETS[name]
    data, spec = samples(), recipe(quantize={"observer": "minmax"})
    model, stats = calibrated(Calls(function), spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
    found = {fact.name.rpartition(".")[2]: fact.reason for fact in int8.layers if fact.precision == "fp32"}
    assert expected <= set(found), found
    assert all(reason in found[each] for each in expected), found
    for count in (1, 5):
        few = samples(count=count, seed=1)
        assert run(int8, few).shape == run(model, few).shape


@needs_kernels
def test_a_root_of_what_is_no_power_is_a_table() -> None:
    torch.manual_seed(0)
    data, spec = samples(), recipe(quantize={"observer": "minmax"})
    model, stats = calibrated(Calls(lambda x: torch.sqrt(F.relu(x) * 3.0 + 0.5)), spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert [fact.name for fact in int8.layers if fact.precision == "fp32"] == []
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


class Splines(nn.Module):
    """A layer of a Kolmogorov-Arnold network: products of two ramps for each knot, squared, and a linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.arange(-3.0, 5.0).repeat(inputs, 1) * 0.8 - 2.0)
        self.linear = nn.Linear(inputs * 8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(2)
        bumps = F.relu(x - self.low) * F.relu(self.low + 3.2 - x) * 0.39
        result: torch.Tensor = self.linear((bumps * bumps).flatten(1))
        return result


@needs_kernels
def test_the_pieces_of_splines_are_in_fp32() -> None:
    torch.manual_seed(0)
    spec, data = recipe((6,), quantize={"observer": "minmax"}), samples((6,), 64)
    model, stats = calibrated(nn.Sequential(Splines(6, 16), Splines(16, 4)), spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert [fact.name for fact in int8.layers if fact.precision == "int8"] == ["0.linear", "1.linear"]
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 34.0
