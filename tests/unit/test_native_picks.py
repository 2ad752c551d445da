"""The token of a computed place: the last of a text, the one that ends it. On the native engine, against FP32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cpupack import accuracy
from helpers.lowered import needs_kernels
from helpers.lowered_text import LENGTH, WIDTH, WORDS, lowered, texts
from helpers.tiny_models import run

Pick = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_END = 7


class Picking(nn.Module):
    """A layer for each token, and what ``pick`` makes of its results, ids and mask."""

    def __init__(self, pick: Pick) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.up, self.out = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)
        self.pick = pick

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.out(self.pick(self.up(self.words(ids)), ids, mask))


def _flipped(x: torch.Tensor, _: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As sentence-transformers finds the last token."""
    values, places = mask.flip(1).max(1)
    places = torch.where(values == 0, mask.shape[1] - 1, places)
    last = (mask.shape[1] - places - 1)[:, None, None].expand(-1, 1, x.shape[-1])
    return x.gather(1, last)[:, 0]


PICKS: dict[str, Pick] = {
    "len": lambda x, ids, mask: x[torch.arange(len(x)), mask.sum(1) - 1],
    "shape": lambda x, ids, mask: x[torch.arange(x.shape[0], device=x.device), mask.sum(1) - 1],
    "column": lambda x, ids, mask: x[torch.arange(len(x))[:, None], mask.sum(1, keepdim=True) - 1][:, 0],
    "constant": lambda x, ids, mask: x[torch.arange(len(x)), -1],
    "gather": lambda x, ids, mask: x.gather(1, (mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, WIDTH))[
        :, 0
    ],
    "take_along_dim": lambda x, ids, mask: torch.take_along_dim(x, (mask.sum(1) - 1).clamp(min=0)[:, None, None], 1)[
        :, 0
    ],
    "argmax": lambda x, ids, mask: x[torch.arange(len(x)), (ids == _END).int().argmax(-1)],
    "largest": lambda x, ids, mask: x[torch.arange(len(x)), ids.argmax(dim=-1)],
    "last one": lambda x, ids, mask: x[torch.arange(len(x)), (torch.arange(LENGTH) * (ids != 1)).argmax(-1)],
    "flip": _flipped,
}


@needs_kernels
@pytest.mark.parametrize("name", PICKS)
def test_a_program_has_the_token_that_a_text_ends_with(name: str) -> None:
    data = texts(LENGTH, 1, 4, 9, 0)  # torch counts the place of none, -1, from the end
    model, int8 = lowered(Picking(PICKS[name]), data, bounded=True)
    assert all(each.kernel != "aten" for each in int8.layers)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 30.0


@pytest.mark.parametrize("name", ["len", "flip"])
def test_torchs_engines_have_it_too(name: str) -> None:
    data = texts(LENGTH, 1, 4, 9)
    model, int8 = lowered(Picking(PICKS[name]), data, engine="fbgemm")
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 20.0


@needs_kernels
def test_without_a_bound_torch_counts() -> None:
    _, int8 = lowered(Picking(PICKS["len"]), texts(LENGTH, 1, 4, 9))
    reasons = {each.reason for each in int8.layers if each.kernel == "aten"}
    assert any("a vocabulary of the [[input]] bounds them" in each for each in reasons)
