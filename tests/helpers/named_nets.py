"""Nets for sequences of any length, and their programs at a length, with the statistics of another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.artifacts import CalibratedModel, FloatModel
from cpupack.graph.native_model import NativeModel
from cpupack.progress import SilentProgress
from cpupack.runtime.engine.sizes import Sizes
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.size_terms import probes
from cpupack.stages.calibrate import calibrate
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.largest import Tables
from cpupack.stages.quantize.native.lowered import Lowered
from cpupack.stages.quantize.native.sizes import GrowingTablesError, sizes_of, tables_of
from helpers.tiny_models import Recorder, float_model, fuse_model, recipe, samples, target

TYPICAL = 16
"""Multiples of a net's step."""


class Pooled(nn.Module):
    """Two strides, an average over all positions, and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv1d(8, 16, 5, 2, 2), nn.Conv1d(16, 16, 5, 2, 2), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(F.relu(self.two(F.relu(self.one(x)))).mean(2))
        return result


class Levels(nn.Module):
    """A U-Net over time."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 16, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose1d(16, 8, 2, 2), nn.Conv1d(16, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = F.relu(self.one(x))
        result: torch.Tensor = self.out(torch.cat([near, self.up(F.relu(self.two(near)))], 1))
        return result


class Tagger(nn.Module):
    """A recurrent layer in both directions, and scores of each position."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last = nn.LSTM(8, 12, batch_first=True, bidirectional=True), nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.cells(x)[0])
        return result


class Attended(nn.Module):
    """Attention of all positions to all, whose work grows with the square of the length."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.encoder(self.first(x)).mean(1))
        return result


class Positioned(nn.Module):
    """A table of positions, cut to the length, as of transformers over frames; and one that is picked from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("waves", torch.sin(torch.arange(60.0)[:, None] / torch.arange(1.0, 17.0)))
        self.learned = nn.Parameter(torch.cat([torch.randn(20, 16), torch.zeros(40, 16)]))  # never trained beyond 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x) + self.get_buffer("waves")[: x.shape[1]])
        x = x + self.learned[torch.arange(x.shape[1])]
        result: torch.Tensor = self.last(x.softmax(2).mean(1))
        return result


class Masked(nn.Module):
    """Attention to the positions before, with a weight for each distance, and a mean that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv, self.last = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 4)
        self.distances = nn.Embedding(9, 1)
        self.register_buffer("seen", torch.tril(torch.ones(400, 400)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, place = torch.relu(self.first(x)), torch.arange(x.shape[1])
        q, k, v = self.qkv(x).chunk(3, -1)
        apart = (place - place[:, None]).clamp(-4, 4) + 4
        scores = q @ k.transpose(1, 2) / 4 + self.distances(apart)[..., 0]
        scores = scores.masked_fill(self.get_buffer("seen")[: x.shape[1], : x.shape[1]] == 0, float("-inf"))
        x = x + scores.softmax(-1) @ v
        x = x + torch.softmax(torch.triu(torch.full((x.shape[1], x.shape[1]), -1e9), 1), -1) @ x
        result: torch.Tensor = self.last(x)
        return result


class Neighbours(nn.Module):
    """Means of five positions each, with borders, and the differences from one to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        near = F.pad(x, (0, 0, 2, 2)).unfold(1, 5, 1).mean(-1)
        result: torch.Tensor = self.last(near.softmax(2) + torch.cat([x[:, :1], x[:, 1:] - x[:, :-1]], 1))
        return result


class Ramps(nn.Module):
    """Factors and terms that go from 0 to 1 over the positions, and means of all positions so far."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[1]
        x = torch.relu(self.first(x)) * (1 + torch.linspace(0, 1, count)[:, None])
        x = x + (torch.arange(count) / count)[:, None]
        result: torch.Tensor = self.last(torch.cumsum(x, 1) / torch.arange(1, count + 1)[:, None])
        return result


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], int]] = {
    "pooled": (Pooled, (8, 0), 4),
    "levels": (Levels, (8, 0), 2),
    "tagger": (Tagger, (0, 8), 1),
    "attended": (Attended, (0, 8), 1),
    "positioned": (Positioned, (0, 8), 1),
    "masked": (Masked, (0, 8), 1),
    "neighbours": (Neighbours, (0, 8), 1),
    "ramps": (Ramps, (0, 8), 1),
}
"""Each with the shape of a sample, 0 for the length, and the step of its lengths."""


@dataclasses.dataclass(frozen=True)
class Open:
    """A net with statistics of one length."""

    model: FloatModel
    stats: CalibratedModel
    sizes: OpenSizes
    tables: Mapping[int, npt.NDArray[np.float32]] | None = None
    cuts: Tables = dataclasses.field(default_factory=Tables)

    def at(self, length: int) -> NativeModel:
        """Return the net lowered for a length."""
        shape = self.sizes.shape_at(self.sizes.shape, (1, length))
        spec = recipe(shape, quantize={"observer": "minmax"})
        model = dataclasses.replace(float_model(self.model.module, shape), sizes=self.sizes)
        fused = fuse_model(model, spec, Recorder(), samples(shape, 2))
        stats = dataclasses.replace(self.stats, fused=fused, tables=self.tables)
        module = quantize(stats, model.module, spec, target("native")).module
        assert isinstance(module, NativeModel)
        return module

    def lowered(self, length: int) -> Lowered:
        module = self.at(length)
        program = module.get_buffer("program").numpy().tobytes()
        return Lowered((1, length // self.sizes.multiple[1]), program, module.result_shape)

    def stored(self) -> bytes:
        """Return the program that is stored: that of the typical length, and the tables of the greatest one."""
        return self.cuts.after(self.lowered(self.sizes.size_of(self.sizes.shape)[1]).program)


@cache
def opened(name: str) -> tuple[Open, Sizes]:
    """Return a net and how its program changes with the length."""
    torch.manual_seed(0)
    make, shape, step = NETS[name]
    axis = shape.index(0)
    typical = tuple(each or TYPICAL * step for each in shape)
    sizes = OpenSizes((1, 8 * step), (1, 48 * step), (1, step), names=("time",), axes=(axis,), shape=typical)
    model = dataclasses.replace(float_model(make().eval(), typical), sizes=sizes)
    data, spec = samples(typical), recipe(typical, quantize={"observer": "minmax"})
    stats = calibrate(fuse_model(model, spec, SilentProgress(), data), data, 4, SilentProgress())
    net = Open(model, stats, sizes)
    asked = probes((1, typical[axis]), sizes)
    try:
        return net, sizes_of([net.lowered(length) for _, length in asked[:-1]], sizes)
    except GrowingTablesError as growing:
        largest = net.lowered(sizes.most[1])
        net = dataclasses.replace(net, tables=tables_of(largest, growing.layers), cuts=Tables(largest, sizes))
    return net, sizes_of([net.lowered(length) for _, length in asked[:-1]], sizes, net.cuts)
