"""Programs of the native engine beside what each of their layers must leave, computed in plain numpy integers.

Sums are exact; then the kernels go through float32 (one rounding after each fused multiply and add), and so does this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import library_under_test  # noqa: F401 - for the processes that tests of kernels start
from cpupack.runtime.engine import library
from cpupack.runtime.host import cpu
from cpupack.stages.quantize.native.fit import Fit, fit_of, fit_of_depthwise
from cpupack.stages.quantize.native.moves import moves_of
from cpupack.stages.quantize.native.pack import BLOCK, interleave_channels, pack_conv, pack_depthwise, pad_channels
from cpupack.stages.quantize.native.program import NO_FLAGS, Buffer, Flag, Layer, Op, Program
from helpers.float_values import fma

__all__ = ["Array", "Fit", "Flag", "Op", "Reference", "runs_here"]

Array = np.ndarray[Any, Any]


def runs_here() -> bool:
    """Whether this CPU can run the kernels."""
    return library.runs_on(cpu.machine(), cpu.detect_isa())


def clip(values: Array, low: int = 0, high: int = 255) -> Array:
    return np.clip(np.rint(values), 0, 255).clip(low, high).astype(np.uint8)


def windows(
    codes: Array, kernel: tuple[int, int], stride: int, pad: tuple[int, int], dilation: int, fill: int
) -> Array:
    """Return (n, out height, out width, kernel height, kernel width, channels) of a padded image."""
    padded = np.pad(codes, ((0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)), constant_values=fill)
    size = [dilation * (each - 1) + 1 for each in kernel]
    found = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))
    return found[:, ::stride, ::stride, :, ::dilation, ::dilation].transpose(0, 1, 2, 4, 5, 3)


@dataclass
class Reference:
    """A program of uint8 input ``codes`` (n, height, width, channels). Methods add a layer and return its buffer.

    ``values`` has each buffer's codes, ``left`` the buffer that each layer leaves, ``result`` the float32 output. With
    ``block`` 2 the first buffer has two by two pixels as the channels of one.
    """

    codes: Array
    seed: int = 0
    block: int = 1
    values: list[Array] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    result: Array | None = None

    def __post_init__(self) -> None:
        n, height, width, channels = self.codes.shape
        self.random = np.random.default_rng(self.seed)
        self.program = Program(height, width, 0, input_channels_pixels=channels)
        block = self.block
        blocks = self.codes.reshape(n, height // block, block, width // block, block, channels)
        joined = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // block, width // block, -1)
        fields: dict[str, float] = {"stride_h": block, "stride_w": block}
        self._add(Layer(Op.INPUT_PIXELS, output=self._buffer(joined), fields=fields))

    def conv(
        self, source: int, weights: Array, *, stride: int = 1, pad: tuple[int, int] = (0, 0), dilation: int = 1,
        groups: int = 1, fill: int = 0, residual: int | None = None, table: Array | None = None, low: int = 0,
        high: int = 255, slopes: bool = False, floats: bool = False, into: tuple[int, int] | None = None,
        winograd: bool = False,
    ) -> int:  # fmt: skip
        """A convolution, depthwise where it can be; ``into`` is a buffer and the channel where it writes."""
        outputs, group_in, height, width = weights.shape
        channels = self.values[source].shape[3]
        scales = (self.random.uniform(0.5, 1.5, outputs) / (40.0 * np.sqrt(group_in * height * width))).astype("f4")
        biases = self.random.uniform(100.0, 156.0, outputs).astype("f4")
        self._border(source, pad, fill)
        seen = windows(self.values[source], (height, width), stride, pad, dilation, fill).astype(np.int64)
        group = np.arange(outputs) // (outputs // groups)
        inputs = group[:, None] * group_in + np.arange(group_in)
        taps = weights.transpose(2, 3, 1, 0).astype(np.int64)
        sums = np.stack(
            [np.einsum("nyxijc,ijc->nyx", seen[..., inputs[o]], taps[..., o], optimize=True) for o in range(outputs)],
            -1,
        )
        assert np.abs(sums).max() < 2**31
        y = fma(sums.astype(np.float32), scales, biases)
        depthwise = groups == outputs == channels > 1 and residual is None and not (floats or slopes) and into is None
        fields: dict[str, float] = {
            "kernel_h": height, "kernel_w": width, "stride_h": stride, "stride_w": stride, "pad_h": pad[0],
            "pad_w": pad[1], "dilation_h": dilation, "dilation_w": dilation, "channels_out": outputs,
            "low": low, "high": high,
        }  # fmt: skip
        flags, constants = Flag.WINOGRAD if winograd else NO_FLAGS, {}
        if residual is not None:
            fields["scale2"] = float(np.float32(0.31))
            y = fma(self.values[residual].astype(np.float32), 0.31, y)
            flags |= Flag.RESIDUAL
        if table is not None:
            flags, constants = flags | Flag.TABLE, {"table": table}
        if slopes:
            fields["output_zero_point"], zero = 128, np.float32(128.0)
            slope, term = (
                self.random.normal(0.0, 1.5, outputs).astype("f4"),
                self.random.normal(90.0, 90.0, outputs).astype("f4"),
            )
            y = np.where(y < zero, fma(y, slope, term), y)
            flags |= Flag.SLOPES
            constants = {"table": np.concatenate([pad_channels(each, BLOCK) for each in (slope, term)])}
        if depthwise:
            packed, several = pack_depthwise(weights[:, 0], stride, dilated=dilation > 1)
            constants |= {
                "weights": packed, "scales": interleave_channels(scales), "biases": interleave_channels(biases)
            }  # fmt: skip
            fields |= {"runs": several, "fit": fit_of_depthwise(weights[:, 0], stride, dilated=dilation > 1)}
        else:
            conv = pack_conv(weights, groups, dilated=dilation > 1)
            constants |= {
                "weights": conv.weights, "scales": pad_channels(scales, BLOCK), "biases": pad_channels(biases, BLOCK)
            }  # fmt: skip
            fields |= conv.fields() | {"fit": fit_of(weights, groups, dilated=dilation > 1)}
        op = Op.DEPTHWISE if depthwise else Op.CONV
        number = -1 if residual is None else residual
        if floats:
            self.result, self.program.outputs = y.reshape(len(y), -1), outputs
            return self._add(Layer(op, flags | Flag.FLOAT_OUT, source, number, -1, fields, constants))
        codes = clip(y, low, high)
        codes = codes if table is None else table[codes]
        if into is not None:
            output, fields["channel_offset"] = into
            self.values[output][..., into[1] : into[1] + outputs] = codes
        else:
            output = self._buffer(codes)
        return self._add(Layer(op, flags, source, number, output, fields, constants))

    def max_pool(self, source: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int = 1) -> int:
        self._border(source, pad, 0)
        found = windows(self.values[source], (kernel, kernel), stride, pad, dilation, 0).max(axis=(3, 4))
        fields = self._window(kernel, stride, pad, dilation)
        return self._add(Layer(Op.MAX_POOL, input=source, output=self._buffer(found), fields=fields))

    def average_pool(self, source: int, kernel: int, stride: int, pad: tuple[int, int], *, include: bool) -> int:
        scale, zero_in, zero_out = np.float32(0.91372), 17, 9
        x = self.values[source].astype(np.float64) - zero_in
        ones = windows(np.ones(x.shape), (kernel, kernel), stride, pad, 1, 0).sum(axis=(3, 4))
        sums = windows(x, (kernel, kernel), stride, pad, 1, 0).sum(axis=(3, 4))
        codes = clip(sums * scale / (kernel * kernel if include else ones) + zero_out)
        fields = self._window(kernel, stride, pad, 1) | {
            "scale": float(scale), "input_zero_point": zero_in, "output_zero_point": zero_out
        }  # fmt: skip
        flags = Flag.INCLUDE_PAD if include else NO_FLAGS
        return self._add(Layer(Op.AVERAGE_POOL, flags, source, output=self._buffer(codes), fields=fields))

    def global_average(self, source: int, *, floats: bool = False) -> int:
        scale, zero_in, zero_out = np.float32(1.70371), 5, 0 if floats else 30
        y = (self.values[source].astype(np.float64).mean(axis=(1, 2), keepdims=True) - zero_in) * scale + zero_out
        channels = y.shape[3]
        fields = {
            "scale": float(scale), "input_zero_point": zero_in, "output_zero_point": zero_out, "channels_out": channels
        }  # fmt: skip
        if floats:
            self.result, self.program.outputs = y.reshape(len(y), -1).astype("f4"), channels
            return self._add(Layer(Op.GLOBAL_AVERAGE, Flag.FLOAT_OUT, source, fields=fields))
        return self._add(Layer(Op.GLOBAL_AVERAGE, input=source, output=self._buffer(clip(y)), fields=fields))

    def scale(self, source: int, gate: int) -> int:
        """Times a factor of one pixel, the same for all frames of a video."""
        scale, zero, gate_zero, zero_out = np.float32(0.0130171), 3, 11, 128
        x, factor = self.values[source].astype(np.float64), self.values[gate].astype(np.float64)
        factor = factor.reshape(len(factor), *[1] * (x.ndim - 2), -1)
        codes = clip((x - zero) * ((factor - gate_zero) * scale) + zero_out)
        fields = {
            "scale": float(scale), "input_zero_point": zero, "input2_zero_point": gate_zero,
            "output_zero_point": zero_out,
        }  # fmt: skip
        return self._add(Layer(Op.SCALE, input=source, input2=gate, output=self._buffer(codes), fields=fields))

    def add(self, source: int, other: int, *, low: int = 0) -> int:
        scale, scale2, zero, zero2, zero_out = np.float32(0.61371), np.float32(0.42913), 100, 7, 40
        one, two = self.values[source].astype(np.float64), self.values[other].astype(np.float64)
        codes = clip((one - zero) * scale + (two - zero2) * scale2 + zero_out, low)
        fields = {
            "scale": float(scale), "scale2": float(scale2), "input_zero_point": zero, "input2_zero_point": zero2,
            "output_zero_point": zero_out, "low": low,
        }  # fmt: skip
        return self._add(Layer(Op.ADD, input=source, input2=other, output=self._buffer(codes), fields=fields))

    def table(self, source: int, table: Array, *, into: tuple[int, int] | None = None) -> int:
        codes = table[self.values[source]]
        fields: dict[str, float] = {}
        if into is None:
            output = self._buffer(codes)
        else:
            output, fields["channel_offset"] = into
            self.values[output][..., into[1] : into[1] + codes.shape[3]] = codes
        return self._add(Layer(Op.TABLE, input=source, output=output, fields=fields, constants={"table": table}))

    def move(self, source: int, places: Array, shape: tuple[int, int, int], *, table: Array | None = None) -> int:
        """Bytes of a sample by their ``places`` in memory, -1 for a constant: ``shape`` of them."""
        codes, fill = self.values[source], 201
        moved = codes if table is None else table[codes]
        flat = np.concatenate([moved.reshape(len(codes), -1), np.full((len(codes), 1), fill, np.uint8)], 1)
        output = self._buffer(flat[:, places].reshape(len(codes), *shape))
        one, other = self.program.buffers[source], self.program.buffers[output]
        moves = moves_of(places, np.arange(places.size), one, other)[0]
        flags, constants = NO_FLAGS, {"weights": moves}
        if table is not None:
            flags, constants = Flag.TABLE, constants | {"table": table}
        fields: dict[str, float] = {"runs": len(moves), "output_zero_point": fill}
        return self._add(Layer(Op.MOVE, flags, source, output=output, fields=fields, constants=constants))

    def multiply(self, source: int, other: int, *, low: int = 0, table: Array | None = None) -> int:
        scale, zero, zero2, zero_out = np.float32(0.0131), 100, 7, 40
        product = (self.values[source].astype("f4") - zero) * (self.values[other].astype("f4") - zero2)
        codes = clip(fma(product, scale, zero_out), low)
        fields = {
            "scale": float(scale), "input_zero_point": zero, "input2_zero_point": zero2,
            "output_zero_point": zero_out, "low": low,
        }  # fmt: skip
        return self._elementwise(Op.MULTIPLY, source, codes, fields, {}, table, other)

    def affine(self, source: int, *, places: bool, slopes: bool, table: Array | None = None) -> int:
        """Constants for each channel, or for each of the ``places``; with ``slopes`` others for negative values."""
        x, zero = self.values[source], 90
        shape = x.shape[1:] if places else x.shape[-1:]
        factor, negative = (self.random.normal(0.0, 1.5, shape).astype("f4") for _ in range(2))
        shift = self.random.uniform(0.0, 255.0, shape).astype("f4")
        difference = x.astype("f4") - zero
        if slopes:
            y = fma(np.minimum(difference, 0), np.broadcast_to(negative, x.shape), np.broadcast_to(shift, x.shape))
            y = fma(np.maximum(difference, 0), np.broadcast_to(factor, x.shape), y)
        else:
            y = fma(difference, np.broadcast_to(factor, x.shape), np.broadcast_to(shift, x.shape))
        constants = {"scales": factor, "biases": shift} | ({"weights": negative} if slopes else {})
        fields: dict[str, float] = {
            "input_zero_point": zero, "runs": 2 if slopes else 1, "chunks": int(places), "high": 250
        }  # fmt: skip
        return self._elementwise(Op.AFFINE, source, clip(y, high=250), fields, constants, table)

    def resample(
        self, source: int, rows: Array, columns: Array, *, table: Array | None = None, floats: bool = False
    ) -> int:
        """Weighted sums: ``rows`` (result, source) from the left, ``columns`` from the right; zeros are outside.

        With ``floats`` they go to the caller as float32.
        """
        x, zero, zero_out = self.values[source], 31, 0 if floats else 60
        windows_of, weights = [], list[np.float32]()
        one_frame = np.ones((1, 1), "f4")
        for row in (*rows.astype("f4"), *columns.astype("f4"), *one_frame):
            found = np.flatnonzero(row)
            windows_of.append((found[0], found[-1] + 1 - found[0], len(weights)))
            weights += list(row[found[0] : found[-1] + 1])
        y = np.full((len(x), len(rows), len(columns), x.shape[3]), zero_out, np.float32)
        for i, (top, height, down) in enumerate(windows_of[: len(rows)]):
            for j, (left, width, across) in enumerate(windows_of[len(rows) : -1]):
                for ky in range(height):
                    for kx in range(width):
                        seen = x[:, top + ky, left + kx].astype("f4") - zero
                        y[:, i, j] = fma(seen, weights[down + ky] * weights[across + kx], y[:, i, j])
        constants: dict[str, Array] = {"weights": np.array(windows_of, "i4"), "scales": np.array(weights, "f4")}
        fields: dict[str, float] = {
            "input_zero_point": zero, "output_zero_point": zero_out, "runs": len(weights)
        }  # fmt: skip
        if floats:
            return self.sums_to_caller(source, y[:, None], fields, constants)
        return self._elementwise(Op.RESAMPLE, source, clip(y), fields, constants, table)

    def sums_to_caller(self, source: int, sums: Array, fields: dict[str, float], constants: dict[str, Array]) -> int:
        """Weighted sums ``(n, frames, height, width, channels)`` as float32 results."""
        self.result = sums.astype("f4").reshape(len(sums), -1)
        self.program.outputs = self.result.shape[1]
        sizes = dict(zip(("kernel_d", "kernel_h", "kernel_w"), sums.shape[1:4], strict=True))
        fields = {**fields, **sizes, "channels_out": self.program.outputs}
        return self._add(Layer(Op.RESAMPLE, Flag.FLOAT_OUT, source, fields=fields, constants=constants))

    def _elementwise(
        self, op: Op, source: int, codes: Array, fields: dict[str, float], constants: dict[str, Array],
        table: Array | None, other: int = -1,
    ) -> int:  # fmt: skip
        flags = NO_FLAGS
        if table is not None:
            codes, flags, constants = table[codes], Flag.TABLE, constants | {"table": table}
        return self._add(Layer(op, flags, source, other, self._buffer(codes), fields, constants))

    def output(self, source: int) -> int:
        scale, zero = np.float32(0.037), 77
        x = self.values[source]
        self.result = ((x.astype("f4") - zero) * scale).reshape(len(x), -1)
        self.program.outputs = self.result.shape[1]
        fields = {"scale": float(scale), "input_zero_point": zero, "channels_out": self.program.outputs}
        return self._add(Layer(Op.OUTPUT, Flag.FLOAT_OUT, source, fields=fields))

    def empty(self, height: int, width: int, channels: int) -> int:
        """A buffer of constants that layers fill slice by slice. What no layer writes may be anything."""
        return self.move(0, np.full(height * width * channels, -1), (height, width, channels))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return input and program as the operator takes them."""
        x = torch.from_numpy(self.codes.copy()).permute(0, 3, 1, 2)
        return x, torch.frombuffer(bytearray(self.program.to_bytes()), dtype=torch.uint8)

    def _buffer(self, codes: Array) -> int:
        self.values.append(codes)
        height, width, channels = codes.shape[1:]
        return self.program.add_buffer(Buffer(height, width, channels, scale=1.0, zero_point=0))

    def _border(self, number: int, halo: tuple[int, int], fill: int) -> None:
        buffer = self.program.buffers[number]
        if halo != (0, 0):
            assert buffer.fill in (None, fill)
            buffer.fill = fill
            buffer.halo = max(buffer.halo[0], halo[0]), max(buffer.halo[1], halo[1])

    def _window(self, kernel: int, stride: int, pad: tuple[int, int], dilation: int) -> dict[str, float]:
        return {
            "kernel_h": kernel, "kernel_w": kernel, "stride_h": stride, "stride_w": stride, "pad_h": pad[0],
            "pad_w": pad[1], "dilation_h": dilation, "dilation_w": dilation,
        }  # fmt: skip

    def _add(self, layer: Layer) -> int:
        self.program.layers.append(layer)
        self.left.append(layer.output)
        return layer.output
