"""Rows that a mask chooses: all of them are computed, natively, and of these the chosen ones are taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.stages.capture.chosen_rows import compute_all_rows
from cpupack.stages.capture.export import export
from helpers.captured import Net, captured, kinds
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

SHAPE = (6, 16)


def experts(net: Net, x: torch.Tensor) -> torch.Tensor:
    chosen, out = net.gate(x).argmax(-1), torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        of_expert = chosen == number
        out[of_expert] = expert(x[of_expert])
    return net.end(out)


def two_experts_each(net: Net, x: torch.Tensor) -> torch.Tensor:
    shares, chosen = net.gate(x).softmax(-1).topk(2, -1)
    tokens, shares, chosen = x.view(-1, 16), shares.view(-1, 2), chosen.view(-1, 2)
    out = torch.zeros_like(tokens)
    for number, expert in enumerate(net.experts):
        mask = chosen == number
        own = mask.any(-1)
        out[own] += expert(tokens[own]) * (shares * mask)[own].sum(-1, keepdim=True)
    return net.end(out.view_as(x))


def smaller_distances(net: Net, x: torch.Tensor) -> torch.Tensor:
    """As the sampling of farthest points writes it."""
    y, distance = net.end(x), torch.full((len(x), 6, 4), 0.5)
    nearer = y < distance
    distance[nearer] = y[nearer]
    return distance


def outside_apart(net: Net, x: torch.Tensor) -> torch.Tensor:
    """As flows of splines write it: a part of each row, in another order, with its ends written over."""
    y = net.end(x)
    inside = (y >= -0.5) & (y <= 0.5)
    out, parts = torch.zeros_like(y), net.parts(x).view(-1, 6, 4, 5)
    out[~inside] = y[~inside] * 2.0
    shares = F.pad(parts[inside].softmax(-1).cumsum(-1), (1, 0))
    shares[..., -1] = 1.0
    out[inside] = (shares * y[inside][:, None]).sum(-1)
    return out


FORWARDS = {each.__name__: each for each in (experts, two_experts_each, smaller_distances, outside_apart)}


def net_of(forward: Callable[[Net, torch.Tensor], torch.Tensor]) -> Net:
    torch.manual_seed(0)
    each = [nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(3)]
    return Net(
        forward, gate=nn.Linear(16, 3), end=nn.Linear(16, 4), parts=nn.Linear(16, 20), experts=nn.ModuleList(each)
    )


@needs_kernels
@pytest.mark.parametrize("name", FORWARDS)
def test_no_row_is_left_to_torch(name: str) -> None:
    module = net_of(FORWARDS[name])
    graph = captured(module, SHAPE)
    assert not any(each.startswith(("index", "nonzero")) for each in kinds(graph)), kinds(graph)
    data = samples(SHAPE, count=8)
    model, int8 = quantized(module, "native", spec=recipe(SHAPE, quantize={"observer": "minmax"}), data=data)
    assert not [fact for fact in int8.layers if fact.kernel.startswith(("aten", "torch"))]
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 25.0


def all_rows_meet(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.end(x)
    mask = y > 0.0
    out = torch.zeros_like(y)
    out[mask] = y[mask].cumsum(0)
    return out


def rows_of_another_mask(net: Net, x: torch.Tensor) -> torch.Tensor:
    """As many rows are chosen, of which the first one goes to another place."""
    y = net.end(x)
    out = torch.zeros_like(y)
    out[y > 0.0] = y.flip(1)[y.flip(1) > 0.0]
    return out


@pytest.mark.parametrize("forward", [all_rows_meet, rows_of_another_mask])
def test_rows_that_meet_others_stay_what_they_are(forward: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
    """Samples meet each other in such a model, so one sample tells whether the graph is the model."""
    found = compute_all_rows(export(net_of(forward).eval(), torch.randn(2, *SHAPE)))
    assert any(node.target is torch.ops.aten.index_put.default for node in found.graph.nodes)
