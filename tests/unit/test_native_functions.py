"""Functions of one value: those that torch has one operator for, as tables of codes and in FP32."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from helpers.captured import Net
from helpers.lowered import BOUND_DB, Calls, kernels, lowered, needs_kernels
from helpers.tiny_models import quantized, recipe, run

Function = Callable[[torch.Tensor], torch.Tensor]
SMOOTH: dict[str, Function] = {
    "tan": lambda x: torch.tan(x.clamp(-1.4, 1.4)), "sinh": torch.sinh, "cosh": torch.cosh, "sinc": torch.sinc,
    "atan": torch.atan, "asin": lambda x: torch.asin(x.clamp(-1.0, 1.0)),
    "acos": lambda x: torch.acos(x.clamp(-1.0, 1.0)), "atanh": lambda x: torch.atanh(x.clamp(-0.9, 0.9)),
    "acosh": lambda x: torch.acosh(x.abs() + 1.0), "erfc": torch.erfc, "ndtr": torch.special.ndtr,
    "expit": torch.special.expit, "logit": lambda x: torch.logit(x.abs() / 8.0 + 0.1),
    "logit within": lambda x: torch.logit(x, 0.1), "hardshrink": lambda x: F.hardshrink(x, 0.7),
    "softshrink": lambda x: F.softshrink(x, 0.3), "threshold": lambda x: F.threshold(x, 0.1, -2.0),
}  # fmt: skip
STEPS: dict[str, Function] = {
    "sign": torch.sign,
    "sgn": torch.sgn,
    "frac": torch.frac,
    "fmod": lambda x: torch.fmod(x, 1.5),
    "remainder": lambda x: torch.remainder(x, -1.5),
}
TABLES: dict[str, Function] = {
    "acos": SMOOTH["acos"], "atanh": SMOOTH["atanh"], "expit": torch.special.expit, "ndtr": torch.special.ndtr,
    "erfinv": lambda x: torch.erfinv(x.clamp(-0.9, 0.9)), "lgamma": lambda x: torch.lgamma(x.abs() + 1.0),
    "i0": torch.special.i0, "nan_to_num": torch.nan_to_num,
    "power": lambda x: torch.pow(2.0, x),
}  # fmt: skip


class Each(nn.Module):
    """Every function in a module of its own, which ``skip`` can name, beside a layer."""

    def __init__(self, functions: dict[str, Function], width: int) -> None:
        super().__init__()
        self.own = nn.ModuleList(Net(lambda _, x, of=of: of(x)) for of in functions.values())
        self.layer = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([*(each(x) for each in self.own), self.layer(x)], 1)


def in_fp32(functions: dict[str, Function], values: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return what functions in FP32 make of values, by torch and natively, ``(functions, *values.shape)``."""
    data, width = Samples(values, "values", tuple(map(str, range(len(values))))), values.shape[1]
    skip = [f"own.{number}" for number in range(len(functions))]
    model, int8 = quantized(Each(functions, width), "native", spec=recipe((width,), quantize={"skip": skip}), data=data)
    count = width * len(functions)
    found = (
        each[:, :count].reshape(len(values), -1, width).swapaxes(0, 1) for each in (run(model, data), run(int8, data))
    )
    return *found, kernels(int8)  # type: ignore[return-value]  # two arrays and a list


@needs_kernels
def test_functions_in_fp32_are_those_of_torch() -> None:
    values = np.linspace(-3.0, 3.0, 16 * 48, dtype=np.float32).reshape(16, 48)
    exact, found, names = in_fp32(SMOOTH, values)
    assert "aten" not in names
    for name, one, other in zip(SMOOTH, exact, found, strict=True):
        assert accuracy.sqnr_db(one, other) > 110.0, name


@needs_kernels
def test_functions_with_steps_are_exact_off_their_steps() -> None:
    values = (np.arange(16 * 48, dtype=np.float32).reshape(16, 48) - 384.0) / 128.0 + np.float32(1 / 512)
    exact, found, names = in_fp32(STEPS, values)
    assert "aten" not in names
    np.testing.assert_allclose(found, exact, atol=1e-6)


