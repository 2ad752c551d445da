"""Code that takes numbers out of the model's own tensors: they are known, other than what is computed of the input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.errors import ModelError
from cpupack.progress import SilentProgress
from cpupack.stages.capture import capture
from helpers.captured import Net, captured
from helpers.tiny_models import SHAPE, float_model, recipe, samples


class Own(nn.Module):
    """Strides as an attribute, sizes as a buffer, a gate and a scale as parameters."""

    def __init__(self, forward: Callable[[Own, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.strides = torch.tensor([8.0, 16.0])
        self.register_buffer("sizes", torch.tensor([4, 5]))
        self.gate, self.scale = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor([2.5]))
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, self.conv(x))


FORWARDS: dict[str, Callable[[Own, torch.Tensor], torch.Tensor]] = {
    "each of them": lambda net, x: torch.cat([x * torch.full((4, 1, 1), each) for each in net.strides], 1),
    "a float": lambda net, x: F.leaky_relu(x, float(net.scale) / 10.0),
    "a choice": lambda net, x: x * 2.0 if net.gate > 0 else x - 1.0,
    "a list of sizes": lambda net, x: F.interpolate(x, size=net.sizes.tolist()),
    "an item of a sum": lambda net, x: x * net.strides.sum().item(),
    "a whole number": lambda net, x: x[:, :, : int(net.sizes[0])],
    "of a copy that is changed": lambda net, x: x * float(net.strides.clone().mul_(0.5)[1]),
    "all dimensions but the batch": lambda net, x: x - x.mean(torch.arange(1, x.ndim).tolist(), keepdim=True),
    "the longest of lengths that are all the same": lambda net, x: (
        x * (torch.arange(int(torch.full((x.shape[0],), x.shape[2]).max())) < 5).float()[:, None]
    ),
    "a choice by them": lambda net, x: x * 2.0 if (torch.ones_like(x[:, 0, 0, 0]) * 3.0 > 2.0).all() else x,
}


@pytest.mark.parametrize("name", FORWARDS)
def test_numbers_of_the_models_own_tensors_are_known(name: str) -> None:
    module = Own(FORWARDS[name])
    before = {key: value.clone() for key, value in module.state_dict().items()}
    captured(module)  # which compares with the module on other data
    assert torch.equal(module.strides, torch.tensor([8.0, 16.0]))
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


def _changed(x: torch.Tensor) -> torch.Tensor:
    flags = torch.zeros(2)
    first = flags[:1]
    first.copy_(x.abs().max())
    return x.mean((2, 3)) * (2.0 if flags.max() > 0.0 else 1.0)


class Counter(nn.Module):
    """Answers otherwise from its second call on, by a number that it keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1.0
        return self.conv(x) * (2.0 if self.calls > 100.0 else 1.0)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(Counter(), id="a buffer that changes"),
        pytest.param(Net(lambda net, x: x.mean((2, 3)) * float(x.abs().max() > 0.0)), id="computed of the input"),
        pytest.param(
            Net(lambda net, x: x.mean((2, 3)) * float((x * net.gain).mean() > -9.0), gain=torch.ones(1)),
            id="computed of both",
        ),
        pytest.param(
            Net(lambda net, x: x.mean((2, 3)) * (2.0 if torch.ones(x.shape[0]).sum() > 4.0 else 1.0)),
            id="computed of the size of the batch",
        ),
        pytest.param(Net(lambda net, x: x.mean((2, 3)) * (2.0 if torch.rand(3).sum() < 9.0 else 1.0)), id="random"),
        pytest.param(Net(lambda net, x: _changed(x)), id="changed by the input"),
        *(
            pytest.param(Net(lambda net, x, made=made: x.mean((2, 3)) * (2.0 if made(x) > 1e9 else 1.0)), id=name)
            for name, made in {
                "another tensor of the input": lambda x: torch.as_tensor(x).sum(),
                "filled with a number of the input": lambda x: torch.full((2,), x.sum().item()).max(),
                "new, filled with a number of the input": lambda x: x.new_full((2,), x.sum().item()).max(),
            }.items()
        ),
    ],
)
def test_numbers_that_differ_from_call_to_call_are_refused(module: nn.Module) -> None:
    with pytest.raises(ModelError, match="a line depends on the values of a tensor"):
        capture(float_model(module), samples(SHAPE), recipe(SHAPE), SilentProgress())


class TakesAny(nn.Module):
    """As a decorator without ``functools.wraps``, or ``nn.DataParallel``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, *inputs: torch.Tensor, **options: object) -> torch.Tensor:
        assert not options
        found: torch.Tensor = self.conv(*inputs)
        return found


class Patient(nn.Module):
    """Calls layers with an argument that some do not take, as speechbrain's containers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            try:
                x = layer(x, lengths=None)
            except TypeError:
                x = layer(x)
        return x


def test_errors_that_the_model_catches_are_no_errors() -> None:
    graph = captured(Patient())
    assert "layers.0" in [str(node.target) for node in graph.graph.nodes]


def test_a_layer_that_forward_brings_to_the_device_of_the_input_stays() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        return net.conv.to(x.device)(x) + net.norm.to(x)(x).float()

    captured(Net(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)))


def test_forward_may_take_any_arguments() -> None:
    captured(TakesAny())
