"""Rows at places that a mask gives (``torch.where(mask)``): all are computed, natively, and the chosen ones count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.stages.capture.chosen_places import compute_all_places
from cpupack.stages.capture.export import export
from helpers.captured import Net
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

SHAPE = (5, 16)


def mixtral(net: Net, x: torch.Tensor) -> torch.Tensor:
    batch, length, width = x.shape
    x = x.view(-1, width)
    weights, chosen = F.softmax(net.gate(x), dim=1, dtype=torch.float).topk(2, dim=-1)
    weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
    out = torch.zeros((batch * length, width), dtype=x.dtype)
    mask = F.one_hot(chosen, num_classes=3).permute(2, 1, 0)
    for number, expert in enumerate(net.experts):
        idx, top = torch.where(mask[number])
        state = x[None, top].reshape(-1, width)
        out.index_add_(0, top, (expert(state) * weights[top, idx, None]).to(x.dtype))
    return net.end(out.reshape(batch, length, width))


def mistral(net: Net, x: torch.Tensor) -> torch.Tensor:
    tokens = x.view(-1, x.shape[-1])
    weights, chosen = net.gate(tokens).topk(2)
    weights = F.softmax(weights, dim=1, dtype=torch.float)
    out = torch.zeros_like(tokens)
    for number, expert in enumerate(net.experts):
        places, nth = torch.where(chosen == number)
        out[places] += weights[places, nth, None] * expert(tokens[places])
    return net.end(out.view_as(x))


def one_each(net: Net, x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(0, 1)
    chosen, out = net.gate(tokens).argmax(-1), torch.zeros_like(tokens)
    for number, expert in enumerate(net.experts):
        places = (chosen == number).nonzero().squeeze(-1)
        out = out.index_add(0, places, expert(tokens.index_select(0, places)))
    return net.end(out.view_as(x))


def two_places(net: Net, x: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    first, second = (net.gate(x)[..., 0] > 0).nonzero(as_tuple=True)
    out[first, second] = net.experts[0](x[first, second]) * net.gate.weight[0]
    return net.end(out)


FORWARDS = {each.__name__: each for each in (mixtral, mistral, one_each, two_places)}


def net_of(forward: Callable[[Net, torch.Tensor], torch.Tensor]) -> Net:
    torch.manual_seed(0)
    each = [nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(3)]
    return Net(forward, gate=nn.Linear(16, 3), end=nn.Linear(16, 4), experts=nn.ModuleList(each))


@needs_kernels
@pytest.mark.parametrize("name", FORWARDS)
def test_rows_at_places_are_computed_natively(name: str) -> None:
    data = samples(SHAPE, count=24)
    model, int8 = quantized(net_of(FORWARDS[name]), "native", spec=recipe(SHAPE), data=data)
    assert [each.name for each in int8.layers if not each.kernel.startswith("cpupack")] == []
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 30.0


def test_an_expert_runs_once_for_a_token_that_chooses_twice() -> None:
    exported = compute_all_places(export(net_of(mixtral).eval(), torch.randn(3, *SHAPE)))
    gelus = [each for each in exported.graph.nodes if each.target is torch.ops.aten.gelu.default]
    rows = [each.meta["val"].shape[0] // 5 for each in gelus if "u" not in str(each.meta["val"].shape[0])]
    assert [str(each) for each in rows] == [str(exported.source.meta["val"].shape[0])] * 3


def test_rows_that_meet_in_a_place_without_an_order_are_left() -> None:
    """Two of three choices may be of one row, and then the last one stays: which one it is, the mask does not tell."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)
        places, _ = torch.where(net.gate(tokens) > 0)
        out = torch.zeros_like(tokens)
        out[places] = net.experts[0](tokens[places])
        return net.end(out.view_as(x))

    exported = compute_all_places(export(net_of(forward).eval(), torch.randn(3, *SHAPE)))
    assert any(each.target is torch.ops.aten.index_put.default for each in exported.graph.nodes)
