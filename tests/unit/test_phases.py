"""Sines of angles of several turns: the angles are never rounded to 8 bits, on any engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from helpers.captured import Net
from helpers.lowered import needs_kernels
from helpers.tiny_models import EIGHT_BITS, quantized, recipe, run

FREQUENCIES = torch.exp(-math.log(1e4) * torch.arange(8) / 8.0)


def embedded(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Times up to 1000, as diffusion models embed them."""
    angles = x * 1000.0 * FREQUENCIES
    return net.last(torch.relu(net.wide(torch.cat([torch.cos(angles), torch.sin(angles)], 1))))


def mapped(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Coordinates whose angles a linear layer gives: SIREN."""
    return net.last(torch.sin(net.middle(torch.sin(30.0 * net.first(x)))))


def positions(net: Net, x: torch.Tensor) -> torch.Tensor:
    """NeRF's powers of two."""
    parts = [f(x * 2.0**power * math.pi) for power in range(6) for f in (torch.sin, torch.cos)]
    return net.last(torch.relu(net.third(torch.cat(parts, 1))))


NETS: dict[str, Callable[[Net, torch.Tensor], torch.Tensor]] = {
    "times": embedded, "coordinates": mapped, "powers of two": positions,
}  # fmt: skip


def net(name: str) -> Net:
    torch.manual_seed(0)
    return Net(
        NETS[name], wide=nn.Linear(16, 32), last=nn.Linear(32, 4), first=nn.Linear(1, 32), middle=nn.Linear(32, 32),
        third=nn.Linear(12, 32),
    )  # fmt: skip


def data(seed: int, count: int) -> Samples:
    values = np.random.default_rng(seed).random((count, 1)).astype(np.float32)
    return Samples(values, "times", tuple(map(str, range(count))))


@needs_kernels
@pytest.mark.parametrize("engine", ["native", EIGHT_BITS])
@pytest.mark.parametrize("name", NETS)
def test_angles_of_several_turns_are_not_rounded(name: str, engine: str) -> None:
    model, int8 = quantized(net(name), engine, spec=recipe((1,)), data=data(0, 256))
    fresh = data(1, 64)
    expected, found = run(model, fresh), run(int8, fresh)
    assert accuracy.sqnr_db(expected - expected.mean(0), found - expected.mean(0)) > 25.0
    if engine == "native":
        assert int8.module.is_program
        assert any(layer.precision == "int8" for layer in int8.layers)


@needs_kernels
def test_small_angles_have_codes() -> None:
    module = Net(lambda net, x: net.two(torch.sin(net.one(x))), one=nn.Conv2d(3, 8, 3), two=nn.Conv2d(8, 4, 3))
    _, int8 = quantized(module, "native")
    assert not [layer for layer in int8.layers if layer.precision == "fp32"]
