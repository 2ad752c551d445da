"""Models that go around autograd in forward, by ``x.data``: masked convolutions, MADE."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.errors import ModelError
from cpupack.stages.capture.export import export
from helpers.captured import Net, captured
from helpers.lowered import BOUND_DB, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

SHAPE = (3, 8, 8)


class Masked(nn.Conv2d):
    """PixelCNN's: a place sees those above it and to the left."""

    mask: torch.Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 8, 3, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, 1, 1:], self.mask[:, :, 2] = 0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class MaskedAnew(Masked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data = self.weight.data * self.mask
        return nn.Conv2d.forward(self, x)


class MaskedCopy(Masked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight.data * self.mask, self.bias, padding=1)


class Clamped(Masked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.Conv2d.forward(self, x)
        y.data.clamp_(0, 0.5)
        return y


class Replaced(Masked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.Conv2d.forward(self, x)
        y.data = y.data * 2 + 1
        return y


class Growing(Masked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data *= 1.01
        return nn.Conv2d.forward(self, x)


def network(kind: type[Masked]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(kind(3), nn.ReLU(), kind(8), nn.Flatten(), nn.Linear(512, 4)).eval()


@needs_kernels
@pytest.mark.parametrize("kind", [Masked, MaskedAnew, MaskedCopy, Clamped, Replaced])
def test_what_goes_through_data_is_captured(kind: type[Masked]) -> None:
    data, module = samples(SHAPE), network(kind)
    model, int8 = quantized(module, "native", spec=recipe(SHAPE, quantize={"observer": "minmax"}), data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


def test_weights_that_change_in_each_call_are_refused() -> None:
    with pytest.raises(ModelError, match="answers differently each time"):
        quantized(network(Growing), "native", spec=recipe(SHAPE), data=samples(SHAPE))


class Reversible(torch.autograd.Function):
    """As reversible networks are: what is not needed any more is given back in forward."""

    @staticmethod
    def forward(_: object, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        one, two = (each.contiguous() for each in x.chunk(2, 1))
        first = one + layer(two)
        both = torch.cat([first, two + first], 1)
        for each in (one, two, first):
            each.set_()  # type: ignore[call-overload]  # without a source, it frees the tensor
        return both


def test_tensors_that_are_freed_in_forward_are_left_alone() -> None:
    net = Net(lambda net, x: Reversible.apply(net.a(x), net.b), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(2, 2, 1))
    captured(net)


def test_an_update_that_torch_cannot_write_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no symbol here")

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.a(x)
        y[:, :1].relu_()
        return y

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", fails)
    with pytest.raises(ModelError, match=r"relu_.*y\[:, :1\].relu_\(\).*no symbol here"):
        export(Net(forward, a=nn.Conv2d(3, 4, 1)).eval(), torch.zeros(2, 3, 8, 8))
