"""Programs for the INT8 engine: buffers and layers as bytes, laid out as ``kernels/engine/program.h`` reads them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cpupack.runtime.engine import memory_plan
from cpupack.runtime.engine.program_format import BUFFER as BUFFER
from cpupack.runtime.engine.program_format import HEADER, MAGIC, VERSION
from cpupack.runtime.engine.program_format import LAYER as LAYER
from cpupack.runtime.engine.program_format import Op as Op

_ALIGNMENT = 64
Doubles = npt.NDArray[np.float64]


class Flag(IntFlag):
    """Variants of an operation (``enum cpupack_flag``)."""

    FLOAT_OUT = 1
    TABLE = 2
    RESIDUAL = 4
    ONLY_PIXELS = 8
    ONLY_FLOAT = 16
    INCLUDE_PAD = 32
    WINOGRAD = 64
    CONSTANT = 128
    SLOPES = 256
    ROWS = 512
    PLACES = 1024
    WORDS = 2048


NO_FLAGS = Flag(0)


class Size(NamedTuple):
    """What a sample of a buffer has. A video, or a scan, has several images, its frames."""

    height: int
    width: int
    channels: int
    frames: int = 1


@dataclass
class Buffer:
    """One activation: uint8 codes ``(frames, height, width, channels)``, value = (code - zero_point) * scale.

    With ``floats`` its bytes are float32 values (``channels`` is four times theirs), without scale and zero point.
    Windows read up to ``halo`` rows and columns beyond the edges, and ``halo_z`` frames before the first one and after
    the last one. They contain ``fill`` (None until it is needed).
    With ``parts`` its channels have no scale in common: it has the scale and zero point of each slice of channels, by
    the first one.
    """

    height: int
    width: int
    channels: int
    scale: float
    zero_point: int
    halo: tuple[int, int] = (0, 0)
    fill: int | None = None
    floats: bool = False
    parts: dict[int, tuple[float, int]] | None = None
    frames: int = 1
    halo_z: int = 0

    @property
    def layout(self) -> Size:
        """What a sample has."""
        return Size(self.height, self.width, self.channels, self.frames)

    @property
    def positions(self) -> int:
        """Pixels of a sample."""
        return self.frames * self.height * self.width

    def part(self, first: int) -> Buffer:
        """Return this buffer with the scale and zero point of the slice that begins at channel ``first``."""
        if self.parts is None:
            return self
        scale, zero_point = self.parts[first]
        return replace(self, scale=scale, zero_point=zero_point, parts=None)

    def grid(self, channels: int) -> tuple[float | Doubles, int | Doubles]:
        """Return scale and zero point, of each of the first ``channels`` where they differ, float64 ``(channels,)``."""
        if self.parts is None:
            return self.scale, self.zero_point
        begins = sorted(self.parts)
        slices = [int(np.searchsorted(begins, channel, side="right")) - 1 for channel in range(channels)]
        scales, zero_points = np.array([self.parts[begins[each]] for each in slices]).T
        return scales, zero_points

    @property
    def size(self) -> int:
        """Values of one sample."""
        return self.positions * self.channels

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample with its border."""
        image = (self.height + 2 * self.halo[0]) * (self.width + 2 * self.halo[1]) * self.channels
        return (self.frames + 2 * self.halo_z) * image


@dataclass
class Layer:
    """One call. ``fields`` are the members of ``struct cpupack_layer`` that are not zero (kernel and stride: one)."""

    op: Op
    flags: Flag = NO_FLAGS
    input: int = -1
    input2: int = -1
    output: int = -1
    fields: dict[str, float] = field(default_factory=dict)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def reads(self) -> list[int]:
        return [each for each in (self.input, self.input2) if each >= 0]


