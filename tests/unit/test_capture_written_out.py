"""Calls that torch has in one piece, written out: each runs on the native engine, with the values of torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.stages.capture.raising import written_out
from helpers.captured import Net, captured, kinds, random
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples


def written(x: torch.Tensor, choose: Callable[[torch.Tensor], torch.Tensor], number: float) -> torch.Tensor:
    x = x.clone()
    x[choose(x)] = number
    return x


def written_at(x: torch.Tensor, values: float | torch.Tensor) -> torch.Tensor:
    """Put numbers on the diagonal, or values of channels at channels: of two for one, the last stays."""
    x = x.clone()
    if isinstance(values, float):
        x[:, :, torch.arange(8), torch.arange(8)] = values
    else:
        x[:, [3, 0, 3]] = values
    return x


PLACES = torch.tensor([3, 0, 5, 5, 1, 7, 2, 2])
FORWARDS: dict[str, Callable[[Net, torch.Tensor], torch.Tensor]] = {
    "logsumexp": lambda net, x: net.a(x).logsumexp((2, 3)),
    "logsumexp of large values": lambda net, x: (net.a(x) * 200.0).logsumexp(1, keepdim=True),
    "prod": lambda net, x: net.a(x).sigmoid().prod(1),
    "prod of seven": lambda net, x: net.a(x).sigmoid()[..., :7].prod(-1, keepdim=True),
    "tril": lambda net, x: net.a(x).tril() + net.a(x).triu(2),
    "one_hot": lambda net, x: net.a(x) * F.one_hot(net.a(x).argmax(1), 4).permute(0, 3, 1, 2),
    "fold": lambda net, x: F.fold(F.unfold(net.a(x), 2, stride=2).sigmoid(), (8, 8), 2, stride=2),
    "fold, windows that meet": lambda net, x: F.fold(
        F.unfold(net.a(x), (3, 2), padding=1, stride=2, dilation=2), (8, 8), (3, 2), padding=1, stride=2, dilation=2
    ),
    "index_add": lambda net, x: torch.zeros_like(net.a(x)).index_add(2, net.places, net.b(x)),
    "index_add of another dimension": lambda net, x: net.a(x).index_add(3, net.places, net.b(x), alpha=0.5),
    "scatter_add": lambda net, x: torch.zeros_like(net.a(x)).scatter_add(
        3, net.places[None, None, None].expand_as(net.b(x)), net.b(x)
    ),
    "cdist": lambda net, x: torch.cdist(net.a(x).flatten(2), net.b(x).flatten(2)),
    "cdist, L1, to constants": lambda net, x: torch.cdist(net.a(x)[:, :, 0], net.table.expand(len(x), -1, -1), p=1.0),
    "constants at places": lambda net, x: written_at(net.a(x), 1.5),
    "zeros at places, for a softmax": lambda net, x: written_at(net.a(x), -1e9).softmax(-1),
    "values at places": lambda net, x: written_at(net.a(x), net.b(x)[:, [1, 0, 1]]),
    "errors": lambda net, x: F.mse_loss(net.a(x), net.b(x), reduction="none"),
    "absolute errors": lambda net, x: F.l1_loss(net.a(x), net.low.expand(len(x), -1, 8, 8), reduction="none"),
    "linalg.norm": lambda net, x: net.a(x) / torch.linalg.norm(net.a(x), dim=1, keepdim=True).clamp(min=0.1),
    "linalg.norm of matrices": lambda net, x: torch.linalg.norm(net.a(x), dim=(2, 3)),
    "einsum of a diagonal": lambda net, x: torch.einsum("bcii,bcij->bcj", net.a(x), net.b(x)),
    "einsum of a trace": lambda net, x: torch.einsum("bcii->bc", net.a(x)),
    "a distribution": lambda net, x: torch.distributions.Normal(net.a(x), net.b(x).exp()).log_prob(net.a(x) + 1.0),
    "as_strided, chunks that overlap": lambda net, x: net.a(x).contiguous().as_strided(
        (len(x), 4, 3, 4, 8), (256, 64, 16, 8, 1)
    ).mean(2),
    "as_strided of turned values": lambda net, x: net.a(x).contiguous().transpose(1, 3).as_strided(
        (len(x), 7, 64), (256, 32, 1)
    ),
    "a power of a number": lambda net, x: 3.0 ** net.a(x),
    "powers of constants": lambda net, x: torch.pow(net.low.abs() + 0.5, net.a(x)),
    "rows at places of each head": lambda net, x: at_rows_of_heads(net, x, put=False),
    "rows put at places of each head": lambda net, x: at_rows_of_heads(net, x, put=True),
    "masks of heads": lambda net, x: masked_in_heads(net, x),
    "a distribution of classes": lambda net, x: torch.distributions.Categorical(logits=net.a(x).mean((2, 3))).probs,
    "truth values for each sample": lambda net, x: net.a(x) * torch.cat(
        [torch.ones(len(x), 1, 8, 8, dtype=torch.bool), net.b(x)[:, 1:] > -9.0], 1
    ),
    "clamp by constants": lambda net, x: net.a(x).clamp(net.low, net.low + 0.5),
    "clamp by another tensor": lambda net, x: net.a(x).clamp(max=net.b(x)),
    "maximum with constants": lambda net, x: torch.maximum(net.low, net.a(x)),
    "x[mask] = number": lambda net, x: written(net.a(x), lambda y: y > 0.3, 0.3),
    "x[mask] = number, of whole rows": lambda net, x: written(net.a(x), lambda y: y.mean((2, 3)) > 0.0, 1.0),
    "what is infinite": lambda net, x: written(net.a(x), torch.isinf, 0.0),
    "what is no number": lambda net, x: written(net.a(x), torch.isnan, -1.0),
    "what is finite": lambda net, x: torch.isfinite(net.a(x)).float() * 0.3 + net.b(x),
    "fake_quantize": lambda net, x: torch.fake_quantize_per_tensor_affine(net.a(x), 0.04, 3, -60, quant_max=65),
    "fake_quantize of channels": lambda net, x: net.a(x) + torch.fake_quantize_per_channel_affine(
        net.b(x), net.low.abs().flatten() / 20, torch.tensor([0, 2, -3, 0]).int(), 1, -80, 80
    ),
}  # fmt: skip


def at_rows_of_heads(net: Net, x: torch.Tensor, put: bool) -> torch.Tensor:
    """Informer: rows at places that each head has of its own, and what is computed of them put back there."""
    rows = net.a(x)
    samples, heads = torch.arange(len(rows))[:, None, None], torch.arange(4)[None, :, None]
    best = (x[:, :1].amax(-1) * torch.tensor([1.0, -1.0, 2.0, -3.0])[:, None]).topk(3)[1]
    taken = rows[samples, heads, best]
    if not put:
        return taken
    whole = rows.mean(2, keepdim=True).expand(-1, -1, 8, -1).clone()
    whole[samples, heads, best, :] = taken * 2.0
    return whole


def masked_in_heads(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Mask2Former: masks of all heads of all samples as one batch, none of which hides a whole row."""
    rows = net.a(x).flatten(2).unsqueeze(1).repeat(1, 2, 1, 1).flatten(0, 1)
    mask = (rows < 0.0) & ~(rows < 0.0).all(-1, keepdim=True) | (rows > 9.0)
    return rows.masked_fill(mask, 0.0).unflatten(0, (-1, 2)).sum(1)


