"""Each rewrite of capture on nets made for it: what is left, and that the answer is the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.stages.capture import capture
from cpupack.stages.capture.rewrites import REWRITES
from helpers.captured import Net, captured, kinds, module, random
from helpers.tiny_models import SHAPE, Recorder, float_model, recipe, samples

torch.manual_seed(0)


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **settings})  # type: ignore[arg-type]


Function = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: x * torch.sigmoid(x), "SiLU"),
        (lambda x: torch.sigmoid(x).mul(x), "SiLU"),
        (lambda x: x / (1.0 + torch.exp(-x)), "SiLU"),
        (lambda x: x * F.relu6(x + 3.0) / 6.0, "Hardswish"),
        (lambda x: x * (F.relu6(x + 3.0) * (1 / 6)), "Hardswish"),
        (lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1), "Hardswish"),
        (lambda x: x * F.hardsigmoid(x), "Hardswish"),
        (lambda x: F.relu6(3.0 + x) / 6.0, "Hardsigmoid"),
        (lambda x: (x + 3).clamp(0, 6).div(6), "Hardsigmoid"),
        (lambda x: 1.0 / (1.0 + (-x).exp()), "Sigmoid"),
        (lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0))), "GELU"),
        (lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.70710678)), "GELU"),
        (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), "GELU"),
        (lambda x: x * torch.tanh(F.softplus(x)), "Mish"),
        (lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))), "Mish"),
        (lambda x: 2.0 * torch.sigmoid(2.0 * x) - 1.0, "Tanh"),
        (lambda x: x / (1 + x.abs()), "Softsign"),
        (lambda x: (x + x.abs()) / 2, "ReLU"),
        (lambda x: torch.maximum(x, torch.zeros(1)), "ReLU"),
        (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), "ReLU"),
        (lambda x: x * (x > 0), "ReLU"),
        (lambda x: torch.min(torch.max(x, torch.tensor(0.0)), torch.tensor(6.0)), "ReLU6"),
    ],
)
def test_an_activation_that_is_written_out_is_named(function: Function, kind: str) -> None:
    graph = captured(Net(lambda net, x: net.b(function(net.a(x))), a=conv(), b=conv(4)))
    assert kinds(graph) == ["Conv2d", kind, "Conv2d"]


def test_a_written_out_gelu_is_the_one_of_its_formula() -> None:
    exact = captured(Net(lambda net, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))))
    assert module(exact, "gelu").approximate == "none"
    near = captured(Net(lambda net, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))))
    assert module(near, "gelu").approximate == "tanh"


@pytest.mark.parametrize(
    ("function", "far"),
    [
        (lambda x: x.clamp(-100, 100), 250.0),
        (lambda x: x.clamp(max=40.0), 90.0),
        (lambda x: torch.relu(x).clamp(max=1e5), 2e5),
        (lambda x: torch.minimum(x, torch.tensor(1e3)), 2e3),
        (lambda x: x.clamp_min(1e-12), 0.0),
        (lambda x: x + 1e-12, 0.0),
        (lambda x: torch.relu(x) + 1e-10, -1.0),
    ],
)
def test_what_equals_an_activation_on_common_values_alone_is_not_taken_for_it(function: Function, far: float) -> None:
    graph = captured(Net(lambda net, x: function(x)), (3, 8, 8))
    x = torch.full((2, 3, 8, 8), far)
    assert torch.equal(graph(x), function(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(1.702 * x),  # the quick GELU of CLIP
        lambda x: x * F.relu6(x + 2.9) / 6.0,
        lambda x: x * torch.sigmoid(x) * 1.1,
        lambda x: torch.exp(-x * x),
    ],
)
def test_a_function_that_only_looks_like_an_activation_is_left_alone(function: Function) -> None:
    graph = captured(Net(lambda net, x: function(net.a(x)), a=conv()))
    assert not {"Hardswish", "GELU", "ReLU"} & set(kinds(graph))


@pytest.mark.parametrize(
    "guarded",
    [
        lambda x: F.normalize(x, dim=1),
        lambda x: x / (x.sum(1, keepdim=True) + 1e-12),
        lambda x: x / x.amax(1, keepdim=True).clamp(min=1e-20),
        lambda x: x / (F.relu(x).sum(1, keepdim=True) + 1e-10),
        lambda x: x * torch.rsqrt((x * x).sum(1, keepdim=True) + 1e-20),
        lambda x: torch.log(F.relu(x) + 1e-12),
    ],
)
def test_what_guards_a_division_or_a_logarithm_stays(guarded: Function) -> None:
    """The first row is zero in every channel: without its guard each of these is NaN or infinite there."""
    rows = torch.ones(1, 1, SHAPE[1], 1)
    rows[:, :, 0] = 0
    graph = captured(Net(lambda net, x: guarded(F.relu(x) * net.rows).mean((2, 3)), rows=rows))
    assert graph(samples().tensor(slice(None))).isfinite().all()


def _layer_norm(x: torch.Tensor, dim: int | tuple[int, ...], eps: float = 1e-6) -> torch.Tensor:
    mean = x.mean(dim, keepdim=True)
    variance = (x - mean).pow(2).mean(dim, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: _layer_norm(x, -1), ["LayerNorm"]),
        (lambda x: (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5), ["LayerNorm"]),
        (lambda x: _layer_norm(x, 1), ["permute", "LayerNorm", "permute"]),
        (lambda x: _layer_norm(x, (1, 2, 3)), ["GroupNorm"]),
        (lambda x: _layer_norm(x, (2, 3)), ["InstanceNorm2d"]),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), ["RMSNorm"]),
        (lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt(), ["RMSNorm"]),
        (lambda x: torch.exp(x - x.amax(-1, True)) / torch.exp(x - x.amax(-1, True)).sum(-1, True), ["Softmax"]),
        (lambda x: x.exp() / x.exp().sum(1, keepdim=True), ["Softmax"]),
    ],
)
def test_a_norm_or_softmax_that_is_written_out_is_named(function: Function, expected: list[str]) -> None:
    graph = captured(Net(lambda net, x: function(net.a(x)), a=conv()), rewrites=("name_norms",))
    assert kinds(graph) == ["Conv2d", *expected]


def test_a_written_out_norm_takes_its_weights() -> None:
    net = Net(
        lambda net, x: _layer_norm(x, -1) * net.weight + net.bias,
        weight=nn.Parameter(random(8)),
        bias=nn.Parameter(random(8, seed=4)),
    )
    assert kinds(captured(net)) == ["LayerNorm"]


def test_a_norm_by_the_unbiased_variance_is_left_alone() -> None:
    graph = captured(Net(lambda net, x: (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-6)))
    assert "LayerNorm" not in kinds(graph)


@pytest.mark.parametrize(
    "mean",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([-1, -2]),
        lambda x: x.mean(3).mean(2),
        lambda x: x.flatten(2).mean(-1),
        lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
        lambda x: x.sum((2, 3)) / 64,
        lambda x: F.avg_pool2d(x, 8).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
        lambda x: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(2),
    ],
)
def test_a_mean_over_all_positions_is_a_pooling(mean: Function) -> None:
    graph = captured(Net(lambda net, x: net.fc(mean(net.a(x))), a=conv(), fc=nn.Linear(4, 5)))
    assert kinds(graph)[0] == "Conv2d"
    assert kinds(graph) == ["Conv2d", "AdaptiveAvgPool2d", "flatten", "Linear"]


def test_a_mean_over_tokens_is_no_pooling() -> None:
    assert kinds(captured(Net(lambda net, x: x.mean(1)), (6, 4))) == ["mean"]


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 0, 1, 0), (2, 1, 0, 3), (1, 1, 1, 1), (0, 2, 3, 0), (0, 0, 1, 2)])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"stride": 2, "kernel": 5}, {"padding": 1}, {"kernel": 2}])
def test_zero_padding_becomes_part_of_a_convolution(pads: tuple[int, ...], settings: dict[str, int]) -> None:
    layer = conv(4, 6, **{"padding": 0, **settings})
    graph = captured(Net(lambda net, x: net.b(F.pad(net.a(x), pads)), a=conv(), b=layer), rewrites=("fold_padding",))
    assert kinds(graph) == ["Conv2d", "Conv2d"]
    folded = module(graph, "b")
    assert isinstance(folded, nn.Conv2d)
    assert all(isinstance(each, int) for each in folded.padding)


def test_zero_padding_before_a_dilated_convolution_folds_where_its_steps_allow() -> None:
    layers = {"even": nn.Conv2d(3, 4, 3, dilation=2), "odd": nn.Conv2d(4, 4, 3, dilation=2)}
    graph = captured(Net(lambda net, x: net.odd(F.pad(net.even(F.pad(x, (0, 2, 0, 2))), (0, 1, 0, 1))), **layers))
    assert kinds(graph) == ["Conv2d", "pad", "Conv2d"]


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_an_even_kernel_with_same_padding_is_one_convolution(kernel: int, dimensions: int) -> None:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](3, 4, kernel, padding="same")
    assert kinds(captured(layer, (3, *[6] * dimensions))) == [type(layer).__name__]


def test_the_padding_of_a_grouped_convolution_folds() -> None:
    layer = nn.Conv2d(4, 4, 3, stride=2, groups=4)
    graph = captured(Net(lambda net, x: net.b(F.pad(net.a(x), (0, 1, 0, 1))), a=conv(), b=layer))
    assert kinds(graph) == ["Conv2d", "Conv2d"]


def test_zero_padding_moves_behind_an_activation_that_keeps_zeros() -> None:
    graph = captured(Net(lambda net, x: net.b(F.silu(F.pad(net.a(x), (0, 1, 0, 1)))), a=conv(), b=conv(4, padding=0)))
    assert kinds(graph) == ["Conv2d", "SiLU", "Conv2d"]
    graph = captured(Net(lambda net, x: net.b(torch.sigmoid(F.pad(net.a(x), (1, 1)))), a=conv(), b=conv(4, padding=0)))
    assert kinds(graph) == ["Conv2d", "pad", "Sigmoid", "Conv2d"]


def test_padding_that_two_layers_read_folds_into_both() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(net.a(x), (1, 2, 1, 2))
        return net.b(padded) * net.c(padded)

    graph = captured(Net(forward, a=conv(), b=conv(4, padding=0), c=conv(4, padding=0)))
    assert kinds(graph) == ["Conv2d", "Conv2d", "Conv2d", "mul"]


@pytest.mark.parametrize(
    ("pool", "value", "relu", "folds"),
    [
        (nn.MaxPool2d(3, 2), -math.inf, False, True),
        (nn.MaxPool2d(3, 2), 0.0, True, True),
        (nn.MaxPool2d(3, 2), 0.0, False, False),  # of negative values zero is the largest
        (nn.AvgPool2d(3, 2), 0.0, False, True),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), 0.0, False, False),
    ],
)
def test_padding_becomes_part_of_a_pooling_where_the_values_allow(
    pool: nn.Module, value: float, relu: bool, folds: bool
) -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x) - 2.0
        return net.pool(F.pad(F.relu(x) if relu else x, (1, 1, 1, 1), value=value))

    assert ("pad" in kinds(captured(Net(forward, a=conv(), pool=pool)))) is not folds


def test_padding_at_the_end_of_a_max_pooling_is_its_ceil_mode() -> None:
    graph = captured(Net(lambda net, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)))
    assert kinds(graph) == ["MaxPool2d"]
    assert module(graph, "max_pool2d").ceil_mode is True


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_values_stays_a_padding(mode: str) -> None:
    graph = captured(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode))
    assert kinds(graph)[-1] == "Conv2d"
    assert module(graph, graph_last(graph)).padding == (0, 0)


def graph_last(graph: torch.fx.GraphModule) -> str:
    return str([node for node in graph.graph.nodes if node.op == "call_module"][-1].target)


def test_two_paddings_are_one() -> None:
    graph = captured(Net(lambda net, x: net.a(F.pad(F.pad(x, (1, 0)), (0, 1, 2, 2))), a=conv(padding=0)))
    assert kinds(graph) == ["Conv2d"]


def _per_channel(*shape: int) -> nn.Parameter:
    return nn.Parameter(random(*shape))


@pytest.mark.parametrize(
    ("after", "layer", "shape"),
    [
        (lambda net, x: x + net.c, conv(), (3, 8, 8)),
        (lambda net, x: net.c * x, conv(), (3, 8, 8)),
        (lambda net, x: x * 0.3 - 2.0, conv(), (3, 8, 8)),
        (lambda net, x: (x - net.c) / 2.5, nn.ConvTranspose2d(3, 4, 2, 2), (3, 8, 8)),
        (lambda net, x: x * net.c, nn.ConvTranspose2d(4, 4, 2, 2, groups=2), (4, 8, 8)),
        (lambda net, x: 1.0 - x, nn.GroupNorm(1, 4), (4, 8, 8)),
        (lambda net, x: x * net.c, nn.BatchNorm2d(4), (4, 8, 8)),
        (lambda net, x: x * net.row + 1.5, nn.Linear(3, 4), (6, 3)),
        (lambda net, x: x * net.row, nn.LayerNorm(4), (6, 4)),
        (lambda net, x: x.permute(0, 3, 1, 2) * net.c, nn.Linear(3, 4), (8, 8, 3)),  # as ConvNeXt's LayerScale
    ],
)
def test_scales_and_shifts_become_part_of_the_layer_before(
    after: Callable[[Net, torch.Tensor], torch.Tensor], layer: nn.Module, shape: tuple[int, ...]
) -> None:
    net = Net(lambda net, x: after(net, net.layer(x)), layer=layer, c=_per_channel(4, 1, 1), row=_per_channel(4))
    left = [each for each in kinds(captured(net, shape, rewrites=("fold_into_layer_before",))) if each != "permute"]
    assert left == [type(layer).__name__]


def test_a_scale_of_what_something_else_reads_too_is_kept() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.a(x)
        return torch.cat([y, y * 0.5], 1)

    assert kinds(captured(Net(forward, a=conv()))) == ["Conv2d", "mul", "cat"]


def test_a_scale_of_the_input_becomes_part_of_the_layer_after() -> None:
    graph = captured(Net(lambda net, x: net.a(x / 255.0), a=conv()), rewrites=("fold_into_layer_after",))
    assert kinds(graph) == ["Conv2d"]


def test_a_shift_goes_into_a_layer_after_that_does_not_pad() -> None:
    net = Net(lambda net, x: net.a((x - net.m) * net.s), a=conv(padding=0), m=random(1, 3, 1, 1), s=random(1, 3, 1, 1))
    assert kinds(captured(net)) == ["Conv2d"]
    padded = Net(lambda net, x: net.a((x - net.m) * net.s), a=conv(), m=random(1, 3, 1, 1), s=random(1, 3, 1, 1))
    assert kinds(captured(padded)) == ["BatchNorm2d", "Conv2d"]


def test_a_batch_norm_before_a_convolution_folds_where_nothing_is_padded() -> None:
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), conv(padding=0))
    assert kinds(captured(net, rewrites=("fold_into_layer_after",))) == ["ReLU", "Conv2d"]
    grouped = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1, groups=2))
    assert kinds(captured(grouped, (4, 8, 8))) == ["ReLU", "Conv2d"]
    assert kinds(captured(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), conv()))) == ["ReLU", "BatchNorm2d", "Conv2d"]


def test_scale_and_shift_of_channels_that_no_layer_takes_are_a_batch_norm() -> None:
    net = Net(lambda net, x: F.relu(x) * net.s + net.t, s=random(3, 1, 1), t=random(3, 1, 1))
    assert kinds(captured(net, rewrites=("name_batch_norms",))) == ["ReLU", "BatchNorm2d"]


def test_a_frozen_batch_norm_is_part_of_its_convolution() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in (("weight", 1), ("bias", 2), ("running_mean", 3), ("running_var", 4)):
                self.register_buffer(name, random(4, seed=value).abs() + 0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = self.weight.view(1, -1, 1, 1) * (self.running_var.view(1, -1, 1, 1) + 1e-5).rsqrt()
            return x * scale + (self.bias.view(1, -1, 1, 1) - self.running_mean.view(1, -1, 1, 1) * scale)

    assert kinds(captured(nn.Sequential(conv(bias=False), Frozen(), nn.ReLU()))) == ["Conv2d", "ReLU"]


class _RepVGG(nn.Module):
    def __init__(self, channels: int, kernel: int = 3, groups: int = 1) -> None:
        super().__init__()
        self.large = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.large_bn, self.bn = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.small, self.small_bn = nn.Conv2d(channels, channels, 1, groups=groups), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.large_bn(self.large(x)) + self.small_bn(self.small(x)) + self.bn(x))


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (5, 1), (3, 4), (3, 2)])
def test_parallel_branches_are_one_convolution(kernel: int, groups: int) -> None:
    graph = captured(
        nn.Sequential(_RepVGG(4, kernel, groups), _RepVGG(4)), (4, 8, 8), rewrites=("merge_parallel_branches",)
    )
    assert kinds(graph) == ["Conv2d", "ReLU"] * 2


def test_a_residual_sum_stays_a_sum() -> None:
    graph = captured(Net(lambda net, x: F.relu(net.bn(net.a(x)) + x), a=conv(3, 3), bn=nn.BatchNorm2d(3)))
    assert kinds(graph) == ["Conv2d", "BatchNorm2d", "add", "ReLU"]


def test_branches_of_other_strides_or_inputs_stay_apart() -> None:
    graph = captured(Net(lambda net, x: net.a(x) + net.b(x.abs()), a=conv(), b=conv()))
    assert kinds(graph) == ["Conv2d", "abs", "Conv2d", "add"]


@pytest.mark.parametrize(
    "nothing",
    [
        nn.Identity(),
        nn.Dropout(0.5),
        nn.AlphaDropout(0.5),
        Net(lambda net, x: F.dropout(x, 0.5, net.training)),
        Net(lambda net, x: x * 1.0 + 0),
        Net(lambda net, x: x.contiguous().clone().float()),
        Net(lambda net, x: x[:, :, 0:]),
        Net(lambda net, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
        Net(lambda net, x: x.flatten(2).view(x.shape)),
        Net(lambda net, x: F.interpolate(x, scale_factor=1.0)),
        Net(lambda net, x: F.adaptive_avg_pool2d(x, (8, 8))),
        Net(lambda net, x: torch.cat([x], 1)),
    ],
)
def test_what_does_nothing_is_dropped(nothing: nn.Module) -> None:
    assert kinds(captured(Net(lambda net, x: net.b(net.nothing(net.a(x))), a=conv(), nothing=nothing, b=conv(4)))) == [
        "Conv2d",
        "Conv2d",
    ]


def test_reshapes_in_a_row_are_one() -> None:
    graph = captured(Net(lambda net, x: x.flatten(2).unsqueeze(1).reshape(x.shape[0], -1)))
    assert kinds(graph) == ["flatten"]


def test_heads_are_parted_before_they_are_turned() -> None:
    """Attention of torch joins batch and heads, which no view can where the batch has windows in other places."""

    def attend(net: Net, x: torch.Tensor) -> torch.Tensor:
        windows = x.unflatten(2, (2, 4)).permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2)  # (2 n, 32, 16)
        return net.attention(windows, windows, windows, need_weights=False)[0]  # type: ignore[no-any-return]

    graph = captured(Net(attend, attention=nn.MultiheadAttention(16, 2, batch_first=True)), (16, 8, 8))
    (scores,) = (node for node in graph.graph.nodes if "scaled_dot_product" in str(node.target))
    for operand in scores.args[:3]:
        assert operand.target is torch.permute
        assert operand.meta["shape"][1:] == (2, 32, 8)


def test_a_pixel_shuffle_that_is_written_out_is_named() -> None:
    def shuffle(net: Net, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)

    assert kinds(captured(Net(shuffle), (8, 4, 4))) == ["pixel_shuffle"]
    net = Net(
        lambda net, x: x.view(-1, 3, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 12, 4, 4),
    )
    assert kinds(captured(net)) == ["pixel_unshuffle"]


def test_a_split_of_which_one_part_is_read_is_a_slice() -> None:
    assert kinds(captured(Net(lambda net, x: x.chunk(2, 1)[1]), (4, 8, 8))) == ["getitem"]


def test_every_rewrite_is_described() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs/explanation/capture.md").read_text(encoding="utf-8")
    assert [each.__name__ for each in REWRITES if f"`{each.__name__}`" not in text] == []


def test_a_mean_over_a_mask_of_ones_is_captured_without_a_word() -> None:
    # Time series models scale by the values that were observed, and by default all of them were.
    def scaled(net: Net, x: torch.Tensor) -> torch.Tensor:
        seen = torch.ones_like(x)
        count = seen.sum(1, keepdim=True).clamp(min=1)
        middle = (x * seen).sum(1, keepdim=True) / count
        spread = (((x - middle) * seen) ** 2).sum(1, keepdim=True) / count
        result: torch.Tensor = net.last((x - middle) / torch.sqrt(spread + 1e-5))
        return result

    model, progress = float_model(Net(scaled, last=nn.Linear(3, 2)), (8, 3)), Recorder()
    capture(model, samples((8, 3)), recipe((8, 3)), progress)
    assert progress.warnings == []
