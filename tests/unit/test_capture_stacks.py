"""Sums over stacked tensors become sums of these: nothing is laid out side by side for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cpupack.stages.quantize.native.program import Op
from helpers.captured import Net, captured, kinds, random
from helpers.lowered import BOUND_DB, lowered, needs_kernels, program_layers

Forward = Callable[[Net, torch.Tensor, torch.Tensor], torch.Tensor]


def selective(net: Net, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # SKNet
    u = torch.stack([a, b], 1)
    gates = torch.stack([net.one(u.sum(1).mean((2, 3), keepdim=True)), net.two(b.mean((2, 3), keepdim=True))], dim=1)
    return (u * gates.softmax(1)).sum(1)


def pyramid(net: Net, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # BiFPN
    weights = torch.relu(net.weights)
    return (torch.stack([a, b, a * b], dim=-1) * (weights / (weights.sum() + 1e-4))).sum(-1)


def gated(net: Net, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    gates = torch.stack([net.one(a).sigmoid(), net.two(b).sigmoid()])
    return (gates * torch.stack([a, b])).sum(0)


def shared(net: Net, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    gate = net.one(a).mean((2, 3)).sigmoid()[:, None, :, None, None]
    return torch.sum(gate * torch.stack([a, b], 1), dim=1)


def by_share(net: Net, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # one share for each tensor of a sample
    shares = net.route(a.mean((2, 3))).softmax(1)
    return (torch.stack([a, b], 1) * shares[:, :, None, None, None]).sum(1)


def net_of(forward: Forward) -> Net:
    return Net(
        lambda net, x: net.last(forward(net, net.a(x), net.b(x))),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 3, padding=1), one=nn.Conv2d(6, 6, 1), two=nn.Conv2d(6, 6, 1),
        route=nn.Linear(6, 2), weights=nn.Parameter(random(3).abs() + 0.5), last=nn.Conv2d(6, 4, 1),
    )  # fmt: skip


@pytest.mark.parametrize("forward", [selective, pyramid, shared, by_share], ids=lambda each: each.__name__)
def test_a_sum_of_stacked_tensors_is_a_sum_of_tensors(forward: Forward) -> None:
    graph = captured(net_of(forward), rewrites=("add_without_stacks",))
    assert "sum" not in kinds(graph)
    whole = [each for each in graph.graph.nodes if each.target is torch.cat and each.meta["shape"][-1] > 1]
    assert not whole


def test_tensors_that_are_stacked_before_the_batch_are_left_as_they_are() -> None:
    captured(net_of(gated))


def test_a_sum_over_another_dimension_of_a_stack_is_none_of_these() -> None:
    captured(net_of(lambda net, a, b: torch.stack([a, b], 1).sum(2).repeat(1, 3, 1, 1)))


def test_a_sum_that_keeps_its_dimension_gives_the_same() -> None:
    captured(net_of(lambda net, a, b: torch.stack([a, b], 1).sum(1, keepdim=True).squeeze(1)))


@needs_kernels
@pytest.mark.parametrize("forward", [selective, pyramid, by_share], ids=lambda each: each.__name__)
def test_nothing_moves_for_a_sum_of_stacked_tensors(forward: Forward) -> None:
    db, int8, _ = lowered(net_of(forward), (3, 9, 8))
    assert db > BOUND_DB - 3.0
    moves = [each for each in program_layers(int8) if each["op"] == Op.MOVE]
    assert len(moves) <= 4  # of gates of one pixel
