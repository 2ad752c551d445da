"""Linear layers of the native engine whose activations get a scale for each row, and what their kernel includes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import LayerFact, Samples
from cpupack.errors import QuantizationError
from cpupack.layers import form_notes
from helpers import float_reference
from helpers.captured import Net
from helpers.lowered import kernels, lowered, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

pytestmark = needs_kernels
TOKENS, CHANNELS = 10, 24
SHAPE = (TOKENS, CHANNELS)


class Block(nn.Module):
    """A block of a vision transformer, with a few channels that are far larger than the others."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.one, self.two = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 64), nn.Linear(64, CHANNELS)
        with torch.no_grad():
            self.one.weight[3], self.two.weight[5] = 20.0, -15.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        q, k, v = self.qkv(self.one(x)).reshape(n, TOKENS, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(heads.transpose(1, 2).reshape(n, TOKENS, CHANNELS))
        return x + self.down(F.gelu(self.up(self.two(x))))


def test_a_transformers_block_is_a_few_layers() -> None:
    torch.manual_seed(0)
    sqnr_db, int8, module = lowered(Block(), SHAPE)
    assert kernels(int8) == [
        "layer_norm", "linear", "attention of 16 bits", "linear + add", "layer_norm", "linear + gelu", "linear + add",
    ]  # fmt: skip
    assert module.operators == {
        "cpupack::conv": 4, "cpupack::float_attention": 1, "cpupack::float_codes": 4, "cpupack::float_input": 1,
        "cpupack::float_map": 1,
    }  # fmt: skip
    static_db, _, _ = lowered(Block(), SHAPE, mode="static")
    assert sqnr_db > static_db + 3.0
    assert {each.precision for each in int8.layers if "linear" in each.kernel} == {"int8"}


def _by_rows(**quantize: object) -> set[str]:
    """Return which layers of a block have a scale for each row."""
    torch.manual_seed(0)
    _, int8, _ = lowered(Block(), SHAPE, **quantize)
    return {each.name for each in int8.layers if each.kernel.startswith("cpupack::linear")}


def test_the_recipe_says_which_layers_have_ranges_of_the_calibration_data() -> None:
    assert _by_rows() == {"qkv", "out", "up", "down"}
    assert _by_rows(static=["up", "qkv"]) == {"out", "down"}
    assert _by_rows(mode="static") == set()
    assert _by_rows(mode="static", dynamic=["down"]) == {"down"}


def _form(net: nn.Module, values: torch.Tensor) -> tuple[bool, LayerFact, tuple[str, ...]]:
    """Return whether the linear layer of a model has a scale for each row, its fact, and the note of the build."""
    data = Samples(values.numpy(), "made up", tuple(map(str, range(len(values)))))
    spec = recipe(tuple(values.shape[1:]), quantize={"observer": "minmax", "smooth": False})
    _, int8 = quantized(net, "native", spec=spec, data=data)
    fact = next(each for each in int8.layers if "Linear" in each.kind)
    return fact.kernel.startswith("cpupack::linear"), fact, form_notes(int8.layers)


def test_the_form_of_a_layer_is_that_which_loses_less() -> None:
    """Rows of one size lose as much with one range; there the layer that reads codes takes these."""
    torch.manual_seed(0)
    even = torch.randn(16, *SHAPE).clamp(-1, 1)
    even[..., 0], even[..., 1] = 1.0, -1.0  # each row has the whole range
    uneven = even * 10.0 ** torch.linspace(-1.5, 0.0, TOKENS)[:, None]
    alone = nn.Sequential(nn.Linear(CHANNELS, 9))
    by_rows, fact, notes = _form(alone, uneven)
    assert by_rows
    assert fact.rows_sqnr_db is not None
    assert fact.range_sqnr_db is not None
    assert fact.rows_sqnr_db > fact.range_sqnr_db + 10.0  # a row of a tenth of the size has a tenth of the codes: 20 dB
    assert notes[0].startswith("1 of 1 linear layers give each row of activations a scale of its own: their results")
    by_rows, fact, notes = _form(alone, even)
    assert not by_rows
    assert fact.rows_sqnr_db == pytest.approx(fact.range_sqnr_db, abs=0.5)
    assert notes == ()
    # What a norm gives is float32: codes of rows cost nothing more there.
    assert _form(nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 9)), even)[0]


