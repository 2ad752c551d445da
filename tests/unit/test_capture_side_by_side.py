"""Layers side by side, each with weights of its own: one INT8 layer, wherever the samples are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from helpers.captured import Net, captured, kinds
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

SHAPE = (4, 8)


def turned(net: Net, x: torch.Tensor) -> torch.Tensor:
    """As a network for each feature of a table is written."""
    return (x.transpose(0, 1) @ net.first).transpose(0, 1).relu() @ net.last


def with_shifts(net: Net, x: torch.Tensor) -> torch.Tensor:
    h = torch.baddbmm(net.shift, x.transpose(0, 1), net.first)
    return torch.bmm(h.relu(), net.second).transpose(0, 1)


def all_read_the_same(net: Net, x: torch.Tensor) -> torch.Tensor:
    """As an ensemble is written, and experts that see all tokens."""
    h = F.gelu(x.reshape(1, -1, 8).repeat(4, 1, 1) @ net.first) @ net.second
    return h.mean(0).view(-1, 4, 6)


def members(net: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.matmul(x.flatten(1)[:, :8], net.first).relu().mean(0) @ net.last


def rows_of_experts(net: Net, x: torch.Tensor) -> torch.Tensor:
    """As experts are written that all see all tokens: the hidden layer has a dimension for them."""
    h = F.relu(torch.einsum("bnd,edh->benh", x, net.first))
    return torch.einsum("benh,ehd->bend", h, net.second).mean(1)


def rows_of_slots(net: Net, x: torch.Tensor) -> torch.Tensor:
    return (x.reshape(-1, 4, 1, 8).expand(-1, -1, 3, -1) * net.steps) @ net.first[None] @ net.second


def one_for_all(net: Net, x: torch.Tensor) -> torch.Tensor:
    return (x[:, None] @ net.first).relu() @ net.second


CASES: dict[str, tuple[Callable[[Net, torch.Tensor], torch.Tensor], list[str]]] = {
    "turned": (turned, ["Conv1d"]),
    "with shifts": (with_shifts, ["Conv1d", "Conv1d"]),
    "all read the same": (all_read_the_same, ["Conv1d", "Conv1d"]),
    "members": (members, ["Linear"]),
    "rows of experts": (rows_of_experts, ["Linear", "ReLU", "Conv1d"]),
    "rows of slots": (rows_of_slots, ["Conv1d", "Conv1d"]),
    "one for all": (one_for_all, ["Linear", "ReLU", "Conv1d"]),
}


@needs_kernels
@pytest.mark.parametrize("name", CASES)
def test_it_is_one_layer_in_int8(name: str) -> None:
    torch.manual_seed(0)
    forward, wanted = CASES[name]
    weights = {
        key: nn.Parameter(torch.randn(*shape) * 0.3)
        for key, shape in {
            "first": (4, 8, 16),
            "second": (4, 16, 6),
            "shift": (4, 1, 16),
            "last": (16, 5),
            "steps": (3, 1),
        }.items()
    }
    module = Net(forward, **weights)
    assert [each for each in kinds(captured(module, SHAPE)) if each in wanted][: len(wanted)] == wanted
    data = samples(SHAPE, count=8)
    model, int8 = quantized(module, "native", spec=recipe(SHAPE, quantize={"observer": "minmax"}), data=data)
    assert not [fact for fact in int8.layers if fact.kernel.startswith(("aten", "torch"))]
    assert {fact.precision for fact in int8.layers if fact.kind.startswith(("Conv", "Linear"))} == {"int8"}
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 25.0
