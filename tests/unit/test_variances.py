"""Variances and standard deviations are means of squares on every engine, and need no torch in a wheel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cpupack import accuracy
from helpers.captured import Net, captured, kinds
from helpers.lowered import needs_kernels
from helpers.tiny_models import EIGHT_BITS, quantized, run, samples

FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "var": lambda x: x.var((2, 3)),
    "biased": lambda x: torch.var(x, dim=(2, 3), unbiased=False),
    "kept": lambda x: (x / torch.sqrt(x.var((-2, -1), keepdim=True) + 1e-5)).amax((2, 3)),
    "std": lambda x: x.flatten(2).std(-1),
    "corrected": lambda x: torch.std(x, dim=[2, 3], correction=2),
    "with means": lambda x: torch.cat(torch.std_mean(x, dim=(2, 3)), 1),
    "of channels": lambda x: torch.var_mean(x, dim=1, keepdim=True)[0].flatten(1)[:, :8],
}


@pytest.mark.parametrize("name", FORMS)
def test_variances_are_means_of_squares(name: str) -> None:
    graph = captured(Net(lambda net, x: FORMS[name](net.conv(x)), conv=nn.Conv2d(3, 8, 3)))  # compares on other data
    assert not [each for each in kinds(graph) if "var" in each or "std" in each]


@needs_kernels
@pytest.mark.parametrize("engine", ["native", EIGHT_BITS])
@pytest.mark.parametrize("name", FORMS)
def test_they_are_right_in_int8(name: str, engine: str) -> None:
    torch.manual_seed(0)
    width = 16 if name == "with means" else 8
    module = Net(
        lambda net, x: net.head(FORMS[name](net.conv(x))), conv=nn.Conv2d(3, 8, 3, padding=1), head=nn.Linear(width, 4)
    )
    model, int8 = quantized(module, engine, data=samples(count=32))
    fresh = samples(count=8, seed=1)
    assert accuracy.sqnr_db(run(model, fresh), run(int8, fresh)) > 25.0
    if engine == "native":
        assert int8.module.is_program


def test_a_variance_over_samples_is_refused_as_such() -> None:
    """Over the batch it is no mean that a program could make: the call stays, and the proof tells of it."""
    module = Net(lambda net, x: net.conv(x) / (x.var((0, 2, 3), keepdim=True).mean() + 1.0), conv=nn.Conv2d(3, 4, 3))
    with pytest.raises(Exception, match="depends on the other samples"):
        captured(module)
