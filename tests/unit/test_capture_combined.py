"""Capture of operators that are others put together: gated units, maxima of two tensors, masks, joins by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from cpupack.graph.vocabulary import in_vocabulary
from cpupack.stages.capture import capture
from helpers.captured import Net, captured, kinds, random
from helpers.tiny_models import Recorder, float_model, recipe, samples

MASK = random(1, 1, 8, 8) > 0.3

FORWARDS = {
    "glu": lambda net, x: F.glu(net.a(x), 1),
    "glu of rows": lambda net, x: F.glu(net.a(x), -2),
    "differences": lambda net, x: torch.diff(net.a(x), dim=2),
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
    "log10": lambda net, x: torch.log10(net.a(x).abs() + 1e-3),
    "log2": lambda net, x: net.a(x).exp().log2(),
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


def test_a_limit_of_each_sample_is_one_maximum_and_one_minimum() -> None:
    """As a spectrum is cut 80 dB below its loudest value."""

    def limited(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.a(x)
        return torch.max(y, y.amax((1, 2, 3), keepdim=True) - 1.0).clamp(max=y.mean(1, keepdim=True) + 0.5)

    graph = captured(Net(limited, a=nn.Conv2d(3, 4, 1)))
    assert {"maximum.default", "minimum.default"} <= set(kinds(graph)), kinds(graph)


@pytest.mark.parametrize("hidden", [-torch.inf, torch.finfo(torch.float32).min, -1e9])
def test_what_hides_scores_is_a_finite_sum(hidden: float) -> None:
    """A calibration of infinities says nothing. Beside -1e30 every score that there is has the power 0 as well."""
    net = Net(lambda net, x: net.a(x).masked_fill(net.mask, hidden).softmax(-1), a=nn.Conv2d(3, 4, 1), mask=MASK)
    graph = captured(net)
    assert kinds(graph) == ["Conv2d", "add", "Softmax"]
    least = min(float(each.min()) for name, each in graph.named_buffers() if "mask" in name)
    assert least == pytest.approx(max(hidden, -1e30))


def test_a_mask_of_infinities_that_is_added_is_finite_too() -> None:
    shown = torch.zeros(8, 8).masked_fill(MASK, -torch.inf)
    net = Net(lambda net, x: (net.a(x) + net.shown).softmax(-1), a=nn.Conv2d(3, 4, 1), shown=shown)
    graph = captured(net)
    assert all(bool(torch.isfinite(each).all()) for each in graph.buffers())


def test_a_row_that_sees_nothing_keeps_its_infinities() -> None:
    """torch gives no numbers there, and equal parts of what is hidden would be wrong."""
    mask = MASK.clone()
    mask[..., 3, :] = True
    net = Net(lambda net, x: net.a(x).masked_fill(net.mask, -torch.inf).softmax(-1), a=nn.Conv2d(3, 4, 1), mask=mask)
    graph = capture(float_model(net), samples(count=4), recipe(), Recorder()).module
    assert isinstance(graph, fx.GraphModule)
    assert "masked_fill" in " ".join(kinds(graph))


def test_an_infinity_that_is_no_mask_stays() -> None:
    net = Net(lambda net, x: net.a(x).masked_fill(net.mask, -torch.inf).amax(-1).exp(), a=nn.Conv2d(3, 4, 1), mask=MASK)
    assert "masked_fill" in " ".join(kinds(captured(net)))


def test_complex_turns_of_pairs_are_real_products() -> None:
    turns = torch.polar(torch.ones(8, 4), torch.arange(32.0).reshape(8, 4))

    def rotated(net: Net, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(net.a(x).reshape(-1, 4, 8, 4, 2))
        return torch.view_as_real(pairs * net.turns[None, None]).flatten(3)

    found = kinds(captured(Net(rotated, a=nn.Conv2d(3, 4, 1), turns=turns)))
    assert "complex" not in " ".join(found)
    assert found.count("mul") == 2


def test_other_complex_arithmetic_is_kept() -> None:
    def squared(net: Net, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(net.a(x).reshape(-1, 4, 8, 4, 2))
        return torch.view_as_real(pairs**2).flatten(3)

    assert "view_as_complex.default" in kinds(captured(Net(squared, a=nn.Conv2d(3, 4, 1))))


EQUATIONS = {
    "bchw,bdhw->bcd": "xy matmul",
    "b c h w, b d h w -> b c h d": "xy matmul",
    "bchw,bdhv->bhcwdv": "xy mul",
    "bchw,bchw->bchw": "xy mul",
    "bchw,bdvw->bcw": "xy sum sum mul",
    "bchw,bchw->bc": "xy matmul",
    "...hw,...vw->...hv": "xy matmul",
    "bchw,wk->bchk": "xp Linear",
    "bchw,kcw->bhk": "xq Linear",
    "...w,kw->...k": "xr Linear",
    "bchw,kcw->bchk": "xq Conv1d",
    "kcw,bchw->bkchw": "qx mul",
    "bchw,bkh->bckw": "xm matmul",
    "bchw,bdhw,bch->bcd": "xym matmul matmul",
    "bchw,bdhw,bdh->bc": "xym matmul matmul",
    "bchw,wk,kv->bchv": "xps Linear Linear",
    "wk,kv,bchw->bchv": "psx Linear",
    "bchw->bwhc": "x permute",
    "bchw->bw": "x sum",
}
"""What an equation of tensors becomes. x and y are images, m is of x's rows, the other letters are parameters."""


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_is_products_of_matrices_or_values(equation: str) -> None:
    torch.manual_seed(0)
    operands, *expected = EQUATIONS[equation].split()
    sizes = {"p": (8, 5), "q": (5, 4, 8), "r": (5, 8), "s": (5, 3)}

    def product(net: Net, x: torch.Tensor) -> torch.Tensor:
        x, y = net.a(x), net.b(net.a(x))
        made = {"x": x, "y": y, "m": y.mean(3)}
        return torch.einsum(equation, *(made.get(each, getattr(net, each, x)) for each in operands))

    weights = {name: nn.Parameter(torch.randn(each)) for name, each in sizes.items() if name in operands}
    found = kinds(captured(Net(product, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), **weights)))
    assert "einsum" not in " ".join(found)
    assert [each for each in found if each in {"matmul", "mul", "sum", "Linear", "Conv1d"}] == [
        each for each in expected if each != "permute"
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_a_bilinear_layer_is_a_linear_one_and_a_product(bias: bool) -> None:
    def pairs(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x)
        return torch.relu(net.pair(x.mean(3), x.amax(3)))  # type: ignore[no-any-return]  # a module gives a tensor

    net = Net(pairs, a=nn.Conv2d(3, 4, 1), pair=nn.Bilinear(8, 8, 5, bias=bias))
    found = [each for each in kinds(captured(net)) if each in {"Linear", "matmul", "bilinear", "add"}]
    assert found == ["Linear", "matmul", *["add"] * bias]


SUMMED = {
    "colours": (lambda net, x: torch.tensordot(x.permute(0, 2, 3, 1), net.q, dims=([3], [1])), "Linear"),
    "two dimensions": (lambda net, x: torch.tensordot(x, net.r, dims=2), "Linear"),
    "parameter first": (lambda net, x: torch.tensordot(net.q, x, dims=([1], [1])).movedim(0, 1), "Linear"),
    "inner": (lambda net, x: torch.inner(x, net.s), "Linear"),
}


@pytest.mark.parametrize("name", SUMMED)
def test_tensordot_and_inner_are_equations(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"q": (5, 3), "r": (8, 8, 2), "s": (4, 8)}
    function, expected = SUMMED[name]
    found = kinds(captured(Net(function, **{key: nn.Parameter(torch.randn(each)) for key, each in sizes.items()})))
    assert expected in found
    assert not {"tensordot.default", "inner.default"} & set(found)


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


@pytest.mark.parametrize(
    "product",
    [
        pytest.param(lambda net, x: F.linear(x, net.weights), id="linear"),
        pytest.param(lambda net, x: x @ net.weights, id="matmul"),
        pytest.param(lambda net, x: F.linear(x.softmax(-1), net.wide.type_as(x)), id="of x's type"),
        pytest.param(lambda net, x: F.linear(x.reshape(-1, 8), net.weights).reshape(len(x), -1), id="rows and batch"),
    ],
)
def test_a_product_with_a_vector_is_a_linear_layer_of_one_result(product: Any) -> None:
    net = Net(product, weights=nn.Parameter(random(8)), wide=random(8, seed=4).double())
    assert "Linear" in kinds(captured(net))


PLACES = (torch.arange(8)[:, None] - torch.arange(8)).clamp(-3, 3) + 3
"""The distance of each pair of positions."""


@pytest.mark.parametrize("given", [PLACES, PLACES[None], PLACES[None, None]])
def test_places_that_are_laid_out_for_the_batch_are_an_order(given: torch.Tensor) -> None:
    """DeBERTa looks up the scores of distances so: the places are constants, expanded to samples and heads."""

    def scores(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x)
        return x.gather(-1, net.places.expand(x.shape[0], x.shape[1], 8, 8))

    found = kinds(captured(Net(scores, a=nn.Conv2d(3, 4, 1), places=given)))
    assert not any("gather" in each for each in found)


def test_a_group_norm_of_tokens_does_not_join_samples() -> None:
    """RetNet norms its heads so: the tokens of all samples are rows of one tensor."""

    def heads(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.a(x).flatten(2).transpose(1, 2)
        return net.norm(y.reshape(-1, 4)).reshape(y.shape[0], -1, 4)

    found = kinds(captured(Net(heads, a=nn.Conv2d(3, 4, 1), norm=nn.GroupNorm(2, 4))))
    assert "GroupNorm" not in found
    assert "LayerNorm" in found
