"""Norms of groups of few channels on the native engine: channels that lie last are summed side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from cpupack.stages.quantize.native import float_reductions
from helpers.captured import Net
from helpers.lowered import needs_kernels
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
def test_groups_of_few_channels_are_normed_as_torch_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution's codes are all that rounds; what is wrong has 10 dB at most. The mean is far from zero.

    Each of them goes by sums of channels: a net with groups of two of eight channels took four times as long without.
    """
    summed = []
    by_sums = float_reductions._norm_of_channels
    monkeypatch.setattr(float_reductions, "_norm_of_channels", lambda *a: (summed.append(a), by_sums(*a))[1])
    torch.manual_seed(0)
    norm = NORMS[name]()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
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
    assert len(summed) == 1
