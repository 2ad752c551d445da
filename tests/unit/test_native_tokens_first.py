"""Transformers with tokens before the batch, as torch's own are by default: their tables and queries turn with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from helpers.captured import Net, random
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

TOKENS, CHANNELS, QUERIES = 6, 16, 3


def tokens(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.first(x).permute(1, 0, 2)


def with_places(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A table of places of one index in the batch's dimension."""
    return net.last(net.encoder(tokens(net, x) + net.places.unsqueeze(1)).mean(0))


def detr(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Queries that are laid out for the batch."""
    queries = net.queries.unsqueeze(1).expand(-1, x.shape[0], -1)
    return net.last(net.decoder(queries, net.encoder(tokens(net, x)))).transpose(0, 1)


def repeated(net: Net, x: torch.Tensor) -> torch.Tensor:
    """DETR's own way: places and queries are repeated, and the first target is zeros."""
    places = net.places.unsqueeze(1).repeat(1, x.shape[0], 1)
    queries = net.queries.unsqueeze(1).repeat(1, x.shape[0], 1)
    memory = net.encoder(tokens(net, x) + places)
    target = torch.zeros_like(queries)
    target = target + net.attention(target + queries, target + queries, value=target)[0]
    target = target + net.attention(target + queries, memory + places, value=memory)[0]
    return net.last(target).permute(1, 0, 2)


def scaled(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A factor for each token and channel of the windows that are joined with the batch."""
    windows = net.first(x).reshape(-1, 3, CHANNELS) * net.gains
    return net.last(torch.relu(windows).reshape(-1, TOKENS, CHANNELS))


NETS: dict[str, Callable[[Net, torch.Tensor], torch.Tensor]] = {
    each.__name__: each for each in (with_places, detr, repeated, scaled)
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", NETS)
def test_tables_and_queries_turn_with_the_tokens(name: str) -> None:
    torch.manual_seed(0)
    module = Net(
        NETS[name], first=nn.Linear(4, CHANNELS), last=nn.Linear(CHANNELS, 2), places=random(TOKENS, CHANNELS),
        queries=random(QUERIES, CHANNELS, seed=5), gains=random(1, 3, CHANNELS, seed=6),
        encoder=nn.TransformerEncoderLayer(CHANNELS, 2, 32), decoder=nn.TransformerDecoderLayer(CHANNELS, 2, 32),
        attention=nn.MultiheadAttention(CHANNELS, 2),
    )  # fmt: skip
    shape = (TOKENS, 4)
    model, int8 = quantized(module, "native", spec=recipe(shape), data=samples(shape, 32))
    assert int8.module.is_program
    fresh = samples(shape, 5, seed=1)
    together = run(int8, fresh)
    assert accuracy.sqnr_db(run(model, fresh), together) > 25.0
    alone = np.concatenate([run(int8, fresh.take(np.array([row]))) for row in range(5)])
    np.testing.assert_array_equal(together, alone)
