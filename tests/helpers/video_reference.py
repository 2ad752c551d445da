"""Programs of videos beside what each of their layers must leave, computed in plain numpy integers.

A buffer of several frames is ``(n, frames, height, width, channels)`` here.
"""

from __future__ import annotations

import numpy as np

from cpupack.stages.quantize.native.fit import fit_of, fit_of_depthwise
from cpupack.stages.quantize.native.moves import moves_of
from cpupack.stages.quantize.native.pack import BLOCK, interleave_channels, pack_conv, pack_depthwise, pad_channels
from cpupack.stages.quantize.native.program import NO_FLAGS, Buffer, Flag, Layer, Op, window_fields
from helpers.float_values import fma
from helpers.native_reference import Array, Reference, clip

Triple = tuple[int, int, int]
ONE, NONE = (1, 1, 1), (0, 0, 0)


def windows(codes: Array, kernel: Triple, stride: Triple, pad: Triple, dilation: Triple, fill: float) -> Array:
    """Return (n, out frames, out height, out width, channels, kernel frames, kernel height, kernel width)."""
    padded = np.pad(codes, ((0, 0), *((each,) * 2 for each in pad), (0, 0)), constant_values=fill)
    size = [gap * (taps - 1) + 1 for gap, taps in zip(dilation, kernel, strict=True)]
    found = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2, 3))
    steps = tuple(slice(None, None, each) for each in stride)
    gaps = tuple(slice(None, None, each) for each in dilation)
    return found[(slice(None), *steps, slice(None), *gaps)]


