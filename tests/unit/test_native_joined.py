"""Calls on tensors that have the batch joined with other dimensions, or behind them: natively, and as FP32 has them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.lowered import BOUND_DB, kernels, lowered, needs_kernels


class Joined(nn.Module):
    """The pixels of all samples as rows of a matrix ``(batch * pixels, channels)``, as a quantizer of vectors reads."""

    def __init__(self, function: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.codes = nn.Embedding(6, 8)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.conv(x).permute(0, 2, 3, 1).contiguous()
        rows = self.function(self, maps.view(-1, 8))
        return self.end(rows.view(maps.shape).mean((1, 2)))


def distances(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    table = net.codes.weight
    return rows.pow(2).sum(1, keepdim=True) + table.pow(2).sum(1) - 2 * rows @ table.t()


def nearest(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return net.codes(distances(net, rows).argmin(1))


def one_hot(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    places = torch.argmin(distances(net, rows), dim=1).unsqueeze(1)
    chosen = torch.zeros(places.shape[0], 6, device=rows.device)
    chosen.scatter_(1, places, 1)
    return rows + (chosen @ net.codes.weight - rows).detach()


def best_two(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    shares, places = torch.topk(distances(net, rows).neg().softmax(-1), 2)
    return (net.codes(places) * shares.unsqueeze(-1)).sum(1)


def nearest_and_farthest(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    found = distances(net, rows)
    return net.codes(torch.stack([found.argmin(1), found.argmax(1)], 1)).sum(1)


JOINED = {
    "the nearest code": nearest,
    "the nearest code by ones and zeros": one_hot,
    "the best two codes": best_two,
    "places that are joined": nearest_and_farthest,
    "choices": lambda net, rows: torch.where(rows > rows.mean(1, keepdim=True), rows, net.codes.weight[0]),
    "an order": lambda net, rows: rows.sort(1)[0],
    "running sums": lambda net, rows: rows.cumsum(-1) / 4,
    "values at places": lambda net, rows: rows.gather(1, rows.argsort(1, descending=True)),
    "repeated rows": lambda net, rows: (rows.unsqueeze(1).expand(-1, 6, -1) * net.codes.weight).sum(1),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", JOINED)
def test_rows_of_all_samples_need_no_torch(name: str) -> None:
    torch.manual_seed(0)
    sqnr_db, int8, _ = lowered(Joined(JOINED[name]))
    assert "aten" not in kernels(int8)
    assert sqnr_db > BOUND_DB - 8


class Residuals(nn.Module):
    """NetVLAD: what is left of each value beside each centre, of centres that come before the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shares = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.centres = nn.Parameter(torch.rand(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = F.normalize(self.conv(x), dim=1)
        shares = self.shares(maps).flatten(2).softmax(1)
        flat = maps.flatten(2)
        left = flat.expand(4, -1, -1, -1).permute(1, 0, 2, 3)
        left = left - self.centres.expand(flat.size(-1), -1, -1).permute(1, 2, 0).unsqueeze(0)
        found = F.normalize((left * shares.unsqueeze(2)).sum(-1), dim=2)
        return F.normalize(found.view(len(x), -1), dim=1)


@needs_kernels
def test_what_is_repeated_before_the_batch_is_native() -> None:
    torch.manual_seed(0)
    sqnr_db, int8, _ = lowered(Residuals())
    assert "aten" not in kernels(int8)
    assert sqnr_db > BOUND_DB - 5


class Letters(nn.Module):
    """A recurrent layer over the letters of each word, whose last states begin a layer over the words."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.letters = kind(4, 6, batch_first=True, bidirectional=True)
        self.words, self.end = nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, words, letters, values = x.shape
        _, last = self.letters(x.reshape(n * words, letters, values))
        last = last[0] if isinstance(last, tuple) else last
        found = torch.cat([last[0], last[1]], -1).view(n, words, -1)
        return self.end(self.words(found)[0])


@needs_kernels
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_letters_of_words_are_sequences_of_a_sample(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    sqnr_db, int8, _ = lowered(Letters(kind).eval(), (3, 4, 4))
    assert "aten" not in kernels(int8)
    assert sqnr_db > BOUND_DB


class Loop(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.cell, self.end, self.steps = nn.LSTMCell(4, 32), nn.Linear(32, 3), steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in range(self.steps):
            state = self.cell(x[:, step], state)
        return self.end(state[0])


@needs_kernels
def test_steps_of_a_cell_have_their_weights_once() -> None:
    sizes = [lowered(Loop(steps), (12, 4))[2].get_buffer("program").numel() for steps in (4, 12)]
    weights = 4 * 32 * (4 + 32)
    assert sizes[1] - sizes[0] < 3 * weights
