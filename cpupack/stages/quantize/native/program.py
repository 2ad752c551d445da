"""Programs for the INT8 engine: buffers and layers as bytes, laid out as ``kernels/engine/program.h`` reads them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cpupack.runtime.engine.program_format import BUFFER, HEADER, LAYER, MAGIC, VERSION

_ALIGNMENT = 64
Doubles = npt.NDArray[np.float64]


class Op(IntEnum):
    """The operation of a layer (``enum cpupack_op``)."""

    INPUT_PIXELS = 0
    INPUT_FLOAT = 1
    CONV = 2
    DEPTHWISE = 3
    MAX_POOL = 4
    GLOBAL_AVERAGE = 5
    SCALE = 6
    ADD = 7
    TABLE = 8
    AVERAGE_POOL = 9
    OUTPUT = 10
    MOVE = 11
    MULTIPLY = 12
    AFFINE = 13
    RESAMPLE = 14
    FLOAT_INPUT = 15
    DEQUANTIZE = 16
    QUANTIZE = 17
    FLOAT_MAP = 18
    FLOAT_REDUCE = 19
    FLOAT_NORMALIZE = 20
    FLOAT_MATMUL = 21
    FLOAT_WINDOWS = 22
    FLOAT_GATHER = 23
    RECURRENT = 24
    FLOAT_CODES = 25
    FLOAT_ATTENTION = 26
    FLOAT_LOOKUP = 27
    PROPOSE = 28
    REGIONS = 29


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
    """Layers in order, with their buffers. ``outputs`` is the number of float32 results for each sample."""

    input_height: int
    input_width: int
    input_channels_float: int
    input_channels_pixels: int = 0
    outputs: int = 0
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
                constants += bytes(-len(constants) % _ALIGNMENT)
                row[name] = len(constants)
                constants += np.ascontiguousarray(array).tobytes()
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
    """Return how many of the first layers to run sample by sample: those with fewer weights than activations.

    A sample's activations then stay in the second-level cache from layer to layer. After that point the weights are
    larger, and it is faster to read them once for the whole batch.
    """
    for position, layer in enumerate(layers):
        if layer.op is Op.RECURRENT:
            return position  # it runs samples side by side
        if layer.op is not Op.CONV:
            continue
        out = buffers[layer.output] if layer.output >= 0 else None
        if out is not None and out.positions == 1:
            continue  # squeeze-and-excitation, between two layers of full size
        through = buffers[layer.input].sample_bytes + (out.sample_bytes if out is not None else 0)
        if layer.constants["weights"].nbytes > through:
            return position
    return len(layers)


def plan_memory(buffers: list[Buffer], layers: list[Layer], alone: int) -> tuple[list[int], int]:
    """Return each buffer's offset in the arena and the arena's size, in bytes for one sample.

    The first ``alone`` layers run again for every sample while what they leave to later layers waits: that is alive
    from the start.

    Buffers that are never alive together share memory: the largest is placed first, each at the lowest offset where it
    meets no other that is alive with it (Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net
    Inference", greedy by size).
    """
    first = dict.fromkeys(range(len(buffers)), len(layers))
    last = dict.fromkeys(range(len(buffers)), -1)
    for position, layer in enumerate(layers):
        for number in (*layer.reads(), layer.output):
            if number >= 0:
                first[number] = min(first[number], position)
                last[number] = max(last[number], position)
    for number in last:
        if first[number] < alone <= last[number]:
            first[number] = 0
    sizes = [each.sample_bytes + -each.sample_bytes % _ALIGNMENT for each in buffers]
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for number in sorted(range(len(buffers)), key=lambda each: -sizes[each]):
        together = [other for other in placed if first[other] <= last[number] and first[number] <= last[other]]
        offset = 0
        for other in sorted(together, key=lambda each: offsets[each]):
            if offset + sizes[number] <= offsets[other]:
                break
            offset = max(offset, offsets[other] + sizes[other])
        offsets[number] = offset
        placed.append(number)
    return offsets, max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0)
