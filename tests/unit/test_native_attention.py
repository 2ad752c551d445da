"""Attention in the ways that people write it: each is one layer of the native engine for all heads, and right."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.captured import Net
from helpers.lowered import kernels, lowered, needs_kernels

pytestmark = needs_kernels
TOKENS, CHANNELS, HEADS = 10, 24, 4
SHAPE = (TOKENS, CHANNELS)
# Three roundings of rows to 8 bits, and of weights, one after the other: 41 - 10 log10(6) = 33 dB and the softmax.
BOUND_DB = 28.0


def _split(x: torch.Tensor, heads: int = HEADS) -> torch.Tensor:
    return x.view(x.shape[0], TOKENS, heads, -1).transpose(1, 2)


def _joined(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], TOKENS, CHANNELS)


def _queries_scaled(net: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = net.qkv(x).reshape(-1, TOKENS, 3, HEADS, CHANNELS // HEADS).permute(2, 0, 3, 1, 4)
    scores = (q * (CHANNELS // HEADS) ** -0.5) @ k.transpose(-2, -1)
    return net.out(_joined((scores + net.bias).softmax(-1) @ v))


def _both_scaled(net: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = net.qkv(x).reshape(-1, TOKENS, 3, HEADS, CHANNELS // HEADS).permute(2, 0, 3, 1, 4)
    scale = (CHANNELS // HEADS) ** -0.25
    return net.out(_joined(((q * scale) @ (k * scale).transpose(-2, -1)).softmax(-1) @ v))


def _einsum(net: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in net.qkv(x).chunk(3, -1))
    weights = torch.softmax(torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(CHANNELS // HEADS), -1)
    return net.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


def _values_last(net: Net, x: torch.Tensor) -> torch.Tensor:
    weights = (_split(net.q(x)) @ _split(net.k(x)).transpose(-1, -2)).softmax(-1)
    return net.out(_joined(weights @ _split(net.v(x))))


def _apart(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.out(_joined(F.scaled_dot_product_attention(*(_split(each(x)) for each in (net.q, net.k, net.v)))))


def _masked(net: Net, x: torch.Tensor) -> torch.Tensor:
    scores = _split(net.q(x)) @ _split(net.k(x)).transpose(-1, -2)
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return net.out(_joined(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ _split(net.v(x))))


def _normed(net: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = net.qkv(x).reshape(-1, TOKENS, 3, HEADS, CHANNELS // HEADS).permute(2, 0, 3, 1, 4)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return net.out(_joined((scores * net.temperature + net.bias).softmax(-1) @ v))


def _grouped(net: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = _split(net.q(x)), _split(net.few(x), 2), _split(net.few(x) * 2.0, 2)
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=net.bias, enable_gqa=True)
    return net.out(_joined(heads))


def _sequence_first(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = x.transpose(0, 1)
    return net.mha(y, y, y, need_weights=False)[0].mean(0)


WRITTEN: dict[str, Callable[[Net, torch.Tensor], torch.Tensor]] = {
    "queries scaled, with a bias": _queries_scaled,
    "queries and keys scaled": _both_scaled,
    "einsum of chunks": _einsum,
    "values after the softmax": _values_last,
    "a layer for each of queries, keys and values": _apart,
    "masked by infinities": _masked,
    "normed, with a factor for each head": _normed,
    "heads that share keys": _grouped,
    "tokens before the batch": _sequence_first,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_attention_is_one_layer(name: str) -> None:
    torch.manual_seed(0)
    net = Net(
        WRITTEN[name],
        qkv=nn.Linear(CHANNELS, 3 * CHANNELS),
        q=nn.Linear(CHANNELS, CHANNELS),
        k=nn.Linear(CHANNELS, CHANNELS),
        v=nn.Linear(CHANNELS, CHANNELS),
        few=nn.Linear(CHANNELS, CHANNELS // 2),
        out=nn.Linear(CHANNELS, CHANNELS),
        mha=nn.MultiheadAttention(CHANNELS, HEADS),
        bias=nn.Parameter(torch.randn(1, HEADS, TOKENS, TOKENS)),
        temperature=nn.Parameter(torch.rand(HEADS, 1, 1) * 5.0),
    )
    sqnr_db, int8, module = lowered(net, SHAPE)
    assert module.operators["cpupack::float_attention"] == 1
    assert sqnr_db > BOUND_DB
    assert "softmax" not in kernels(int8)
    data = torch.randn(3, *SHAPE)
    assert torch.equal(module(data)[1:2], module(data[1:2]))


@pytest.mark.parametrize("write", [_apart, _values_last])
def test_attention_that_skip_names_has_products_in_float32(write: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    net = Net(write, **{name: nn.Linear(CHANNELS, CHANNELS) for name in ("q", "k", "v", "out")})
    sqnr_db, int8, _ = lowered(net, SHAPE)
    (name,) = (each.name for each in int8.layers if each.kernel == "cpupack::attention of 16 bits")
    skipped_db, skipped, _ = lowered(net, SHAPE, skip=[name])
    (fact,) = (each for each in skipped.layers if each.kernel == "cpupack::attention")
    assert (fact.name, fact.reason) == (name, "listed in skip")
    # 16 bits are two roundings at 60 dB or more beside six at 41 dB and less: a hundredth of their noise.
    assert abs(sqnr_db - skipped_db) < 1.0


def test_layers_of_the_same_rows_are_one_and_need_no_copies() -> None:
    torch.manual_seed(0)
    net = Net(_apart, **{name: nn.Linear(CHANNELS, CHANNELS) for name in ("q", "k", "v", "out")})
    _, int8, module = lowered(net, SHAPE)
    reason = next(each.reason for each in int8.layers if each.kernel == "cpupack::attention of 16 bits")
    assert reason == "lies among INT8 layers that take and give float32 values"
    assert kernels(int8) == ["linear, joined", "linear, joined", "linear, joined", "attention of 16 bits", "linear"]
    assert module.operators == {
        "cpupack::conv": 2, "cpupack::float_attention": 1, "cpupack::float_codes": 2, "cpupack::float_input": 1,
        "cpupack::float_map": 1,
    }  # fmt: skip
    per_tensor_db, _, _ = lowered(net, SHAPE, weights="per_tensor")
    assert per_tensor_db > 20.0


SIDE, WINDOW = 8, 4


def _windows(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A block of Swin: rolled, cut into windows, attention, and all of it back."""
    x = net.first(x)
    y = torch.roll(net.norm(x), (-2, -2), (1, 2))
    cut = y.view(-1, SIDE // WINDOW, WINDOW, SIDE // WINDOW, WINDOW, CHANNELS).permute(0, 1, 3, 2, 4, 5)
    rows = cut.reshape(-1, WINDOW * WINDOW, CHANNELS)
    q, k, v = net.qkv(rows).reshape(-1, WINDOW * WINDOW, 3, HEADS, CHANNELS // HEADS).permute(2, 0, 3, 1, 4)
    rows = net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, WINDOW * WINDOW, CHANNELS))
    whole = rows.view(-1, SIDE // WINDOW, SIDE // WINDOW, WINDOW, WINDOW, CHANNELS).permute(0, 1, 3, 2, 4, 5)
    return x + torch.roll(whole.reshape(-1, SIDE, SIDE, CHANNELS), (2, 2), (1, 2))


def test_rolls_and_windows_are_orders_of_rows() -> None:
    """A norm, a roll and a partition before a layer, and the way back and a sum after another: nothing is copied."""
    torch.manual_seed(0)
    net = Net(
        _windows,
        first=nn.Linear(CHANNELS, CHANNELS),
        norm=nn.LayerNorm(CHANNELS),
        qkv=nn.Linear(CHANNELS, 3 * CHANNELS),
        out=nn.Linear(CHANNELS, CHANNELS),
    )
    sqnr_db, int8, module = lowered(net, (SIDE, SIDE, CHANNELS))
    assert kernels(int8) == ["linear", "layer_norm", "linear", "attention of 16 bits", "linear + add"]
    assert module.operators == {
        "cpupack::conv": 3, "cpupack::float_attention": 1, "cpupack::float_codes": 3, "cpupack::float_input": 1,
        "cpupack::float_map": 1,
    }  # fmt: skip
    assert sqnr_db > BOUND_DB
    data = torch.randn(3, SIDE, SIDE, CHANNELS)
    assert torch.equal(module(data)[1:2], module(data[1:2]))


def test_rows_of_padding_are_zeros_after_a_norm() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.up(F.pad(net.norm(x), (0, 0, 1, 2, 0, 3))).flatten(1, 2),
        norm=nn.LayerNorm(CHANNELS),
        up=nn.Linear(CHANNELS, 12),
    )
    sqnr_db, int8, module = lowered(net, (5, 6, CHANNELS))
    assert kernels(int8) == ["layer_norm", "linear"]
    assert "cpupack::float_gather" not in module.operators
    assert sqnr_db > BOUND_DB
