"""Small nets of many kinds through capture and each engine: right for any batch, on samples that nobody calibrated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import QuantizedModel
from cpupack.graph.native_model import NativeModel
from cpupack.quantized_engine import engine
from cpupack.stages.quantize import quantize
from helpers import native_reference
from helpers.captured import Net, random
from helpers.tiny_models import calibrated, layout, recipe, samples, target

needs_kernels = pytest.mark.skipif(not native_reference.runs_here(), reason="the native kernels do not run on this CPU")

# A rounding of normal values to 7 bits costs 35 dB. A few of them leave more than this, what is wrong 20 at most.
BOUND_DB = 25.0

Forward = Callable[[Net, torch.Tensor], torch.Tensor]


def net(forward: Forward, channels: int = 4) -> Net:
    """Return a net of two convolutions that calls ``forward`` between them, on 8 channels."""
    torch.manual_seed(0)
    return Net(
        lambda net, x: net.after(forward(net, net.conv(x))),
        conv=nn.Conv2d(3, 8, 3, padding=1),
        after=nn.Conv2d(channels, 4, 3, padding=1),
        whole=torch.arange(1, 9).view(8, 1, 1),
        token=random(1, 1, 8, 8),
        turn=torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 0.9, 0.1]]]),
        gain=random(8, 1, 1).abs() + 0.5,
        up=nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4),
        norm=nn.BatchNorm2d(8),
        depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
    )


def check(module: nn.Module, engine_name: str) -> QuantizedModel:
    """Return the INT8 form, whose answers for batches of 1 and 8 are those of FP32."""
    spec = recipe()
    model, stats = calibrated(module, spec, samples(count=32))
    int8 = quantize(stats, model.module, spec, target(engine_name))
    fresh = samples(count=8, seed=1)
    whole = fresh.tensor(slice(None)).contiguous(memory_format=layout(fresh))
    with torch.inference_mode(), engine(int8.target.engine):
        expected = model.module(whole.clone()).numpy()
        together = int8.module(whole).numpy()
        alone = np.concatenate([int8.module(whole[place : place + 1]).numpy() for place in range(len(whole))])
    assert accuracy.sqnr_db(expected, together) > BOUND_DB
    assert accuracy.sqnr_db(expected, alone) > BOUND_DB
    return int8


def gated(net: Net, x: torch.Tensor) -> torch.Tensor:
    one, two = x.chunk(2, 1)
    return one * two.sigmoid()


def masked(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = x * 1.0
    y[y < 0.0] = 0.01  # close to what the others round to: a step of the mask counts for little
    return y[:, :4]


def rows(net: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([each.mul_(number + 1) for number, each in enumerate(x.unbind(1)[:4])], 1)


def filled(net: Net, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    out[:, :4] = x[:, 4:]
    out[:, 4:] = x[:, :4].relu()
    return out[:, 2:6]


def by_parts(_net: Net, x: torch.Tensor) -> torch.Tensor:
    """The boxes of YOLOv3, with its old names of tensors and types."""
    found = torch.FloatTensor(x.shape[0], 4, 8, 8)
    found[:, :1] = torch.sigmoid(x[:, :1]).data + torch.arange(8).repeat(8, 1).type(torch.FloatTensor) / 8
    found[:, 1:] = x[:, 1:4]
    return found


def spread(net: Net, x: torch.Tensor) -> torch.Tensor:
    groups = x.reshape(x.shape[0], 2, 4, 8, 8)
    deviations = (groups.var((2, 3, 4), keepdim=True) + 1.0).sqrt().expand(groups.shape)
    return (x / deviations.reshape(x.shape))[:, :4]


def idle(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.silu(x[:, :4])


NETS: dict[str, Forward] = {
    "a product with whole numbers": lambda net, x: (F.relu(x) * net.whole)[:, :4],
    "a sum with whole numbers": lambda net, x: (x + net.whole / 4 + net.whole)[:, :4],
    "a spread by groups, laid out as the values": spread,
    "a token of each sample": lambda net, x: torch.cat([x[:, :3], net.token.expand(x.shape[0], -1, -1, -1)], 1),
    "a token twice": lambda net, x: (
        torch.cat([x[:, :3], net.token.repeat(x.shape[0], 1, 1, 1)], 1)
        + torch.cat([net.token.expand(x.shape[0], -1, -1, -1), x[:, 5:]], 1)
    ),
    "a constant that two read": lambda net, x: (F.silu(x * net.gain) + net.gain * F.silu(-x))[:, 4:],
    "ones beside a map": lambda net, x: torch.cat([x[:, 4:7], torch.ones(x.shape[0], 1, 8, 8) * 3], 1),
    "a sigmoid of a part": gated,
    "a sigmoid of a product with a number": lambda net, x: (x * torch.sigmoid(1.702 * x))[:, :4],
    "a softmax of a difference": lambda net, x: F.softmax(x - x.amax(1, keepdim=True), 1)[:, :4] * 4,
    "a tanh of a part": lambda net, x: torch.tanh(x[:, 1:5] * 3.0),
    "a sigmoid beside a map": lambda net, x: torch.cat([torch.sigmoid(x[:, :2]), x[:, 4:6] * 3.0], 1),
    "an update by a mask": masked,
    "torch.where by a mask": lambda net, x: torch.where(x > 0.3, x * 2.0, x * 0.1)[:, :4],
    "updates of unbound parts": rows,
    "zeros that are filled": filled,
    "an empty tensor that is filled by parts": by_parts,
    "the larger of two maps": lambda net, x: torch.max(x[:, :4], x[:, 4:]),
    "the smaller of a map and a constant": lambda net, x: torch.minimum(x, net.gain)[:, :4],
    "an empty part": lambda net, x: torch.cat([x[:, :0], x[:, :4], x[:, 8:]], 1),
    "more samples for a while": lambda net, x: torch.cat([x, F.relu(x)], 0)[: x.shape[0], :4],
    "zeros beside values": lambda net, x: torch.cat([x[:, :2], torch.zeros(x.shape[0], 2, 8, 8)], 1),
    "a number for each sample": lambda net, x: (x * torch.full((x.shape[0], 1, 1, 1), 0.5))[:, :4],
    "a repeated constant": lambda net, x: (x + net.gain[None].repeat(x.shape[0], 1, 8, 8))[:, :4],
    "an image turned by a grid": lambda net, x: F.grid_sample(
        x,
        F.affine_grid(net.turn.expand(x.shape[0], 2, 3), [x.shape[0], 8, 8, 8], align_corners=False),
        align_corners=False,
    )[:, :4],
    "a part of a batch of a known size": lambda net, x: x.unflatten(0, (x.shape[0], 1)).flatten(0, 1)[:, :4],
    "a single number of each sample": lambda net, x: (x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 20.0)[:, :4],
    "a bicubic interpolation": lambda net, x: F.interpolate(x, scale_factor=1.5, mode="bicubic")[:, :4],
    "a softmax of volumes": lambda net, x: (
        (y := x.unflatten(1, (2, 4))) * torch.softmax(y.mean((3, 4), keepdim=True), 1)
    ).sum(1),
    "windows as samples": lambda net, x: (
        (y := F.relu(x.reshape(-1, 16, 4, 4, 2)))
        + y.mean(1, keepdim=True)
    ).reshape(-1, 8, 8, 8)[:, :4],
    "maps as samples": lambda net, x: F.relu(x.reshape(-1, 8, 8)).reshape(x.shape)[:, :4] - x[:, 4:],
    "a step in float64": lambda net, x: ((x.double() * 2.0).relu().float() + 0.5)[:, :4],
    "autocast that is off": idle,
    "a transposed convolution of groups": lambda net, x: F.max_pool2d(net.norm(net.up(F.relu(x))), 2)[:, :4],
    "a depthwise convolution of signed values": lambda net, x: net.depthwise(x)[:, 2:6],
    "an average without the padding": lambda net, x: F.avg_pool2d(F.relu(x), 3, 1, 1, count_include_pad=False)[:, :4],
    "a sum by an average": lambda net, x: F.avg_pool2d(F.relu(x), 3, 1, 1, divisor_override=2)[:, :4],
    "a dilated maximum": lambda net, x: F.max_pool2d(x, 3, 1, 1, dilation=2)[:, :4],
}  # fmt: skip

# Where the last INT8 layer is: what comes after it is FP32.
ENDS: dict[str, Forward] = {
    "the input is read after the last layer": lambda net, x: torch.where(net.conv(x)[:, :3] > 0.0, x, x * 0.9),
    "a sampled map": lambda net, x: F.grid_sample(
        net.conv(x),
        F.affine_grid(torch.tensor([[[0.8, 0.2, 0.0], [-0.2, 0.8, 0.1]]]).expand(x.shape[0], -1, -1), x.shape,
                      align_corners=False),
        align_corners=False,
    ),
}  # fmt: skip


def ending(name: str) -> Net:
    torch.manual_seed(0)
    return Net(ENDS[name], conv=nn.Conv2d(3, 8, 3, padding=1))


@needs_kernels
@pytest.mark.parametrize("name", ENDS)
def test_the_native_engine_is_right_where_fp32_comes_last(name: str) -> None:
    check(ending(name), "native")


@pytest.mark.parametrize("name", ENDS)
def test_torchs_engine_is_right_where_fp32_comes_last(name: str) -> None:
    check(ending(name), "qnnpack")


@needs_kernels
@pytest.mark.parametrize("name", NETS)
def test_the_native_engine_is_right_for_any_batch(name: str) -> None:
    check(net(NETS[name]), "native")


@pytest.mark.filterwarnings("ignore:All inputs of this cat operator")  # of zeros beside values: right
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("engine_name", ["onednn", "fbgemm", "qnnpack"])
def test_torchs_engines_are_right_for_any_batch(name: str, engine_name: str) -> None:
    check(net(NETS[name]), engine_name)


@needs_kernels
def test_an_empty_tensor_that_is_filled_needs_no_torch() -> None:
    assert isinstance(check(net(by_parts), "native").module, NativeModel)
