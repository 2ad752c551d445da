"""Capture of operators that are others put together: gated units, maxima of two tensors, masks, joins by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.graph.vocabulary import in_vocabulary
from helpers.captured import Net, captured, kinds, random

MASK = random(1, 1, 8, 8) > 0.3

FORWARDS = {
    "glu": lambda net, x: F.glu(net.a(x), 1),
    "glu of rows": lambda net, x: F.glu(net.a(x), -2),
    "hstack": lambda net, x: torch.hstack([net.a(x), x]),
    "dstack": lambda net, x: torch.dstack([net.a(x), net.a(x * 2)]),
    "maximum": lambda net, x: torch.maximum(net.a(x), net.b(x)),
    "maximum of halves": lambda net, x: torch.max(*net.a(x).chunk(2, 1)),
    "minimum": lambda net, x: torch.minimum(net.a(x), net.b(x)),
    "minimum with a number": lambda net, x: torch.min(net.a(x), torch.tensor(0.3)),
    "maximum with a parameter": lambda net, x: torch.max(net.p, net.a(x)),
    "least of a dimension": lambda net, x: net.a(x).min(1).values,
    "least of positions": lambda net, x: net.a(x).amin((2, 3)),
    "masked": lambda net, x: net.a(x).masked_fill(net.mask, 0.0),
    "masked by a number": lambda net, x: net.a(x).masked_fill(net.mask, -2.5),
    "chosen by a mask": lambda net, x: torch.where(net.mask, net.a(x), net.b(x)),
    "constant where not": lambda net, x: torch.where(net.mask, 0.5, net.a(x)),
    "addcmul": lambda net, x: torch.addcmul(net.a(x), net.b(x), net.a(x).sigmoid(), value=0.5),
    "lerp": lambda net, x: torch.lerp(net.a(x), net.b(x), 0.3),
    "power of a parameter": lambda net, x: net.a(x).clamp(min=0.1).pow(net.p),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_it_is_written_in_the_vocabulary(name: str) -> None:
    net = Net(
        FORWARDS[name], a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), p=nn.Parameter(torch.tensor([1.7])), mask=MASK
    )
    graph = captured(net)
    kept = [node for node in graph.graph.nodes if not in_vocabulary(graph, node)]
    assert kept == [], kinds(graph)


def test_a_mask_of_infinities_stays_a_mask() -> None:
    """An infinity times 0 is no number: attention fills in -inf before its softmax."""
    net = Net(lambda net, x: net.a(x).masked_fill(net.mask, -torch.inf).softmax(-1), a=nn.Conv2d(3, 4, 1), mask=MASK)
    assert "masked_fill" in " ".join(kinds(captured(net)))


def test_a_number_of_each_sample_gets_a_dimension() -> None:
    """A tensor of the batch alone, as similarities and distances are: flattening it from dimension 1 on fails."""

    def distance(net: Net, x: torch.Tensor) -> torch.Tensor:
        one, other = net.a(x).flatten(1), net.b(x).flatten(1)
        return F.cosine_similarity(one, other).unsqueeze(1) + (one - other).norm(dim=1)[:, None]

    captured(Net(distance, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1)))


def test_windows_are_padding_and_a_selection() -> None:
    net = Net(lambda net, x: F.unfold(net.a(x), 3, padding=1, stride=2), a=nn.Conv2d(3, 4, 1))
    assert kinds(captured(net)) == ["Conv2d", "pad", "im2col.default"]


def test_what_is_written_over_a_part_is_a_constant() -> None:
    def shifted(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.a(x).clone()
        y[:, :, 0, :] = 0.0
        y[:, 1].fill_(2.0)
        return net.b(y)

    assert "fill" not in " ".join(kinds(captured(Net(shifted, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)))))
