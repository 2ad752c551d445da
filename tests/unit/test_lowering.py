"""conv + add + ReLU as one operator where that is safe, and only there; ReLU6 as a range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import QuantizedModel
from helpers.tiny_models import ENGINES, host_bits, quantized, recipe, run, samples


class Net(nn.Module):
    """Three convolutions that keep the shape, and a forward that uses them."""

    def __init__(self, forward: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu, self.relu_in_place, self.pool = nn.ReLU(), nn.ReLU(inplace=True), nn.MaxPool2d(3, 1, 1)
        self.flat = nn.Conv2d(3, 3, 8)
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def fused_adds(int8: QuantizedModel) -> int:
    modules = dict(int8.module.named_modules())
    return sum(
        type(modules[str(node.target)]).__name__ in {"ConvAdd2d", "ConvAddReLU2d"}
        for node in int8.module.graph.nodes
        if node.op == "call_module"
    )


def block(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.relu(net.a(x))
    return net.relu(net.c(net.b(y)) + y)


SAFE = {
    "a residual block": block,
    "the sum the other way round": lambda net, x: (y := net.relu(net.a(x))) + net.c(net.b(y)),
    "torch.add": lambda net, x: torch.add(net.c(net.b(y := net.relu(net.a(x)))), y),
    "two convolutions": lambda net, x: net.relu(net.a(x) + net.b(x.abs())),
    "a scaled sum": lambda net, x: torch.add(net.a(x), net.b(x.abs()), alpha=2),
    "after a pool": lambda net, x: net.c(net.b(y := net.pool(net.a(x)))) + y,
    "an in-place ReLU": lambda net, x: net.c(net.b(y := net.relu_in_place(net.a(x)))) + y,
    "sums in a row": lambda net, x: net.c(net.pool(z := net.b(x) + net.a(x))) + z,
}


def again(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Read the accumulator after the addition."""
    y = net.relu(net.a(x))
    z = net.b(y) + y
    return net.c(z) + y * 3.0


def beside(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Read the accumulator on a path that the convolution does not depend on."""
    y = net.relu(net.a(x))
    other = net.pool(y)
    return torch.cat([net.b(x) + y, other], 1)


def alias(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Read after the addition what an in-place ReLU made of the accumulator: the same memory."""
    y = net.a(x)
    z = net.relu_in_place(y)
    return torch.cat([net.c(net.b(z)) + y, z], 1)


UNSAFE = {
    "the convolution reads the accumulator": lambda net, x: net.b(y := net.a(x)) + y,
    "the convolution reads it through an in-place ReLU": lambda net, x: net.b(net.relu_in_place(y := net.a(x))) + y,
    "an in-place ReLU's result is read later": alias,
    "the accumulator is read later": again,
    "the accumulator is read beside": beside,
    "the accumulator is a result too": lambda net, x: torch.cat([y := net.relu(net.a(x)), net.b(y) + y], 1),
    "shapes broadcast": lambda net, x: net.flat(y := net.a(x)) + y,
    "shapes broadcast the other way": lambda net, x: net.a(x) + net.flat(net.b(x)),
    "the accumulator is the input": lambda net, x: net.a(x) + x,
    "the accumulator is a view": lambda net, x: net.b(y := net.a(x)) + torch.transpose(y, 2, 3),
    "the accumulator is a slice": lambda net, x: net.b(x) + torch.cat([net.a(x), net.c(x)], 1)[:, :3],
    "both summands are the same": lambda net, x: (y := net.a(x)) + y,
    "a number": lambda net, x: net.a(x) + 1.0,
}


def check_close(forward: Callable[[Net, torch.Tensor], torch.Tensor], engine: str = "onednn") -> QuantizedModel:
    model, int8 = quantized(Net(forward), engine)
    evaluation = samples(seed=1)
    before = evaluation.data.copy()
    # A few roundings to 8 bits leave more than 20 dB, a tensor that was overwritten less than 10.
    assert accuracy.sqnr_db(run(model, evaluation), run(int8, evaluation)) > 20.0
    assert np.array_equal(run(int8, evaluation), run(int8, evaluation))
    assert np.array_equal(evaluation.data, before)
    return int8


@pytest.mark.parametrize("name", SAFE)
def test_onednn_adds_in_the_convolution_where_nothing_else_reads_the_sum(name: str) -> None:
    assert fused_adds(check_close(SAFE[name])) >= 1


@pytest.mark.filterwarnings("ignore:All inputs of this cat operator")  # right, but slower than one range
@pytest.mark.parametrize("name", UNSAFE)
def test_the_addition_stays_apart_where_writing_into_a_summand_would_be_wrong(name: str) -> None:
    assert fused_adds(check_close(UNSAFE[name])) == 0


@pytest.mark.parametrize("engine", ["fbgemm", "x86", "qnnpack"])
def test_other_engines_add_apart(engine: str) -> None:
    assert fused_adds(check_close(block, engine)) == 0


RELUS = {
    "module": block,
    "F.relu": lambda net, x: F.relu(net.c(net.b(y := net.relu(net.a(x)))) + y),
    "in place": lambda net, x: F.relu(net.c(net.b(y := net.relu(net.a(x)))) + y, inplace=True),
    "method": lambda net, x: (net.c(net.b(y := net.relu(net.a(x)))) + y).relu(),
}


@pytest.mark.parametrize("name", RELUS)
def test_the_relu_after_the_sum_is_part_of_the_operator(name: str) -> None:
    int8 = check_close(RELUS[name])
    assert "ConvAddReLU2d" in [type(module).__name__ for module in int8.module.modules()]
    assert not any("relu" in str(node.target) for node in int8.module.graph.nodes if node.op != "get_attr")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [7, 8])