def window_fields(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> dict[str, float]:
    """Return the fields of a layer with windows; each setting is for frames, rows and columns."""
    settings = {"kernel": kernel, "stride": stride, "pad": padding, "dilation": dilation}
    return {f"{name}_{axis}": each for name, own in settings.items() for axis, each in zip("dhw", own, strict=True)}


@dataclass
class Program:
    """Layers in order, with their buffers. ``outputs`` is the number of float32 results for each sample.

    ``filler`` are the four bytes that lie between constants: where a longer one has values, a shorter one may have it.
    """

    input_height: int
    input_width: int
    input_channels_float: int
    input_channels_pixels: int = 0
    outputs: int = 0
    filler: bytes = bytes(4)
    buffers: list[Buffer] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def add_buffer(self, buffer: Buffer) -> int:
        """Add a buffer and return its number."""
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def operators(self) -> dict[str, int]:
        """Return how many layers of each kind one call runs."""
        other = Flag.ONLY_FLOAT if self.input_channels_pixels else Flag.ONLY_PIXELS
        kinds = (each.op for each in self.layers if other not in each.flags)
        return dict(sorted(Counter(f"cpupack::{kind.name.lower()}" for kind in kinds).items()))

    def to_bytes(self) -> bytes:
        """Return the program as the engine reads it."""
        alone = layers_alone(self.buffers, self.layers)
        offsets, arena_bytes = plan_memory(self.buffers, self.layers, alone)
        buffers = np.zeros(len(self.buffers), BUFFER)
        for row, each, offset in zip(buffers, self.buffers, offsets, strict=True):
            row["height"], row["width"], row["channels"] = each.height, each.width, each.channels
            row["halo_y"], row["halo_x"] = each.halo
            row["frames"], row["halo_z"] = each.frames, each.halo_z
            row["fill"] = each.fill or 0
            row["offset"], row["sample_bytes"] = offset, each.sample_bytes
        constants = bytearray()
        of_recurrences: dict[bytes, int] = {}
        layers = np.zeros(len(self.layers), LAYER)
        for row, layer in zip(layers, self.layers, strict=True):
            for name in ("kernel", "stride", "dilation"):
                row[f"{name}_d"] = row[f"{name}_h"] = row[f"{name}_w"] = 1
            row["high"] = 255
            row["op"], row["flags"] = layer.op, layer.flags
            row["input"], row["input2"], row["output"] = layer.input, layer.input2, layer.output
            for name, value in layer.fields.items():
                row[name] = value
            for name, array in layer.constants.items():
                values = np.ascontiguousarray(array).tobytes()
                # Each step of a loop over a cell is a layer, with the same weights.
                if layer.op is Op.RECURRENT and values in of_recurrences:
                    row[name] = of_recurrences[values]
                    continue
                constants += bytes(-len(constants) % len(self.filler))
                constants += self.filler * (-len(constants) % _ALIGNMENT // len(self.filler))
                row[name] = len(constants)
                if layer.op is Op.RECURRENT:
                    of_recurrences[values] = len(constants)
                constants += values
        header = np.zeros(1, HEADER)
        before = HEADER.itemsize + buffers.nbytes + layers.nbytes
        header["magic"], header["version"] = MAGIC, VERSION
        header["buffers"], header["layers"] = len(buffers), len(layers)
        header["input_height"], header["input_width"] = self.input_height, self.input_width
        header["input_channels_float"] = self.input_channels_float
        header["input_channels_pixels"] = self.input_channels_pixels
        header["outputs"], header["alone"], header["arena_bytes"] = self.outputs, alone, arena_bytes
        header["constants"] = before + -before % _ALIGNMENT
        digest = hashlib.sha256(buffers.tobytes() + layers.tobytes() + bytes(constants)).digest()
        header["identity"] = np.frombuffer(digest[:8], "<i4")
        text = header.tobytes() + buffers.tobytes() + layers.tobytes()
        return text + bytes(-len(text) % _ALIGNMENT) + bytes(constants)


def layers_alone(buffers: list[Buffer], layers: list[Layer]) -> int:
    """Return how many of the first layers to run sample by sample (``runtime/engine/memory_plan.py``)."""
    return memory_plan.layers_alone([weighed(buffers, each) for each in layers])


def weighed(buffers: list[Buffer], layer: Layer) -> memory_plan.Weighed:
    """Return what the order of layers and samples depends on."""
    if layer.op is not Op.CONV:
        return memory_plan.Weighed(recurrent=layer.op is Op.RECURRENT)
    out = buffers[layer.output] if layer.output >= 0 else None
    through = buffers[layer.input].sample_bytes + (out.sample_bytes if out is not None else 0)
    return memory_plan.Weighed(
        layer.constants["weights"].nbytes, through, one_position=out is not None and out.positions == 1
    )


def plan_memory(buffers: list[Buffer], layers: list[Layer], alone: int) -> tuple[list[int], int]:
    """Return each buffer's offset in the arena and the arena's size, in bytes for one sample."""
    touched = [[number for number in (*each.reads(), each.output) if number >= 0] for each in layers]
    return memory_plan.plan_memory([each.sample_bytes for each in buffers], touched, alone)
