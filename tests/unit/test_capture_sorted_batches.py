"""Batches that a model sorts by lengths and puts back: the samples stay where they are, with the same answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.stages.capture.proof import Proof
from helpers.captured import captured, kinds

STEPS, CHANNELS = 6, 4
Inverse = Callable[[torch.Tensor], torch.Tensor]


def _put(order: torch.Tensor) -> torch.Tensor:
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return back


def _scattered(order: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(order).scatter_(0, order, torch.arange(order.shape[0]))


INVERSES: dict[str, Inverse] = {
    "argsort": lambda order: order.argsort(),
    "sort": lambda order: order.sort(0)[1],
    "stable": lambda order: torch.argsort(order, stable=True),
    "by an index": _put,
    "by a scatter": _scattered,
}


class Sorted(nn.Module):
    """Sums of the steps that a sample has, computed in the order of their numbers."""

    def __init__(self, take: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.take = nn.Linear(CHANNELS, 3), take

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(1, (STEPS, CHANNELS))
        lengths = (x[:, 0, 0] * 2).round().clamp(-2, 2).long() + 3
        lengths, order = lengths.sort(descending=True)
        mask = (torch.arange(STEPS) < lengths[:, None]).float()
        return self.take(torch.einsum("bsc,bs->bc", self.layer(x[order]), mask), order, lengths)


def _sorts(net: Sorted) -> bool:
    found = kinds(captured(net, (STEPS * CHANNELS,)))
    return any("sort" in each for each in found)


@pytest.mark.parametrize("name", INVERSES)
def test_samples_that_are_put_back_are_not_sorted(name: str) -> None:
    assert not _sorts(Sorted(lambda y, order, _: y[INVERSES[name](order)]))


def test_all_ways_to_take_samples_are_known() -> None:
    net = Sorted(
        lambda y, order, lengths: torch.cat(
            [
                y.index_select(0, order.argsort()),
                y.t()[:, order.argsort()].t(),
                lengths.gather(0, order.argsort())[:, None].float(),
            ],
            1,
        )
    )
    assert not _sorts(net)


def test_a_rank_among_the_samples_is_no_order_to_put_back() -> None:
    with pytest.raises(ModelError, match="depends on the other samples"):
        captured(Sorted(lambda y, order, _: y[order.argsort()] + order.argsort()[:, None]), (STEPS * CHANNELS,))


def test_what_reads_the_longest_sample_depends_on_the_others() -> None:
    with pytest.raises(ModelError, match="depends on the other samples"):
        captured(Sorted(lambda y, order, lengths: y[order.argsort()] * lengths[0]), (STEPS * CHANNELS,))


class Descending(nn.Module):
    """Answers in the order of the first values; the first samples of the test come in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(CHANNELS, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x[(x[:, 0]).argsort(descending=True)])
        return result


def test_a_batch_that_stays_sorted_is_refused_also_where_it_comes_so() -> None:
    """In a batch the answers were those of other samples: the three samples of the proof came in the right order."""
    batch = torch.tensor([[3.0, 1, 1, 1], [2.0, 2, 1, 1], [1.0, 0, 0, 5]])
    with pytest.raises(ModelError, match="the other way round") as caught:
        Proof(Descending().eval(), batch, ()).check_model()
    assert "put back" in (caught.value.hint or "")
