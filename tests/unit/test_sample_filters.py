"""Convolutions with filters that each sample has of its own: captured for any batch, and natively run."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.stages.quantize.native.program import Op
from helpers.captured import Net, captured, kinds, random
from helpers.lowered import BOUND_DB, kernels, lowered, needs_kernels, program_buffers, program_layers


class Mixed(nn.Module):
    """Filters that are mixed anew for each sample (CondConv), with a bias of each sample, in ``groups``."""

    def __init__(self, kernel: tuple[int, ...], groups: int = 1, **settings: object) -> None:
        super().__init__()
        self.kernel, self.groups, self.settings = kernel, groups, settings
        self.first = nn.Conv2d(3, 4, 1) if len(kernel) == 2 else nn.Conv1d(3, 4, 1)
        self.route, self.last = nn.Linear(4, 3), nn.Linear(8, 5)
        self.experts = nn.Parameter(random(3, 8 * 4 // groups * torch.Size(kernel).numel()))
        self.biases = nn.Parameter(random(3, 8, seed=4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        batch, channels, *sizes = x.shape
        shares = self.route(x.flatten(2).mean(2)).sigmoid()
        filters = (shares @ self.experts).view(batch * 8, channels // self.groups, *self.kernel)
        convolve = F.conv2d if len(sizes) == 2 else F.conv1d
        found = convolve(
            x.reshape(1, batch * channels, *sizes), filters, (shares @ self.biases).view(-1),
            groups=batch * self.groups, **self.settings,
        )  # fmt: skip
        return self.last(found.view(batch, 8, *found.shape[2:]).flatten(2).mean(2))


class Modulated(nn.Module):
    """Filters whose inputs are scaled by a style, and enlarge images (StyleGAN2)."""

    def __init__(self, groups: int = 1, **settings: object) -> None:
        super().__init__()
        self.settings, self.groups = settings, groups
        self.style, self.last = nn.Linear(3, 6), nn.Conv2d(4 * groups, 2, 1)
        self.first = nn.Conv2d(3, 6, 1)
        self.weight = nn.Parameter(random(1, 6, 4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filters = self.weight * self.style(x.mean((2, 3)))[:, :, None, None, None]
        filters = filters * torch.rsqrt(filters.pow(2).sum((1, 3, 4), keepdim=True) + 1e-8)
        x = self.first(x)
        batch, channels, height, width = x.shape
        found = F.conv_transpose2d(
            x.reshape(1, batch * channels, height, width), filters.flatten(0, 1), groups=batch * self.groups,
            **self.settings,
        )  # fmt: skip
        return self.last(found.view(batch, 4 * self.groups, *found.shape[2:]))


class ModulatedByChannel(nn.Module):
    """A filter for each channel, times a gain of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.weight = nn.Linear(3, 3), nn.Parameter(random(3, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        filters = self.weight * self.gain(x.mean((2, 3))).view(batch, channels, 1, 1, 1)
        found = F.conv2d(x.reshape(1, -1, height, width), filters.flatten(0, 1), groups=batch * channels, padding=1)
        return found.view(batch, channels, height, width)


def _styled(net: Net, x: torch.Tensor, modulate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Convolve with filters ``(batch, outputs, inputs, ...)`` that are made of ``net.weight`` and a style."""
    style, x = net.style(x.flatten(2).mean(2)), net.first(x)
    filters = modulate(net.weight, style)
    batch, _, *sizes = x.shape
    rows = filters.reshape(batch * filters.shape[1], *filters.shape[2:])
    convolve = F.conv2d if len(sizes) == 2 else F.conv1d
    found = convolve(x.reshape(1, -1, *sizes), rows, padding="same", groups=batch)
    return net.last(found.reshape(batch, -1, *sizes).flatten(2).mean(2))


def _demodulated(weight: torch.Tensor, style: torch.Tensor) -> torch.Tensor:  # rosinality's StyleGAN2
    filters = 0.2 * weight * style.view(-1, 1, 6, 1, 1)
    demod = torch.rsqrt(filters.pow(2).sum([2, 3, 4]) + 1e-8)
    return filters * demod.view(-1, 4, 1, 1, 1)


def _added_one(weight: torch.Tensor, style: torch.Tensor) -> torch.Tensor:  # lucidrains'
    filters = weight[0][None] * (style[:, None, :, None, None] + 1)
    return filters * torch.rsqrt((filters**2).sum(dim=(2, 3, 4), keepdim=True) + 1e-8)


def _divided(weight: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    filters = style[:, None, :, None, None] * weight / 3.0
    return filters / torch.sqrt((filters * filters).sum((-1, -2, -3), keepdim=True) + 1e-8)


def _only_scaled(weight: torch.Tensor, style: torch.Tensor) -> torch.Tensor:  # as the layer to RGB has it
    return weight * style.view(-1, 1, 6, 1, 1)


def _of_a_sequence(weight: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    filters = weight[..., 0] * style.view(-1, 1, 6, 1)
    return filters * torch.rsqrt(filters.square().sum((2, 3), keepdim=True) + 1e-8)


def _mixed_by_input(weight: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """No factors of outputs and inputs: each filter has its own, which nothing can be taken out of."""
    return weight * style.view(-1, 1, 6, 1, 1) + style.view(-1, 1, 6, 1, 1)


STYLES = (_demodulated, _added_one, _divided, _only_scaled, _of_a_sequence)


@pytest.mark.parametrize("style", STYLES, ids=lambda each: each.__name__.strip("_"))
def test_modulated_filters_are_constant_ones_and_factors(style: Callable[..., torch.Tensor]) -> None:
    sequence = style is _of_a_sequence
    first = nn.Conv1d(3, 6, 1) if sequence else nn.Conv2d(3, 6, 1)
    net = Net(
        lambda net, x: _styled(net, x, style), style=nn.Linear(3, 6), first=first, weight=random(1, 4, 6, 3, 3),
        last=nn.Linear(4, 2),
    )  # fmt: skip
    found = captured(net, (3, 12) if sequence else (3, 8, 9))
    convs = [each for each in found.modules() if isinstance(each, nn.Conv1d | nn.Conv2d)]
    assert len(convs) == 2
    assert "matmul" not in kinds(found)
    shapes = [node.meta["shape"] for node in found.graph.nodes if "shape" in node.meta]
    whole = [each for each in shapes if len(each) == (4 if sequence else 5) and math.prod(each[1:]) > 6]
    assert not whole  # of the filters of a sample not even the norm is computed from all


def test_filters_with_a_summand_of_each_sample_are_products() -> None:
    net = Net(
        lambda net, x: _styled(net, x, _mixed_by_input), style=nn.Linear(3, 6), first=nn.Conv2d(3, 6, 1),
        weight=random(1, 4, 6, 3, 3), last=nn.Linear(4, 2),
    )  # fmt: skip
    assert "matmul" in kinds(captured(net, (3, 8, 9)))


def test_a_style_may_scale_images_before_a_layer_and_the_norm_of_its_filters_after_it() -> None:
    """As NVIDIA's code does without its own kernels: the filters of each sample are made for their norm alone."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        style, x = net.style(x.mean((2, 3))), net.first(x)
        filters = net.weight * style.reshape(-1, 1, 6, 1, 1)
        demod = (filters.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt()
        x = F.conv2d(x * style[:, :, None, None], net.weight[0], padding=1)
        return net.last(x * demod[:, :, None, None])

    net = Net(
        forward, style=nn.Linear(3, 6), first=nn.Conv2d(3, 6, 1), weight=random(1, 4, 6, 3, 3), last=nn.Conv2d(4, 2, 1)
    )
    ranks = {len(node.meta["shape"]) for node in captured(net, (3, 8, 9)).graph.nodes if "shape" in node.meta}
    assert 5 not in ranks


class Sought(nn.Module):
    """A template of each sample is looked for in it: channel by channel, or in all of them together (SiamFC)."""

    def __init__(self, *, by_channel: bool) -> None:
        super().__init__()
        self.by_channel, self.first = by_channel, nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        template, x = self.first(x[:, :, 1:6, 2:6]), self.first(x)
        batch, channels, height, width = x.shape
        if self.by_channel:
            rows = template.reshape(batch * channels, 1, *template.shape[2:])
            found = F.conv2d(x.reshape(1, -1, height, width), rows, groups=batch * channels)
        else:
            found = F.conv2d(x.reshape(-1, batch * channels, height, width), template, groups=batch)
        return found.view(batch, -1, found.size(-2), found.size(-1))


NETS = {
    "mixed": Mixed((3, 3), padding=1),
    "strided": Mixed((3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "in groups": Mixed((3, 3), groups=2, padding="same"),
    "same": Mixed((3, 5), padding="same", dilation=(1, 2)),
    "one pixel": Mixed((1, 1), groups=4, padding="valid"),
    "sequence": Mixed((3,), groups=2, padding=2, stride=2),
    "modulated": Modulated(stride=2, padding=1, output_padding=1),
    "modulated in groups": Modulated(groups=2, stride=(2, 1), padding=1, output_padding=(1, 0)),
    "modulated by channel": ModulatedByChannel(),
    "by channel": Sought(by_channel=True),
    "together": Sought(by_channel=False),
}


@pytest.mark.parametrize("name", NETS)
def test_filters_of_each_sample_are_products_for_any_batch(name: str) -> None:
    net = NETS[name]
    found = kinds(captured(net, (3, 12) if name == "sequence" else (3, 8, 9)))
    assert ("matmul" in found) == (name in ("modulated in groups", "by channel", "together"))
    assert not [each for each in found if "conv" in each and not each[0].isupper()]


def test_a_mixture_of_many_filters_is_a_product_of_the_mixed_ones() -> None:
    net = Mixed((3, 3), padding=1)
    net.route, net.experts = nn.Linear(4, 9), nn.Parameter(random(9, 8 * 4 * 9))
    net.biases = nn.Parameter(random(9, 8, seed=4))
    assert "matmul" in kinds(captured(net))


@needs_kernels
@pytest.mark.parametrize("name", ["mixed", "modulated", "together"])
def test_filters_of_each_sample_run_natively(name: str) -> None:
    db, int8, _ = lowered(NETS[name], (3, 8, 9))
    assert db > BOUND_DB - 3.0  # the filters have roundings of their own
    assert "aten" not in kernels(int8)


@needs_kernels
def test_a_mixture_is_a_convolution_a_gate_and_a_convolution_of_ones() -> None:
    """Each of them is a pass. A product with shares as large as the result, and its sum, took four times as long."""
    _, int8, _ = lowered(NETS["mixed"], (3, 8, 9))
    found = [Op(int(each["op"])) for each in program_layers(int8)]
    gate = found.index(Op.SCALE)
    assert found[gate + 1] is Op.CONV
    sizes = [int(np.prod([each[side] for side in ("height", "width", "channels")])) for each in program_buffers(int8)]
    moved = [each for each in program_layers(int8) if each["op"] == Op.MOVE and each["output"] >= 0]
    assert not [each for each in moved if sizes[each["output"]] >= 3 * 8 * 9 * 8]


def test_a_constant_filter_laid_out_for_the_batch_is_the_same_for_each_sample() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        filters = net.blur.repeat(batch, 1, 1, 1)
        found = F.conv2d(x.reshape(1, -1, height, width), filters, padding=1, groups=batch * channels)
        return net.last(found.view(batch, channels, height, width))

    captured(Net(forward, blur=random(3, 1, 3, 3), last=nn.Conv2d(3, 2, 1)))
