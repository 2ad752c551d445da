"""Tiny models and recipes, and the way from one to the other's INT8 form, that the tests of the torch stages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpupack.artifacts import CalibratedModel, FloatModel, FusedModel, QuantizedModel, Samples
from cpupack.progress import Progress, SilentProgress
from cpupack.quantized_engine import engine
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.host.cpu import detect_isa
from cpupack.runtime.signature import Signature
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse, list_chains
from cpupack.stages.quantize import quantize
from cpupack.targets import Target, x86

ENGINES = ("fbgemm", "x86", "onednn", "qnnpack")
SHAPE = (3, 8, 8)
HOST_ISA = x86.floor(detect_isa() or "avx2")

torch.set_num_threads(1)  # on tensors this small threads only wait for each other


class Recorder(SilentProgress):
    """Keeps what a stage says, and its steps: how many are done, of how many."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, done: int, total: int, what: str = "") -> None:
        self.steps.append((done, total))


def recipe(shape: tuple[int, ...] = SHAPE, **tables: dict[str, Any]) -> Recipe:
    """Return a recipe of a random model; ``tables`` are merged over it (``model={"labels": ...}``)."""
    base: dict[str, Any] = {
        "schema": 1,
        "package": {"name": "tiny"},
        "model": {"source": "python:m.py:make", "weights": "random", "input_shape": list(shape)},
    }
    for name, table in tables.items():
        base[name] = {**base.get(name, {}), **table}
    return Recipe.model_validate(base)


def loaded(directory: Path, **tables: dict[str, Any]) -> LoadedRecipe:
    return LoadedRecipe(recipe=recipe(SHAPE, **tables), path=directory / "recipe.toml", text="")


def float_model(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> FloatModel:
    """Return ``module`` in eval mode as the load stage would; its BatchNorms get statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                if child.running_mean is not None and child.running_var is not None:
                    child.running_mean.normal_(generator=generator).mul_(0.1)
                    child.running_var.uniform_(0.5, 1.5, generator=generator)
                if child.affine:
                    child.weight.uniform_(0.5, 1.5, generator=generator)
                    child.bias.normal_(generator=generator).mul_(0.1)
    module.eval().requires_grad_(requires_grad=False)
    with torch.inference_mode():
        output = module(torch.zeros(1, *shape))
    return FloatModel(module, Signature.plain(shape, output.shape[1:]), "test", True, None, 0, 0, 0)


def samples(shape: tuple[int, ...] = SHAPE, count: int = 16, seed: int = 0) -> Samples:
    data = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    return Samples(data, "noise", tuple(f"noise[{number}]" for number in range(count)))


def host_bits(engine_name: str) -> int:
    """Return the bits of activations with which an engine is right on this host whatever the weights.

    Without VNNI torch's engines for x86-64 add two products in 16 bits, and 8 bits saturate.
    """
    return 8 if engine_name not in {"fbgemm", "x86", "onednn"} or x86.has_vnni(HOST_ISA) else 7


EIGHT_BITS = "onednn" if host_bits("onednn") == 8 else "qnnpack"
"""An engine that this host computes right in with 8 bits, for what there is with 8 bits alone (pixels)."""


def target(engine_name: str = "onednn", bits: int | None = None, isa: str = "avx512_vnni") -> Target:
    """Return a target of an engine, with the bits that this host computes right in if ``bits`` says no others.

    ``isa`` is what a wheel promises: with VNNI models have the same parts on every host, so tests are of the same.
    """
    cpu = "aarch64" if engine_name == "qnnpack" else "x86_64"
    isa_of_cpu = "neon" if cpu == "aarch64" else isa
    return Target(cpu, engine_name, isa_of_cpu, bits or host_bits(engine_name), engine_name == "onednn", "any")


def fuse_model(model: FloatModel, spec: Recipe, progress: Progress, data: Samples | None = None) -> FusedModel:
    """Capture and fuse a model."""
    return fuse(capture(model, data or samples(model.input_shape), spec, SilentProgress()), spec, progress)


def chains_of(model: FloatModel) -> tuple[tuple[str, ...], ...]:
    """Return the chains that ``auto`` fuses."""
    spec = recipe(model.input_shape)
    return list_chains(capture(model, samples(model.input_shape), spec, SilentProgress()))


def calibrated(module: nn.Module, spec: Recipe, data: Samples | None = None) -> tuple[FloatModel, CalibratedModel]:
    shape = spec.engine_input_shape
    model = float_model(module, shape)
    data = data or samples(shape)
    fused = fuse_model(model, spec, SilentProgress(), data)
    return model, calibrate(fused, data, 4, SilentProgress())


def quantized(
    module: nn.Module,
    engine_name: str = "onednn",
    bits: int | None = None,
    spec: Recipe | None = None,
    data: Samples | None = None,
) -> tuple[FloatModel, QuantizedModel]:
    """Fuse, calibrate and quantize ``module``; return its FP32 and its INT8 form."""
    spec = spec or recipe()
    model, stats = calibrated(module, spec, data)
    return model, quantize(stats, model.module, spec, target(engine_name, bits))


def run(model: FloatModel | QuantizedModel, data: Samples) -> np.ndarray:
    with torch.inference_mode(), engine(model.target.engine if isinstance(model, QuantizedModel) else "fbgemm"):
        output: np.ndarray = model.module(data.tensor(slice(None)).contiguous(memory_format=layout(data))).numpy()
    return output


def layout(data: Samples) -> torch.memory_format:
    return torch.channels_last if data.data.ndim == 4 else torch.contiguous_format