def net_of(name: str) -> Net:
    torch.manual_seed(0)
    return Net(
        FORWARDS[name], a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), places=PLACES, table=random(1, 3, 8),
        low=random(1, 4, 1, 1) - 0.2,
    )  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", FORWARDS)
def test_no_call_is_left_to_torch(name: str) -> None:
    module = net_of(name)
    graph = captured(module)
    assert not any(each.split(".")[0] in written_out.HANDLERS for each in kinds(graph)), kinds(graph)
    data = samples(count=8)
    model, int8 = quantized(module, "native", spec=recipe(quantize={"observer": "minmax"}), data=data)
    assert not [fact for fact in int8.layers if fact.kernel.startswith(("aten", "torch"))]
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > (12.0 if name == "one_hot" else 28.0)


@pytest.mark.parametrize("asks", [torch.isinf, torch.isnan, torch.isfinite])
def test_infinities_and_what_is_no_number_are_told_apart(asks: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module = Net(lambda net, x: net.a(torch.where(asks(x), 0.5, -0.5)), a=nn.Conv2d(3, 4, 1))
    graph = captured(module)
    x = torch.tensor([math.inf, -math.inf, math.nan, 0.0, 1.0, -3e38]).repeat(2, 3, 8, 2)[..., :8]
    torch.testing.assert_close(graph(x), module(x))


def test_other_forms_stay_as_they_are() -> None:
    """Places that each sample has of its own, and products of too many factors."""
    for forward in (
        lambda net, x: torch.zeros_like(net.a(x)).scatter_add(3, net.b(x).argsort(3), net.b(x)),
        lambda net, x: net.a(x).flatten(1).sigmoid().prod(1, keepdim=True),
    ):
        captured(Net(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1)))


@needs_kernels
def test_torch_gets_a_constant_that_is_laid_out_for_the_batch() -> None:
    """The native engine has no program of constants alone."""
    net = Net(lambda net, x: net.a(F.grid_sample(x, net.grid.expand(len(x), -1, -1, -1), align_corners=True)),
              a=nn.Conv2d(3, 4, 1), grid=random(1, 8, 8, 2) * 0.5)  # fmt: skip
    data = samples(count=8)
    model, int8 = quantized(net, "native", spec=recipe(quantize={"observer": "minmax"}), data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 28.0


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel", [(1, 3), (3, 1)])
def test_one_dimension_of_an_image_may_be_padded_by_its_own_values(mode: str, kernel: tuple[int, int]) -> None:
    """torch takes pairs for both dimensions alone, zeros where one is left as it is."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(3, 4, kernel, padding=padding, padding_mode=mode)  # type: ignore[arg-type]  # one of its words
    assert kinds(captured(Net(lambda net, x: net.conv(x), conv=conv)))[-1] == "Conv2d"


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_a_local_response_norm_of_fewer_channels_than_its_window(channels: int) -> None:
    """torch has a padding of three dimensions before the pool: as the pool's own it refuses the same window."""
    captured(Net(lambda net, x: F.local_response_norm(net.conv(x), 5), conv=nn.Conv2d(3, channels, 1)))
