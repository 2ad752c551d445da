"""Norms of groups of few channels on the native engine: channels that lie last are summed side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import QuantizedModel, Samples
from cpupack.stages.quantize.native.program import Op
from helpers.captured import Net
from helpers.lowered import lowered, needs_kernels, program_buffers, program_layers
from helpers.tiny_models import quantized, recipe, run

NORMS = {
    "three channels": lambda: nn.GroupNorm(8, 24),
    "odd groups": lambda: nn.GroupNorm(5, 35, eps=1e-3),
    "no factors": lambda: nn.GroupNorm(6, 24, affine=False),
    "each channel": lambda: nn.InstanceNorm2d(24, affine=True),
    "each channel alone": lambda: nn.InstanceNorm2d(17),
    "one group": lambda: nn.GroupNorm(1, 24),
    "pairs": lambda: nn.GroupNorm(4, 8),
    "few": lambda: nn.GroupNorm(2, 6),
}


@needs_kernels
@pytest.mark.parametrize("name", NORMS)
def test_groups_of_few_channels_are_normed_as_torch_does(name: str) -> None:
    """The convolution's codes are all that rounds; what is wrong has 10 dB at most. The mean is far from zero.

    Each of them goes by sums of channels: a net with groups of two of eight channels took four times as long without.
    """
    norm = made(name)
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    net = Net(
        lambda net, x: net.norm(net.first(x) + 5.0).flatten(2),
        first=nn.Conv2d(3, channels, 3, padding=1), norm=norm,
    )  # fmt: skip
    values = np.random.default_rng(0).standard_normal((8, 3, 7, 9)).astype(np.float32)
    data = Samples(values, "noise", tuple(map(str, range(8))))
    spec = recipe((3, 7, 9), quantize={"observer": "minmax"})
    model, int8 = quantized(net, "native", spec=spec, data=data)
    assert not [fact for fact in int8.layers if fact.kernel.startswith("aten")]
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 28.0
    assert differences(int8) == (channels >= 8)  # fewer are not summed side by side


SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {"sequence": (nn.Conv1d, (3, 63)), "video": (nn.Conv3d, (3, 3, 7, 3))}
AFTER: dict[str, tuple[nn.Module, list[Op]]] = {
    "relu": (nn.ReLU(), [Op.QUANTIZE]),
    "relu6": (nn.ReLU6(), [Op.QUANTIZE]),
    "nothing": (nn.Identity(), [Op.QUANTIZE]),
    "silu": (nn.SiLU(), [Op.QUANTIZE, Op.TABLE]),
}


@needs_kernels
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("name", [*(each for each in NORMS if each != "few"), "sequence", "video"])
def test_a_norm_before_kernels_in_int8_is_rounded_as_it_is_multiplied_and_its_relu_costs_nothing(
    name: str, after: str
) -> None:
    """Of all values of the image or sequence three layers go through: two sums, and the rounding."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 24) if name in SHAPES else made(name)
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    conv, shape = SHAPES.get(name, (nn.Conv2d, (3, 7, 9)))
    activation, layers = AFTER[after]
    net = nn.Sequential(conv(3, channels, 3, padding=1), norm, activation, conv(channels, 8, 3, padding=1))
    db, int8, _ = lowered(net, shape)
    assert db > 28.0
    assert differences(int8) == 1
    sizes = [
        int(np.prod([each[side] for side in ("frames", "height", "width", "channels")]))
        for each in program_buffers(int8)
    ]
    found = [each for each in program_layers(int8) if each["output"] >= 0]
    whole = [each for each in found if sizes[each["output"]] >= 63 * channels and each["op"] > Op.CONV]
    assert [Op(int(each["op"])) for each in whole] == layers
    assert whole[0]["input2"] >= 0


@needs_kernels
def test_a_norm_that_calls_in_fp32_read_too_gives_values() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.norm(net.first(x))
        return net.last(y) + torch.cumsum(y, 1)

    net = Net(forward, first=nn.Conv2d(3, 24, 3, padding=1), norm=nn.GroupNorm(4, 24), last=nn.Conv2d(24, 24, 1))
    db, int8, _ = lowered(net, (3, 7, 9))
    assert db > 28.0
    assert differences(int8) == 1


def made(name: str) -> nn.Module:
    """Return a norm with factors and terms that are no round numbers."""
    torch.manual_seed(0)
    norm = NORMS[name]()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    return norm


def differences(int8: QuantizedModel) -> int:
    """Return how many sums a program has of differences to a mean."""
    return sum(1 for each in program_layers(int8) if each["op"] == Op.FLOAT_REDUCE and each["input2"] >= 0)