def test_relu6_never_lets_more_than_6_through(engine: str, bits: int) -> None:
    def net(last: nn.Module) -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), last)
        with torch.no_grad():
            layers[0].weight.mul_(8.0)  # many outputs beyond 6
        return layers

    data = samples(count=32)
    model, int8 = quantized(net(nn.ReLU6()), engine, bits, spec=recipe(quantize={"observer": "minmax"}), data=data)
    expected, actual = run(model, data), run(int8, data)
    assert expected.max() == 6.0
    assert np.mean(expected == 6.0) > 0.05
    assert actual.min() >= 0.0
    # 6 is a step of the grid: exactly it in real numbers, to float32's rounding of the scale here.
    assert actual.max() == pytest.approx(6.0, rel=1e-6)
    # With 8 bits the range is the clamp; with 7 a byte holds twice the range, and the ReLU6 must stay.
    assert any("ReLU6" in type(module).__name__ for module in int8.module.modules()) == (bits == 7)
    if bits > host_bits(engine):
        return  # the convolution saturates: what passes the ReLU6 is in range, and wrong
    _, plain = quantized(net(nn.ReLU()), engine, bits, spec=recipe(quantize={"observer": "minmax"}), data=data)
    relu = np.maximum(run(quantized(net(nn.ReLU()), engine)[0], data), 0.0)
    # The range to 6 has finer steps than the range of the ReLU, and clipped values are exact.
    assert accuracy.sqnr_db(expected, actual) >= accuracy.sqnr_db(relu, run(plain, data)) - 1.0


def test_a_relu6_whose_inputs_stay_below_6_is_right() -> None:
    torch.manual_seed(0)
    model, int8 = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6()))
    assert run(model, samples()).max() < 6.0
    assert accuracy.sqnr_db(run(model, samples()), run(int8, samples())) > 30.0


class Branches(nn.Module):
    """Two parallel convolutions, which capture merges into the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.narrow, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        result: torch.Tensor = self.last(torch.relu(self.wide(x) + self.narrow(x))).mean((2, 3))
        return result


@pytest.mark.parametrize("name", ["wide", "narrow"])
def test_skip_may_name_any_branch_that_was_merged(name: str) -> None:
    _, int8 = quantized(Branches(), "native", spec=recipe(quantize={"skip": [name]}), data=samples())
    assert {fact.name: fact.reason for fact in int8.layers if fact.precision == "fp32"} == {"wide": "listed in skip"}