@pytest.mark.parametrize(("key", "name"), [("static", "one"), ("dynamic", "none_of_it")])
def test_a_named_layer_must_be_a_linear_one(key: str, name: str) -> None:
    with pytest.raises(QuantizationError, match=rf"\[quantize\] {key}: .* {name!r}"):
        _by_rows(**{key: [name]})


def test_a_row_does_not_depend_on_others() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(CHANNELS, 40), nn.GELU(), nn.Linear(40, 7))
    _, _, module = lowered(net, SHAPE)
    data = samples(SHAPE, 3).tensor(slice(None))
    whole = module(data)
    other = data.clone()
    other[:, 1:] *= 1000.0
    assert torch.equal(module(other)[:, 0], whole[:, 0])
    assert torch.equal(module(data[1:2])[0], whole[1])
    other[0, 2, 5] = float("nan")
    found = module(other)
    assert torch.isnan(found[0, 2]).all()
    assert torch.isfinite(found[1:]).all()


def _plain(net: nn.Linear, x: np.ndarray) -> np.ndarray:
    """Return what codes of rows and rounded weights make of ``x``."""
    weight = net.weight.detach().numpy()
    scales = (np.abs(weight).max(1) / np.float32(127.0)).astype(np.float32)
    rounded = np.clip(np.rint(weight / scales[:, None]), -127, 127)
    return float_reference.linear(x, rounded, scales, net.bias.detach().numpy())


def test_the_arithmetic_is_that_of_rows() -> None:
    torch.manual_seed(1)
    net = nn.Linear(CHANNELS, 9)
    data = samples(SHAPE)
    _, int8 = quantized(net, "native", spec=recipe(SHAPE, quantize={"smooth": False}), data=data)
    np.testing.assert_allclose(run(int8, data), _plain(net, data.data), rtol=2e-6, atol=2e-6)


