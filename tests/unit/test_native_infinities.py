"""Infinities that a later call replaces: what has them stays FP32, and the model answers as it does in FP32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cpupack import accuracy
from cpupack.errors import CalibrationError
from cpupack.stages.quantize import quantize
from helpers.lowered import BOUND_DB, Calls, needs_kernels
from helpers.tiny_models import EIGHT_BITS, calibrated, quantized, recipe, run, samples, target

Function = Callable[[torch.Tensor], torch.Tensor]
COARSE_DB = 15.0  # torch's engine compares codes with a threshold
SOME = torch.arange(64).view(1, 1, 8, 8) % 3 == 0


def inverse_of_degrees(x: torch.Tensor) -> torch.Tensor:
    """As layers of graphs normalize, some of whose nodes have no neighbours."""
    edges = (x > 0.3).float()
    degrees = edges.sum(-1)
    root = degrees.pow(-0.5)
    root = root.masked_fill(root == torch.inf, 0.0)
    return torch.matmul(root[..., None] * edges, F.relu(x))


def inverse_where_it_is(x: torch.Tensor) -> torch.Tensor:
    edges = (x > 0.3).float()
    degrees = edges.sum(-1, keepdim=True)
    return torch.where(degrees > 0, 1 / degrees, 0.0) * F.relu(x)


def logarithm(x: torch.Tensor) -> torch.Tensor:
    x = F.relu(x)
    return torch.where(x > 0, x * torch.log(x), 0.0)


def by_a_constant_mask(x: torch.Tensor) -> torch.Tensor:
    return torch.where(SOME, 1 / ((x.square() + 1.0) * SOME), F.relu(x))


def largest_by_a_constant_mask(x: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(SOME, -torch.inf).amax(3)


def no_number(x: torch.Tensor) -> torch.Tensor:
    scores = torch.matmul(x, x.transpose(2, 3)).masked_fill(torch.arange(8)[:, None] < 3, -torch.inf)
    return torch.matmul(torch.nan_to_num(torch.softmax(scores, -1)), x)


def ends_of_its_own(x: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(torch.log(F.relu(x)), neginf=-3.0)


FUNCTIONS: tuple[Function, ...] = (
    inverse_of_degrees, inverse_where_it_is, logarithm, by_a_constant_mask, largest_by_a_constant_mask, no_number,
    ends_of_its_own,
)  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: each.__name__)
def test_an_infinity_that_goes_away_does_not_stop_a_build(function: Function) -> None:
    torch.manual_seed(0)
    data, spec = samples(), recipe(quantize={"observer": "minmax"})
    model, stats = calibrated(Calls(function), spec, data)
    assert any(each.infinite for each in stats.stats.values()) or function is largest_by_a_constant_mask
    for engine, bound in (("native", BOUND_DB), (EIGHT_BITS, COARSE_DB)):
        int8 = quantize(stats, model.module, spec, target(engine))
        found = run(int8, data)
        assert accuracy.sqnr_db(run(model, data), found) > bound, engine
        if engine == "native":
            assert not [fact.name for fact in int8.layers if fact.kernel == "aten"]
            assert np.array_equal(np.concatenate([run(int8, data.take(np.array([each]))) for each in range(16)]), found)


def test_an_infinity_that_stays_is_refused_with_the_layer_where_it_begins() -> None:
    def endless(x: torch.Tensor) -> torch.Tensor:
        return torch.log(F.relu(x)) + 1.0

    with pytest.raises(CalibrationError, match=r"the output of log is not finite .*, so fusion cannot be checked"):
        calibrated(Calls(endless), recipe())
    data = samples()
    data.data[12:] *= 1e38  # samples that capture and fusion do not see
    with pytest.raises(CalibrationError, match=r"the output of x is not finite .* noise\[12\] to noise\[15\]"):
        calibrated(Calls(lambda x: torch.where(x > 9e9, 1 / (x - x), x)), recipe(), data)


@needs_kernels
def test_nan_to_num_of_ordinary_values_costs_nothing() -> None:
    torch.manual_seed(0)
    module = Calls(lambda x: torch.nan_to_num(F.relu(torch.nan_to_num(x))))
    model, int8 = quantized(module, "native", spec=recipe(quantize={"observer": "minmax"}))
    assert [fact.name for fact in int8.layers] == ["conv", "end"]
    assert accuracy.sqnr_db(run(model, samples()), run(int8, samples())) > BOUND_DB
