"""Activations after reshapes and permutations of a layer's result become part of the layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.captured import Net, captured, kinds

SHAPE = (6, 8)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda net, x: F.gelu(net.a(x).unflatten(2, (3, 4)).permute(0, 2, 1, 3)), ["Linear", "GELU", "reshape"]),
        (lambda net, x: net.norm(net.a(x).transpose(1, 2)).transpose(1, 2).relu(), ["Linear", "permute", "Batch"]),
        (lambda net, x: net.slope(net.a(x).flatten(1)), ["Linear", "PReLU", "flatten"]),
    ],
)
def test_an_activation_comes_right_after_the_layer(forward: object, expected: list[str]) -> None:
    net = Net(forward, a=nn.Linear(8, 12), norm=nn.BatchNorm1d(12), slope=nn.PReLU())  # type: ignore[arg-type]  # of the list above
    found = kinds(captured(net, SHAPE, ("compute_before_moves",)))
    assert all(each.startswith(wanted) for each, wanted in zip(found, expected, strict=False)), found


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: (y := net.a(x).reshape(-1, 72)).relu() + y,  # what is moved has another reader
        lambda net, x: (y := net.a(x)).reshape(-1, 72).relu() + y.flatten(1),  # so has the layer
        lambda net, x: net.slopes(net.a(x).transpose(1, 2)),  # a slope for each channel, which is elsewhere before
    ],
)
def test_other_readers_and_slopes_of_channels_stay_where_they_are(forward: object) -> None:
    net = Net(forward, a=nn.Linear(8, 12), slopes=nn.PReLU(12))  # type: ignore[arg-type]  # of the list above
    found = kinds(captured(net, SHAPE))
    at = next(place for place, each in enumerate(found) if each in {"ReLU", "PReLU"})
    assert set(found[:at]) & {"reshape", "flatten", "permute"}, found


def test_a_layer_and_its_activation_are_told_as_they_are_written() -> None:
    net = Net(lambda net, x: torch.relu(net.a(x).transpose(1, 2)), a=nn.Linear(8, 12))
    assert kinds(captured(net, SHAPE)) == ["Linear", "ReLU", "permute"]
