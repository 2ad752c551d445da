"""Graphs that are derived from those of two sizes, in place of being captured once more."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn

from cpupack.graph.substitution import NotDerivedError, derived

TABLE = torch.arange(24.0).reshape(12, 2)
LINEAR = nn.Linear(2, 3)


def captured(size: int, *, first: int = 0, table: torch.Tensor = TABLE, slope: float = 0.1) -> fx.GraphModule:
    """Return what capture makes of a row of values beside others, plus a table of positions, and a layer."""
    root = nn.Module()
    root.add_module("layer", LINEAR)
    root.add_module("act", nn.LeakyReLU(slope))
    root.register_buffer("places", table[:size].clone())
    graph = fx.Graph()
    x = graph.placeholder("x")
    part = graph.call_function(operator.getitem, (x, (slice(None), slice(first, first + 2 * size))))
    rows = graph.call_function(torch.reshape, (part, (-1, size, 2)))
    added = graph.call_function(torch.add, (rows, graph.get_attr("places")))
    graph.output(graph.call_module("act", (graph.call_module("layer", (added,)),)))
    return fx.GraphModule(root, graph)


def test_sizes_lie_on_a_line_and_constants_are_cut() -> None:
    whole = captured(12)
    found = derived(captured(4), whole, (4, 12), 7)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found(x), captured(7)(x), rtol=0, atol=0)
    assert found.get_parameter("layer.weight") is whole.get_parameter("layer.weight")
    torch.testing.assert_close(whole(x), captured(12)(x), rtol=0, atol=0)  # is left as it was


@pytest.mark.parametrize(
    ("small", "why"),
    [
        (captured(4, table=TABLE + 1), "no beginning"),
        (captured(4, slope=0.2), "other settings"),
        (captured(4, first=1), "on no line"),  # 1 and 0 at lengths that are 8 apart
    ],
)
def test_what_differs_in_another_way_is_not_derived(small: fx.GraphModule, why: str) -> None:
    with pytest.raises(NotDerivedError, match=why):
        derived(small, captured(12), (4, 12), 7)


def test_other_calls_are_not_derived() -> None:
    small = captured(4)
    node = next(each for each in small.graph.nodes if each.target is torch.add)
    node.target = torch.mul
    with pytest.raises(NotDerivedError, match="another call"):
        derived(small, captured(12), (4, 12), 7)