class VideoReference(Reference):
    """``Reference`` with buffers of several frames: ``frames`` makes the first one of the input's rows."""

    def frames(self, source: int, count: int) -> int:
        """The rows of an image, cut into frames."""
        codes = self.values[source]
        n, height, width, channels = codes.shape
        output = self._buffer(codes.reshape(n, count, height // count, width, channels))
        places = np.arange(codes[0].size)
        moves = moves_of(places, places, self.program.buffers[source], self.program.buffers[output])[0]
        fields: dict[str, float] = {"runs": len(moves), "output_zero_point": 0}
        return self._add(Layer(Op.MOVE, input=source, output=output, fields=fields, constants={"weights": moves}))

    def one(self, source: int) -> int:
        """The frames of a video, as the rows of one image, the last frame first: moves from frame to frame."""
        codes = self.values[source]
        n, frames, height, width, channels = codes.shape
        order = np.arange(codes[0].size).reshape(frames, -1)[::-1].flatten()
        output = self._buffer(codes.reshape(n, -1)[:, order].reshape(n, frames * height, width, channels))
        moves = moves_of(order, np.arange(order.size), self.program.buffers[source], self.program.buffers[output])[0]
        fields: dict[str, float] = {"runs": len(moves), "output_zero_point": 0}
        return self._add(Layer(Op.MOVE, input=source, output=output, fields=fields, constants={"weights": moves}))

    def convolve(
        self, source: int, weights: Array, *, stride: Triple = ONE, pad: Triple = NONE, dilation: Triple = ONE,
        groups: int = 1, fill: int = 0, residual: int | None = None, table: Array | None = None, low: int = 0,
        high: int = 255,
    ) -> int:  # fmt: skip
        """A convolution with weights (out, in / groups, frames, height, width), depthwise where it can be."""
        outputs, group_in, *kernel = weights.shape
        channels = self.values[source].shape[4]
        taps = group_in * int(np.prod(kernel))
        scales = (self.random.uniform(0.5, 1.5, outputs) / (40.0 * np.sqrt(taps))).astype("f4")
        biases = self.random.uniform(100.0, 156.0, outputs).astype("f4")
        self._around(source, pad, fill)
        seen = windows(self.values[source], tuple(kernel), stride, pad, dilation, fill).astype(np.int64)
        group = np.arange(outputs) // (outputs // groups)
        inputs = group[:, None] * group_in + np.arange(group_in)
        sums = np.stack(
            [np.einsum("nzyxcijk,cijk->nzyx", seen[..., inputs[o], :, :, :], weights[o].astype(np.int64), optimize=True)
             for o in range(outputs)],
            -1,
        )  # fmt: skip
        assert np.abs(sums).max() < 2**31
        y = fma(sums.astype(np.float32), scales, biases)
        fields = window_fields(kernel, stride, pad, dilation) | {"channels_out": outputs, "low": low, "high": high}
        flags, constants = NO_FLAGS, {}
        if residual is not None:
            fields["scale2"] = float(np.float32(0.31))
            y = fma(self.values[residual].astype(np.float32), 0.31, y)
            flags |= Flag.RESIDUAL
        codes = clip(y, low, high)
        if table is not None:
            flags, constants, codes = flags | Flag.TABLE, {"table": table}, table[codes]
        dilated, rows = dilation != ONE, weights.reshape(outputs, group_in, -1, kernel[2])
        depthwise = groups == outputs == channels > 1 and residual is None
        if depthwise:
            packed, several = pack_depthwise(rows[:, 0], stride[2], dilated=dilated, depth=kernel[0])
            constants |= {
                "weights": packed, "scales": interleave_channels(scales), "biases": interleave_channels(biases)
            }  # fmt: skip
            fit = fit_of_depthwise(rows[:, 0], stride[2], dilated=dilated, depth=kernel[0])
            fields |= {"runs": several, "fit": fit}
        else:
            conv = pack_conv(rows, groups, dilated=dilated)
            constants |= {
                "weights": conv.weights, "scales": pad_channels(scales, BLOCK), "biases": pad_channels(biases, BLOCK)
            }  # fmt: skip
            fields |= conv.fields() | {"fit": fit_of(rows, groups, dilated=dilated)}
        op = Op.DEPTHWISE if depthwise else Op.CONV
        added = -1 if residual is None else residual
        return self._add(Layer(op, flags, source, added, self._buffer(codes), fields, constants))

    def largest(self, source: int, kernel: Triple, stride: Triple, pad: Triple, dilation: Triple = ONE) -> int:
        self._around(source, pad, 0)
        codes = windows(self.values[source], kernel, stride, pad, dilation, 0).max(axis=(5, 6, 7))
        fields = window_fields(kernel, stride, pad, dilation)
        return self._add(Layer(Op.MAX_POOL, input=source, output=self._buffer(codes), fields=fields))

    def average(self, source: int, kernel: Triple, stride: Triple, pad: Triple, *, include: bool) -> int:
        scale, zero_in, zero_out = np.float32(0.91372), 17, 9
        x = self.values[source].astype(np.float64) - zero_in
        ones = windows(np.ones(x.shape), kernel, stride, pad, ONE, 0).sum(axis=(5, 6, 7))
        sums = windows(x, kernel, stride, pad, ONE, 0).sum(axis=(5, 6, 7))
        codes = clip(sums * scale / (np.prod(kernel) if include else ones) + zero_out)
        fields = window_fields(kernel, stride, pad, ONE) | {
            "scale": float(scale), "input_zero_point": zero_in, "output_zero_point": zero_out
        }  # fmt: skip
        flags = Flag.INCLUDE_PAD if include else NO_FLAGS
        return self._add(Layer(Op.AVERAGE_POOL, flags, source, output=self._buffer(codes), fields=fields))

    def mean(self, source: int) -> int:
        """The average of all frames, as codes of one pixel."""
        scale, zero_in, zero_out = np.float32(1.70371), 5, 30
        mean = self.values[source].astype(np.float64).mean(axis=(1, 2, 3))[:, None, None]
        fields = {
            "scale": float(scale), "input_zero_point": zero_in, "output_zero_point": zero_out,
            "channels_out": mean.shape[3],
        }  # fmt: skip
        codes = clip((mean - zero_in) * scale + zero_out)
        return self._add(Layer(Op.GLOBAL_AVERAGE, input=source, output=self._buffer(codes), fields=fields))

    def resized(self, source: int, frames: Array, rows: Array, columns: Array, *, floats: bool = False) -> int:
        """Weighted sums of frames, rows and columns, each (result, source); zeros are outside.

        With ``floats`` they go to the caller as float32.
        """
        x, zero, zero_out = self.values[source], 31, 0 if floats else 60
        windows_of, weights = [], list[np.float32]()
        for row in (*rows.astype("f4"), *columns.astype("f4"), *frames.astype("f4")):
            found = np.flatnonzero(row)
            windows_of.append((found[0], found[-1] + 1 - found[0], len(weights)))
            weights += list(row[found[0] : found[-1] + 1])
        y = np.full((len(x), len(frames), len(rows), len(columns), x.shape[4]), zero_out, np.float32)
        across, deep = len(rows), len(rows) + len(columns)
        for place in np.ndindex(*y.shape[1:4]):
            front, top, left = (windows_of[at + each] for at, each in zip((deep, 0, across), place, strict=True))
            for kz, ky, kx in np.ndindex(front[1], top[1], left[1]):
                seen = x[:, front[0] + kz, top[0] + ky, left[0] + kx].astype("f4") - zero
                weight = weights[top[2] + ky] * weights[left[2] + kx] * weights[front[2] + kz]
                y[:, *place] = fma(seen, weight, y[:, *place])
        constants: dict[str, Array] = {"weights": np.array(windows_of, "i4"), "scales": np.array(weights, "f4")}
        fields: dict[str, float] = {
            "input_zero_point": zero, "output_zero_point": zero_out, "runs": len(weights)
        }  # fmt: skip
        if floats:
            return self.sums_to_caller(source, y, fields, constants)
        return self._elementwise(Op.RESAMPLE, source, clip(y), fields, constants, None)

    def _around(self, number: int, halo: Triple, fill: int) -> None:
        self._border(number, halo[1:], fill)
        buffer = self.program.buffers[number]
        if halo[0]:
            assert buffer.fill in (None, fill)
            buffer.fill, buffer.halo_z = fill, max(buffer.halo_z, halo[0])

    def _buffer(self, codes: Array) -> int:
        if codes.ndim == 4:
            return super()._buffer(codes)
        self.values.append(codes)
        frames, height, width, channels = codes.shape[1:]
        return self.program.add_buffer(Buffer(height, width, channels, 1.0, 0, frames=frames))
