"""Nets for images of any size, and their programs at a size, with the statistics of another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cpupack.artifacts import CalibratedModel, FloatModel
from cpupack.errors import QuantizationError
from cpupack.graph.native_model import NativeModel
from cpupack.recipe import Recipe
from cpupack.runtime.engine.sizes import Sizes
from cpupack.runtime.open_sizes import OpenSizes, Size
from cpupack.size_terms import probes
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.choices import spans_of, without_periods, without_spans
from cpupack.stages.quantize.native.largest import Tables
from cpupack.stages.quantize.native.lowered import Lowered
from cpupack.stages.quantize.native.sizes import GrowingTablesError, sizes_of
from cpupack.stages.quantize.native.stretches import grids_of
from helpers.tiny_models import Recorder, calibrated, float_model, fuse_model, recipe, samples, target
from helpers.windowed_net import Parted, Windowed

TYPICAL = (16, 24)
STEP = 4


class UNet(nn.Module):
    """Two levels, with any way up."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.a, self.b, self.c = (nn.Conv2d(*each, 3, padding=1) for each in ((3, 8), (8, 12), (12, 16)))
        self.up = nn.ConvTranspose2d(16, 12, 2, 2) if mode == "transposed" else nn.Conv2d(16, 12, 1)
        self.d, self.out = nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        c = self.grow(self.up(F.relu(self.c(F.max_pool2d(b, 2)))), b)
        d = F.relu(self.d(torch.cat([b, c], 1)))
        result: torch.Tensor = self.out(torch.cat([a, F.interpolate(d, size=a.shape[2:])], 1))
        return result

    def grow(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if self.mode == "transposed":
            return x
        corners = {"bilinear": False, "corners": True}.get(self.mode)
        mode = "bilinear" if corners is not None else self.mode
        return F.interpolate(x, size=like.shape[2:], mode=mode, align_corners=corners)


class Shuffled(nn.Module):
    """A net of super-resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 5, padding=2), nn.Conv2d(16, 27, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.two(F.relu(self.one(x))), 3)


class Squeezed(nn.Module):
    """Depthwise layers, squeeze-and-excitation, a pyramid of averages, and scores: the result has one size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 5, 2, 2, groups=16)
        self.gate, self.last = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.stem(x))
        x = F.relu(self.deep(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = x + F.interpolate(F.adaptive_avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear")
        result: torch.Tensor = self.last(x.mean((2, 3)))
        return result


class Ordered(nn.Module):
    """The largest values of each map, over all pixels: more than a row of float32 values usually has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(F.relu(self.one(x))).flatten(2).topk(5, 2)[0]


class Normalized(nn.Module):
    """A norm of groups in FP32, whose places are counted at each size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.two(F.relu(self.norm(self.one(x))))
        return result


class Anchored(nn.Module):
    """A detector with two anchors at each place of a grid, in rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 2 * 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(F.relu(self.stem(x)))
        y, (rows, columns) = y.permute(0, 2, 3, 1).reshape(len(x), -1, 6), y.shape[2:]
        down, across = torch.meshgrid(torch.arange(rows) * 4.0, torch.arange(columns) * 4.0, indexing="ij")
        half = torch.tensor([3.0, 7.5])
        places = torch.stack([each[..., None].expand(-1, -1, 2) for each in (across, down)], -1)
        sizes = torch.stack([half, half * 2], -1).expand(rows, columns, 2, 2)
        centre = y[..., :2] * sizes.reshape(-1, 2) + places.reshape(-1, 2)
        return torch.cat([centre, y[..., 2:4].exp() * sizes.reshape(-1, 2), y[..., 4:]], -1)


class Levels(nn.Module):
    """A detector with two levels, whose boxes are columns, as of YOLOv8."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Conv2d(16, 6, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = F.relu(self.one(x))
        maps = [head(each) for head, each in zip(self.heads, (near, F.relu(self.two(near))), strict=True)]
        places, strides = [], []
        for each, stride in zip(maps, (1.0, 2.0), strict=True):
            rows, columns = each.shape[2:]
            down, across = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
            places.append(torch.stack((across, down)).flatten(1))
            strides.append(torch.full((1, rows * columns), stride))
        at, far = torch.cat(places, 1), torch.cat(strides, 1)
        boxes, scores = torch.cat([each.flatten(2) for each in maps], 2).split((4, 2), 1)
        first, last = boxes.exp().chunk(2, 1)
        return torch.cat([(at - first) * far, (at + last) * far, scores.sigmoid()], 1)


class Positions(nn.Module):
    """One head of attention, all positions to all, as of non-local nets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 4, 1)
        self.all = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        one, two, three = (each(x).flatten(2).transpose(1, 2) for each in self.all)
        seen = torch.softmax(one @ two.transpose(1, 2) / 4, -1) @ three
        result: torch.Tensor = self.out(x + seen.transpose(1, 2).reshape(x.shape))
        return result


class Channels(nn.Module):
    """Attention of channels to each other, whose length is the number of pixels: of few alone it is one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.all, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 48, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        queries, keys, values = (each.reshape(len(x), 2, 8, -1) for each in self.all(x).chunk(3, 1))
        queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        seen = (queries @ keys.transpose(-2, -1)).softmax(-1) @ values
        result: torch.Tensor = self.out(x + seen.reshape(x.shape))
        return result


class Sides(nn.Module):
    """Averages of rows and of columns in one list, as of coordinate attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both, self.out = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 4, 1)
        self.rows, self.columns = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        height, width = x.shape[2:]
        both = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
        rows, columns = F.hardswish(self.both(both)).split([height, width], 2)
        rows, columns = self.rows(rows).sigmoid(), self.columns(columns.permute(0, 1, 3, 2)).sigmoid()
        result: torch.Tensor = self.out(x * rows * columns)
        return result


class Columns(nn.Module):
    """A recurrent layer over the columns of an image of text."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(24, 6)
        self.reads = nn.GRU(16, 12, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.reads(F.relu(self.stem(x)).mean(2).transpose(1, 2))[0])
        return result


class Moments(nn.Module):
    """Deviations and products of maps, divided by the number of pixels or by one less."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(80, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.stem(x)).flatten(2)
        products = y @ y.transpose(1, 2) / y.shape[-1]
        result: torch.Tensor = self.last(torch.cat([products.flatten(1), y.std(2), y.mean(2)], 1))
        return result


class Placed(nn.Module):
    """Waves over a map beside its channels, as a factor and as a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(10, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.one(x))
        down, across = torch.sin(torch.arange(x.shape[2]) * 0.3), torch.cos(torch.arange(x.shape[3]) * 0.2)
        rows, columns = (each.expand(len(x), 1, -1, -1) for each in torch.meshgrid(down, across, indexing="ij"))
        x = F.relu(self.two(torch.cat([x, rows, columns], 1)))
        x = x * (1 + across) + torch.arange(x.shape[2])[:, None] % 2
        result: torch.Tensor = self.out(x)
        return result


class Spread(nn.Module):
    """Coordinates from -1 to 1 and middles of pixels from 0 to 1, beside the channels and as a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(10, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.one(x))
        down, across = torch.linspace(-1, 1, x.shape[2]), torch.linspace(-1, 1, x.shape[3])
        rows, columns = (each.expand(len(x), 1, -1, -1) for each in torch.meshgrid(down, across, indexing="ij"))
        x = F.relu(self.two(torch.cat([x, rows, columns], 1)))
        x = x + (torch.arange(x.shape[3]) + 0.5) / x.shape[3] - (torch.arange(x.shape[2]) / x.shape[2])[:, None]
        result: torch.Tensor = self.out(x)
        return result


class Patches(nn.Module):
    """Attention of patches whose learned positions are resized to the image, behind a token of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 4, 1)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 10, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        batch, channels, height, width = x.shape
        grid = self.positions[:, 1:].transpose(1, 2).reshape(1, channels, 3, 3)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic").flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(batch, -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = self.layer(x + torch.cat([self.positions[:, :1], grid], 1))
        result: torch.Tensor = self.out(x[:, 1:].transpose(1, 2).reshape(batch, channels, height, width))
        return result


class Bordered(nn.Module):
    """Borders of one side: the list of moves has some at its ends that do not repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.two(F.pad(F.relu(self.one(x)), (0, 2, 3, 0), value=1.0)))
        result: torch.Tensor = self.out(F.pad(x, (-1, 2, 1, -1)))
        return result


NETS: dict[str, Callable[[], nn.Module]] = {
    **{mode: partial(UNet, mode) for mode in ("transposed", "nearest", "nearest-exact", "bilinear", "corners")},
    "shuffled": Shuffled,
    "squeezed": Squeezed,
    "normalized": Normalized,
    "ordered": Ordered,
    "anchored": Anchored,
    "levels": Levels,
    "positions": Positions,
    "channels": Channels,
    "sides": Sides,
    "columns": Columns,
    "moments": Moments,
    "placed": Placed,
    "spread": Spread,
    "patches": Patches,
    "bordered": Bordered,
    "windowed": Windowed,
    "parted": Parted,
}
MULTIPLES = {
    "shuffled": 1,
    "squeezed": 8,
    "normalized": 1,
    "ordered": 1,
    "anchored": 1,
    "levels": 2,
    "positions": 4,
    "channels": 1,
    "sides": 2,
    "columns": 2,
    "moments": 2,
    "placed": 2,
    "spread": 2,
    "bordered": 2,
    "windowed": 2,
    "parted": 2,
}
"""What the sides of an image must be a multiple of, where that is not ``STEP``: two strides, or two and two places."""
OTHERS = {"channels", "sides", "columns"}
"""Nets whose program for a size alone has other lists of moves, or memory of another shape: the answers are equal."""
MOST = {"channels": (32, 48)}
"""The largest images, where they are not 64 x 96: attention over more pixels is several layers for these alone."""


@dataclasses.dataclass(frozen=True)
class Open:
    """A net with statistics of one size."""

    model: FloatModel
    stats: CalibratedModel
    spec: Recipe
    sizes: OpenSizes
    cuts: Tables = dataclasses.field(default_factory=Tables)
    spans: Mapping[Any, float] = dataclasses.field(default_factory=dict)

    def at(self, size: Size) -> NativeModel:
        """Return the net lowered for a size."""
        spec = recipe((3, *size), quantize={"observer": "minmax"})
        model = float_model(self.model.module, (3, *size))
        fused = fuse_model(model, spec, Recorder(), samples((3, *size), 2))
        stats = dataclasses.replace(self.stats, fused=fused, choices={**self.choices, **self.spans})
        module = quantize(stats, model.module, spec, target("native")).module
        assert isinstance(module, NativeModel)
        return module

    @cached_property
    def choices(self) -> Mapping[Any, float]:
        """How layers are lowered at the typical size, where that depends on it, but for ranges of constants."""
        module = quantize(self.stats, self.model.module, self.spec, target("native")).module
        assert isinstance(module, NativeModel)
        return without_periods(without_spans(module.choices))

    def lowered(self, size: Size) -> Lowered:
        return lowered_at(self.at(size), size, self.sizes)

    def with_largest(self) -> Open:
        """Return this with the ranges and the tables of the largest size."""
        largest = self.at(self.sizes.most)
        tables = Tables(lowered_at(largest, self.sizes.most, self.sizes), self.sizes, self.cuts.grids)
        return dataclasses.replace(self, cuts=tables, spans=spans_of(largest.choices))

    def known(self) -> Sizes:
        """Return how the program changes with the size."""
        return sizes_of([self.lowered(each) for each in probes(TYPICAL, self.sizes)], self.sizes, self.cuts)

    def stored(self) -> bytes:
        """Return the program that is stored: that of the typical size, and the tables of the largest one."""
        return self.cuts.after(self.lowered(TYPICAL).program)


@cache
def opened(name: str) -> tuple[Open, Sizes]:
    """Return a net and how its program changes with the size."""
    torch.manual_seed(0)
    step = MULTIPLES.get(name, STEP)
    sizes = OpenSizes((2 * step + -2 * step % 8,) * 2, MOST.get(name, (64, 96)), (step, step))
    spec = recipe((3, *TYPICAL), quantize={"observer": "minmax"})
    model, stats = calibrated(NETS[name](), spec, samples((3, *TYPICAL)))
    net = Open(model, stats, spec, sizes)
    net = dataclasses.replace(net, cuts=Tables(grids=grids_of(model.module.parameters())))
    try:
        return net, net.known()
    except QuantizationError as refusal:
        if not isinstance(refusal, GrowingTablesError) and not spans_of(net.at(TYPICAL).choices):
            raise
    net = net.with_largest()
    return net, net.known()


def lowered_at(module: NativeModel, size: Size, sizes: OpenSizes) -> Lowered:
    """Return what was lowered for a size, as the build takes it."""
    counts = tuple(side // step for side, step in zip(size, sizes.multiple, strict=True))
    return Lowered(counts, module.get_buffer("program").numpy().tobytes(), module.result_shape)
