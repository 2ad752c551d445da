"""Models of several inputs with named dimensions, and their programs at a size, with the statistics of another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cpupack.artifacts import CalibratedModel, FloatModel, Samples
from cpupack.graph.native_model import NativeModel
from cpupack.model.named_inputs import inputs_at
from cpupack.model.one_row import OneRow
from cpupack.pipeline.sized_samples import resized_rows
from cpupack.progress import SilentProgress
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.recipe.file import parse_recipe
from cpupack.runtime.engine.sizes import Sizes
from cpupack.runtime.open_sizes import OpenSizes, Size
from cpupack.size_terms import probes
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.lowered import Lowered
from cpupack.stages.quantize.native.sizes import sizes_of
from helpers.open_nets import lowered_at
from helpers.tiny_models import target

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.last = nn.Conv1d(4, 8, 5, padding=2), nn.Linear(8, 3)

    def forward(self, values, mask):
        x = F.relu(self.one(values)) * mask[:, None]
        return self.last(x.sum(2) / mask.sum(1, keepdim=True).clamp(min=1))


class Painter(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.down = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image, mask):
        x = F.relu(self.one(torch.cat([image * (1 - mask), mask], 1)))
        return self.last(torch.cat([x, F.relu(self.up(F.relu(self.down(x))))], 1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, left, right):
        maps = [F.relu(self.two(F.relu(self.one(each)))) for each in (left, right)]
        a, b = (each.mean((2, 3)) for each in maps)
        return {"distance": (a - b).square().sum(1, keepdim=True), "map": maps[0]}


class Crossed(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.last = (nn.Linear(*each) for each in ((4, 16), (6, 16), (6, 16), (16, 3)))

    def forward(self, query, memory):
        q, k, v = (each[:, None] for each in (self.q(query), self.k(memory), self.v(memory)))
        return self.last(F.scaled_dot_product_attention(q, k, v)[:, 0])
"""
IMAGE = "[input.preprocess]\nmean = [0.5]\nstd = [0.25]"
INPUTS = {
    "Masked": ('name = "values"\nshape = [4, "time"]', 'name = "mask"\nshape = ["time"]'),
    "Painter": (
        f'name = "image"\nshape = [3, "height", "width"]\n{IMAGE}', 'name = "mask"\nshape = [1, "height", "width"]',
    ),
    "Pair": (f'name = "left"\nshape = [3, "h1", "w1"]\n{IMAGE}', f'name = "right"\nshape = [3, "h2", "w2"]\n{IMAGE}'),
    "Crossed": ('name = "query"\nshape = ["q", 4]', 'name = "memory"\nshape = ["m", 6]'),
}  # fmt: skip
SIZES = {
    "Masked": "min = { time = 8 }\ntypical = { time = 24 }\nmax = { time = 512 }",
    "Painter": "min = [8, 8]\ntypical = [16, 24]\nmax = [96, 128]",
    "Pair": "\n".join(
        f"{key} = {{ h1 = {side}, w1 = {side}, h2 = {side}, w2 = {side} }}"
        for key, side in (("min", 8), ("typical", 24), ("max", 128))
    ),
    "Crossed": "min = { q = 8, m = 8 }\ntypical = { q = 16, m = 24 }\nmax = { q = 96, m = 128 }",
}


def recipe_text(name: str, sizes: str | None = None, inputs: tuple[str, ...] | None = None) -> str:
    """Return the recipe of a model of ``MODEL``, which is in the file ``nets.py``."""
    tables = "".join(f"[[input]]\n{each}\n" for each in inputs or INPUTS[name])
    sizes = SIZES[name] if sizes is None else sizes
    return (
        f'schema = 1\n[package]\nname = "tiny-int8"\n[model]\nsource = "python:nets.py:{name}"\nweights = "factory"\n'
        f'{tables}[sizes]\n{sizes}\n[calibration]\nsource = "synthetic"\nsamples = 8\n'
    )


@dataclasses.dataclass(frozen=True)
class Open:
    """A model with statistics of the typical size."""

    recipe: Recipe
    model: FloatModel
    stats: CalibratedModel
    samples: Samples

    @property
    def sizes(self) -> OpenSizes:
        assert self.model.sizes is not None
        return self.model.sizes

    @property
    def typical(self) -> Size:
        return self.sizes.typical(self.model.input_shape)

    def batch(self, size: Size) -> np.ndarray:
        """Return some rows of a size."""
        before = self.model.signature.inputs
        return resized_rows(self.samples.data[:3], before, inputs_at(before, self.sides(size)))

    def sides(self, size: Size) -> dict[str, int]:
        return dict(zip(self.sizes.names, size[-len(self.sizes.names) :], strict=True))

    def at(self, size: Size) -> NativeModel:
        """Return the model lowered for a size."""
        own = self.recipe.at_size(*size)
        inputs = inputs_at(self.model.signature.inputs, self.sides(size))
        assert isinstance(self.model.module, OneRow)
        signature = dataclasses.replace(self.model.signature, inputs=inputs)
        model = dataclasses.replace(
            self.model, signature=signature, module=self.model.module.with_inputs(inputs).eval()
        )
        some = dataclasses.replace(self.samples.take(np.arange(3)), data=self.batch(size))
        fused = fuse(capture(model, some, own, SilentProgress()), own, SilentProgress())
        module = quantize(dataclasses.replace(self.stats, fused=fused), model.module, own, target("native")).module
        assert isinstance(module, NativeModel)
        return module

    def lowered(self, size: Size) -> Lowered:
        return lowered_at(self.at(size), size, self.sizes)


def opened(name: str, directory: Path) -> tuple[Open, Sizes]:
    """Return a model and how its program changes with the size."""
    from cpupack.pipeline.data import calibration_samples

    (directory / "nets.py").write_text("import torch\ntorch.manual_seed(0)\n" + MODEL)
    recipe, problems, text = parse_recipe(recipe_text(name), "r.toml", directory)
    assert recipe is not None, problems
    loaded = LoadedRecipe(recipe=recipe, path=directory / "r.toml", text=text)
    model = load(loaded, SilentProgress())
    samples = calibration_samples(loaded, model, SilentProgress())
    assert samples is not None
    fused = fuse(capture(model, samples, recipe, SilentProgress()), recipe, SilentProgress())
    net = Open(recipe, model, calibrate(fused, samples, 4, SilentProgress()), samples)
    return net, sizes_of([net.lowered(size) for size in probes(net.typical, net.sizes)[:-1]], net.sizes)