@needs_kernels
def test_arcs_at_their_ends_at_infinity_and_beyond() -> None:
    ends = np.tile(np.array([[-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, 1e30, 1.5]], np.float32), (16, 1))
    data = np.random.default_rng(0).uniform(-1.0, 1.0, (16, 8)).astype(np.float32)
    arcs: dict[str, Function] = {"atan": torch.atan, "asin": torch.asin, "acos": torch.acos}
    samples = Samples(data, "values", tuple(map(str, range(16))))
    skip = [f"own.{number}" for number in range(3)]
    _, int8 = quantized(Each(arcs, 8), "native", spec=recipe((8,), quantize={"skip": skip}), data=samples)
    found = run(int8, Samples(ends, "ends", tuple(map(str, range(16)))))[0, :24].reshape(3, 8)
    with np.errstate(invalid="ignore"):
        expected = np.stack([np.arctan(ends[0]), np.arcsin(ends[0]), np.arccos(ends[0])])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert math.isnan(found[1, 7])


@needs_kernels
@pytest.mark.parametrize("name", TABLES)
def test_any_function_of_one_value_after_a_layer_is_a_table(name: str) -> None:
    db, int8, _ = lowered(Calls(TABLES[name]))
    assert db > BOUND_DB
    assert {"aten", "cpupack::float_map"}.isdisjoint(kernels(int8))


PAIRS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "atan2": torch.atan2, "hypot": torch.hypot, "fmod": torch.fmod, "remainder": torch.remainder,
    "addcdiv": lambda x, y: torch.addcdiv(x, y, 1.0 + y * y, value=0.5),
}  # fmt: skip


@needs_kernels
def test_functions_of_two_values_are_those_of_torch() -> None:
    """All pairs of values with both signs, zeros of both signs, and sizes whose squares float32 does not have."""
    ends = np.array([0.0, -0.0, 1.0, -1.0, 1e-25, -2e-25, 3e25, -2.5], np.float32)
    pairs = np.stack(np.meshgrid(ends, ends), -1).reshape(-1, 2)
    data = Samples(pairs, "pairs", tuple(map(str, range(len(pairs)))))
    skip = [f"own.{number}" for number in range(len(PAIRS))]

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([*(each(x) for each in net.own), net.layer(x)], 1)

    own = nn.ModuleList(Net(lambda _, x, of=of: of(x[:, :1], x[:, 1:])) for of in PAIRS.values())
    few = Samples(np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32), "few", tuple("a" * 16))
    spec = recipe((2,), quantize={"skip": skip})
    model, int8 = quantized(Net(forward, own=own, layer=nn.Linear(2, 4)), "native", spec=spec, data=few)
    assert "aten" not in kernels(int8)
    exact, found = run(model, few)[:, : len(PAIRS)], run(int8, few)[:, : len(PAIRS)]
    np.testing.assert_allclose(found, exact, atol=2e-6)
    exact, found = run(model, data)[:, :2], run(int8, data)[:, :2]
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


@needs_kernels
def test_a_power_of_two_values_is_that_of_torch() -> None:
    """Of zero, of negative values (odd, even and broken powers), and the power 0 of all."""
    sides = [np.array([0.0, 1.0, -1.0, 0.3, -2.5, 1e30]), np.array([0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5, -0.5])]
    pairs = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2).astype(np.float32)
    data = Samples(pairs, "pairs", tuple(map(str, range(len(pairs)))))
    few = Samples(np.random.default_rng(0).uniform(0.1, 2.0, (16, 2)).astype(np.float32), "few", tuple("a" * 16))
    net = Net(lambda net, x: torch.cat([x[:, :1] ** x[:, 1:], net.layer(x)], 1), layer=nn.Linear(2, 4))
    model, int8 = quantized(net, "native", spec=recipe((2,)), data=few)
    assert "aten" not in kernels(int8)
    np.testing.assert_allclose(run(int8, few)[:, 0], run(model, few)[:, 0], rtol=2e-6)
    np.testing.assert_allclose(run(int8, data)[:, 0], run(model, data)[:, 0], rtol=1e-5)