CASES: dict[str, tuple[Callable[[Net, torch.Tensor], torch.Tensor], str]] = {
    "subtracted from another": (lambda net, x: x - net.end(x), "linear + sub"),
    "less another": (lambda net, x: net.end(x) - x, "linear + sub"),
    "times another": (lambda net, x: net.end(x) * x, "linear + mul"),
    "layer scale": (lambda net, x: x + net.gamma * net.end(x), "linear + add"),
    "function of a sum": (lambda net, x: torch.tanh(F.relu(net.end(x)) + x), "linear + add + tanh"),
    "of itself": (lambda net, x: (lambda y: y + y)(net.end(x)), "linear"),
    "read twice": (lambda net, x: (lambda y: F.relu(y) + y)(net.end(x)), "linear"),
    "of one row of another": (lambda net, x: net.end(x) + x[:, :1], "linear"),
    "with a number": (lambda net, x: 2.0 - 3.0 * net.end(x), "linear"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_follows_a_layer_belongs_to_it_where_it_can(name: str) -> None:
    forward, kernel = CASES[name]
    torch.manual_seed(2)
    gamma = torch.linspace(-1.0, 1.0, CHANNELS)
    net = Net(forward, end=nn.Linear(CHANNELS, CHANNELS), gamma=gamma)
    data = samples(SHAPE)
    model, int8 = quantized(net, "native", spec=recipe(SHAPE), data=data)
    assert kernels(int8)[0] == kernel
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 34.0


def test_norms_that_others_read_too_are_computed_once_for_all() -> None:
    torch.manual_seed(3)
    net = Net(
        lambda net, x: net.one(net.norm(x)) + net.two(net.norm(x)) + net.norm(x),
        norm=nn.LayerNorm(CHANNELS), one=nn.Linear(CHANNELS, CHANNELS), two=nn.Linear(CHANNELS, CHANNELS),
    )  # fmt: skip
    sqnr_db, _, module = lowered(net, SHAPE)
    assert sqnr_db > 34.0
    assert module.operators["cpupack::float_codes"] <= 2


def test_modes() -> None:
    tokens, vector = (
        nn.Linear(CHANNELS, 4),
        nn.Sequential(nn.Flatten(), nn.Linear(240, 16), nn.ReLU(), nn.Linear(16, 4)),
    )
    for net, by_rows in ((tokens, 1), (vector, 0)):  # one vector for each sample has one range in any case
        for mode, expected in (("auto", by_rows), ("static", 0)):
            module = lowered(net, SHAPE, mode=mode)[2]
            assert module.operators.get("cpupack::float_codes", 0) == expected, (net, mode)


class Patches(nn.Module):
    """The beginning of a vision transformer: patches, a class token, places, and a layer over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.end = nn.Conv2d(3, CHANNELS, 4, 4), nn.Linear(CHANNELS, 5)
        self.norm = nn.LayerNorm(CHANNELS)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, CHANNELS)), nn.Parameter(torch.randn(1, 5, CHANNELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        return x.mean(1) + self.end(self.norm(x)).mean(1).repeat(1, 5)[:, :CHANNELS]


def test_what_only_layers_in_fp32_read_is_not_rounded() -> None:
    torch.manual_seed(5)
    _, int8, module = lowered(Patches(), (3, 8, 8))
    assert "cpupack::quantize" not in module.operators
    assert "cpupack::dequantize" not in module.operators
    assert [each.precision for each in int8.layers if each.kind in ("cat", "add")] == ["fp32"] * 3


WRITTEN: dict[str, Callable[[Net, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "plainly": lambda _, scores, __: scores,
    "with a factor and a mask": lambda net, scores, __: scores / 3.0 + net.bias,
    "with a mask of windows": lambda net, scores, __: (
        (scores + net.bias).reshape(-1, 2, 1, TOKENS, TOKENS) + net.bias[:, None]
    ).reshape(scores.shape),
    "with what is computed": lambda _, scores, more: scores * 0.5 + more,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_attention_that_is_written_out_is_one_layer(name: str) -> None:
    torch.manual_seed(6)

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = net.qkv(x).reshape(-1, TOKENS, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        more = x[:, None, :, :TOKENS] * 2.0
        scores = WRITTEN[name](net, q @ k.transpose(-2, -1), more)
        return net.end((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

    net = Net(
        forward, qkv=nn.Linear(CHANNELS, 3 * CHANNELS), end=nn.Linear(CHANNELS, 6), bias=torch.randn(2, TOKENS, TOKENS)
    )
    sqnr_db, _, module = lowered(net, SHAPE)
    assert sqnr_db > 30.0
    assert module.operators["cpupack::float_attention"] == 1
    assert "cpupack::float_matmul" not in module.operators


def test_scores_that_others_read_too_stay_a_product() -> None:
    torch.manual_seed(7)

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = net.qkv(x).reshape(-1, TOKENS, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1)
        return (scores.softmax(-1) @ v).flatten(1) + scores.flatten(1).mean(1, keepdim=True)

    sqnr_db, _, module = lowered(Net(forward, qkv=nn.Linear(CHANNELS, 3 * CHANNELS)), SHAPE)
    assert sqnr_db > 30.0
    assert "cpupack::float_attention" not in module.operators


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_masks(causal: bool) -> None:
    torch.manual_seed(4)
    mask = torch.rand(TOKENS, TOKENS) < 0.7
    mask.fill_diagonal_(fill_value=True)

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (each(x).unflatten(-1, (2, 12)).transpose(1, 2) for each in (net.q, net.k, net.v))
        found = F.scaled_dot_product_attention(q, k, v, None if causal else net.mask, is_causal=causal)
        return net.end(found.transpose(1, 2).flatten(2))

    net = Net(forward, mask=mask, **{name: nn.Linear(CHANNELS, CHANNELS) for name in ("q", "k", "v", "end")})
    sqnr_db, _, module = lowered(net, SHAPE)
    assert sqnr_db > 30.0
    assert module.operators["cpupack::float_attention"] == 1
