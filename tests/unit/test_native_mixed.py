"""Networks of which a part has no INT8 kernel: it runs in FP32, and the rest natively."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Samples
from cpupack.graph.native_model import MixedModel, NativeModel
from cpupack.layers import describe_layers
from cpupack.quantized_engine import engine
from cpupack.runtime.engine import library
from cpupack.runtime.images.inputs import model_input
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.stages.quantize import quantize
from cpupack.stages.script import script
from helpers.lowered import BOUND_DB, Calls, Residual, needs_kernels
from helpers.tiny_models import calibrated, quantized, recipe, run, samples, target


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Normalized(nn.Module):
    """A GroupNorm in the middle of a residual block: both sides of it read what comes before."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.one(x))
        return F.relu(self.two(self.norm(y))) + y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        weights = torch.matmul(self.q(tokens) * 0.35, self.k(tokens).transpose(1, 2)).softmax(-1)
        return tokens + self.out(torch.matmul(weights, self.v(tokens)))


class Inverse(nn.Module):
    """A function for which the engine has no layer, between an INT8 layer and one in FP32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(torch.linalg.inv(0.05 * x + torch.eye(8))))


def shifted(norm: nn.Module) -> nn.Module:
    """Return a norm with other weights than ones and zeros."""
    for each in norm.parameters():
        nn.init.normal_(each, 0.5)
    return norm


MIXED: dict[str, tuple[Callable[[], nn.Module], list[str], dict[str, str]]] = {
    # a model, what skip names, and the layers in FP32 with a part of their reason
    "group norm": (lambda: Calls(Normalized()), [], {"function.norm": "no INT8 kernel for it"}),
    "group norm of many channels": (
        lambda: Calls(shifted(nn.GroupNorm(4, 24)), channels=24), [], {"function": "no INT8 kernel for it"}
    ),
    "instance norm of many channels": (
        lambda: Calls(shifted(nn.InstanceNorm2d(24, affine=True)), channels=24), [],
        {"function": "no INT8 kernel for it"},
    ),
    "instance norm without weights": (
        lambda: Calls(nn.InstanceNorm2d(24), channels=24), [], {"function": "no INT8 kernel for it"}
    ),
    "layer norm": (lambda: Calls(nn.LayerNorm([8, 8, 8])), [], {"function": "no INT8 kernel for it"}),
    "attention": (lambda: Calls(Attention()), [], {"matmul_1": "no INT8 kernel for it"}),  # one layer of three calls
    "skipped in the middle": (lambda: Calls(Residual(8)), ["function.one"], {"function.one": "listed in skip"}),
    "skipped, and what follows": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Flatten()),
        ["1"], {"1": "listed in skip"},
    ),
    "between two in FP32": (
        lambda: Calls(nn.Sequential(nn.GroupNorm(2, 8), nn.MaxPool2d(2), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1))), [],
        {
            "function.0": "no INT8 kernel for it", "function.1": "between layers in FP32",
            "function.2": "no INT8 kernel for it",
        },
    ),
    "by torch": (
        lambda: Calls(Inverse()), [],
        {"function.linalg_inv": "no kernel for it", "function.norm": "no INT8 kernel for it"},
    ),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", MIXED)
def test_what_has_no_int8_kernel_runs_in_fp32(name: str, tmp_path: Path) -> None:
    make, skip, expected = MIXED[name]
    data, spec = samples(), recipe(quantize={"mode": "static", "observer": "minmax", "skip": skip})
    model, stats = calibrated(make(), spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert isinstance(int8.module, MixedModel if name == "by torch" else NativeModel)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
    layers = describe_layers(int8, stats, skip, data)
    floats = {
        fact.name.removeprefix("function.").split(".")[-1]: fact.reason for fact in layers if fact.precision == "fp32"
    }
    assert set(floats) == {each.removeprefix("function.").split(".")[-1] for each in expected}
    for each, reason in expected.items():
        assert reason in floats[each.removeprefix("function.").split(".")[-1]]
    assert all(fact.output_sqnr_db is None or fact.output_sqnr_db > BOUND_DB for fact in layers)
    with torch.inference_mode(), engine(library.ENGINE):
        for count in (5, 1):
            x = torch.randn(count, 3, 8, 8)
            saved = script(int8, (3, 8, 8), tmp_path / "model.pt")
            assert torch.equal(torch.jit.load(str(saved.path))(x), int8.module(x))
    assert "cpupack::run_3" not in saved.operators
    assert saved.fp32_operators >= len(expected)


@needs_kernels
def test_a_network_cut_in_parts_takes_pixels() -> None:
    settings = {"mode": "RGB", "interpolation": "bilinear", "mean": [0.5, 0.4, 0.6], "std": [0.2, 0.3, 0.25]}
    spec = recipe(preprocess=settings, quantize={"observer": "minmax"})
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    data = Samples(pixels, "noise", tuple(map(str, range(12))), PreprocessSpec.from_dict(settings))
    model, stats = calibrated(Calls(Normalized()), spec, data)
    int8 = quantize(stats, model.module, spec, target("native"))
    assert int8.pixel_input
    x = torch.from_numpy(model_input(pixels, data.preprocess, pixel_input=True))
    with engine(library.ENGINE), torch.inference_mode():
        found = int8.module(x)
    assert accuracy.sqnr_db(run(model, data), found.numpy()) > BOUND_DB
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB
    layers = describe_layers(int8, stats, [], data)
    assert min(fact.output_sqnr_db for fact in layers if fact.output_sqnr_db is not None) > BOUND_DB


class Coupling(nn.Module):
    """A step of a flow (RealNVP): one half scales the other, and both leave with a sum in FP32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.scale = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.first(x).chunk(2, 1)
        y = torch.cat([one * self.scale(two).tanh().exp(), two], 1)
        return torch.cat([y, (y**2).sum(1)[:, None]], 1)


@needs_kernels
def test_one_of_several_results_does_not_leave_a_program_by_itself() -> None:
    data = samples((16,))
    model, int8 = quantized(Coupling(), "native", spec=recipe((16,)), data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


class Beside(nn.Module):
    """A function between two layers that are kept in FP32, and beside it one before a layer in INT8."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.norm, self.three = nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.two(torch.tanh(self.one(x)))
        return torch.cat([kept, self.three(torch.sigmoid(self.norm(x)))], 1)


@needs_kernels
def test_what_lies_between_layers_in_fp32_stays_so_beside_other_branches() -> None:
    """No code is between the kept layers: another order of the sums is all that differs, 2 ** -24 of each product."""
    data = samples((3, 8, 8))
    spec = recipe((3, 8, 8), quantize={"skip": ["one", "two"]})
    model, int8 = quantized(Beside(), "native", spec=spec, data=data)
    precision = {fact.name: fact.precision for fact in int8.layers}
    assert precision["tanh"] == "fp32"
    assert precision["three"].startswith("int8")
    assert accuracy.sqnr_db(run(model, data)[:, :4], run(int8, data)[:, :4]) > 110
