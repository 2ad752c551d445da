"""Networks that together use every native kernel, at odd sizes and with extreme values, by plain integer arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from native_convolutions import CONVOLUTIONS, TABLE, pixels, weights

from helpers.native_reference import Array, Fit, Flag, Op, Reference


def convolution(name: str) -> Reference:
    shape, filters, how = CONVOLUTIONS[name]
    net = Reference(pixels(*shape))
    net.output(net.conv(0, weights(*filters), **how))
    return net


def fitting(name: str, largest: int) -> Reference:
    """Return extreme weights: sums of four products fit into 16 bits (up to 32), or sums of two (up to 64)."""
    shape, filters, how = CONVOLUTIONS[name]
    net = Reference(np.where(pixels(*shape) < 128, 0, 255).astype(np.uint8))
    net.output(net.conv(0, weights(*filters).clip(-largest, largest), **how))
    fit = Fit.FOURS if largest == 32 and net.program.layers[1].op is Op.CONV else Fit.PAIRS
    assert net.program.layers[1].fields["fit"] == fit
    return net


def sparse(name: str, seed: int) -> Reference:
    """Products that a kernel may leave out: all (seed 0), a quarter of the fours, and none, for one output's sake."""
    shape, filters, how = CONVOLUTIONS[name]
    random = np.random.default_rng(seed)
    taps = weights(*filters)
    taps[:, random.random(filters[1:]) < 0.7] = 0
    if seed == 0:
        taps[:] = 0
    if seed == 2:
        taps[random.integers(filters[0])] = weights(*filters[1:], seed=seed)
    net = Reference(pixels(*shape))
    net.output(net.conv(0, taps, **how))
    return net


def winograd(shape: tuple[int, int, int, int], outputs: int, *, table: bool = False, pad: int = 1) -> Reference:
    """Products of transformed tiles where that is faster: sizes of whole tiles and others, into a slice with others."""
    net = Reference(pixels(*shape))
    how = {"pad": (pad, pad), "fill": 12 if pad else 0, "winograd": True, "table": TABLE if table else None}
    one = net.conv(0, weights(outputs, shape[3], 3, 3), **how)
    height, width = net.values[one].shape[1:3]
    joined = net.empty(height, width, outputs + 5)
    net.conv(0, weights(outputs, shape[3], 3, 3, seed=2), into=(joined, 3), **how)
    net.output(net.conv(0, weights(outputs, shape[3], 3, 3, seed=3), residual=one, low=3, **how))
    return net


def lowest_weights(groups: int) -> Reference:
    """Weights of -128, which quantizers do not make: two products with a code of 0 less 128 are one too many for 16
    bits."""
    net = Reference(np.where(pixels(2, 7, 9, 40) < 200, 0, 255).astype(np.uint8))
    taps = np.where(weights(40, 40 // groups, 3, 3) < 90, -128, 127).astype(np.int8)
    net.output(net.conv(0, taps, pad=(1, 1), stride=2, groups=groups))
    return net


def many_inputs(inputs: int, largest: int, *, floats: bool) -> Reference:
    """More inputs than 32 rows of them have room in the memory of a thread, or than one row of eight has."""
    net = Reference(pixels(3, 1, 1, inputs))
    taps = weights(11, inputs, 1, 1).clip(-largest, largest)
    if floats:
        net.conv(0, taps, floats=True)
    else:
        net.output(net.conv(0, taps))
    return net


def largest_sums(channels: int) -> Reference:
    """Sums as large and as small as they get: with 115 channels 255 x 127 x 9 x 115 is just below 2^25, with 116 above.

    VNNI's transformed tiles know 26 bits of a sum, so they may be used for the first and not for the second.
    """
    net = Reference(np.full((2, 16, 16, channels), 255, np.uint8))
    signs = np.where(np.arange(48) % 3 == 0, -127, 127)
    taps = np.broadcast_to(signs[:, None, None, None], (48, channels, 3, 3)).astype(np.int8)
    net.output(net.conv(0, taps, pad=(1, 1), fill=255))
    return net


def residual(channels: int, *, table: bool, groups: int = 1, largest: int = 127, dilation: int = 1) -> Reference:
    net = Reference(pixels(2, 6, 7, channels))
    how = {"pad": (dilation, dilation), "dilation": dilation, "fill": 12, "groups": groups}
    filters = (channels, channels // groups, 3, 3)
    first, second = (weights(*filters, seed=seed).clip(-largest, largest) for seed in (1, 3))
    one = net.conv(0, first, **how)
    net.output(net.conv(0, second, residual=one, table=TABLE if table else None, low=3, **how))
    return net


def sloped(
    shape: tuple[int, int, int, int],
    outputs: int,
    *,
    side: int = 3,
    groups: int = 1,
    largest: int = 127,
    winograd: bool = False,
) -> Reference:
    """Slopes of negative values of each channel, also where the sums are of few rows or go into a slice."""
    net = Reference(pixels(*shape))
    pad = side // 2
    how = {"pad": (pad, pad), "fill": 12 if pad else 0, "groups": groups, "winograd": winograd, "slopes": True}
    filters = (outputs, shape[3] // groups, side, side)
    one = net.conv(0, weights(*filters).clip(-largest, largest), **how)
    height, width = net.values[one].shape[1:3]
    joined = net.empty(height, width, outputs + 7)
    net.conv(0, weights(*filters, seed=2).clip(-largest, largest), into=(joined, 5), low=3, high=240, **how)
    net.output(net.conv(one, weights(9, outputs, 1, 1, seed=3).clip(-largest, largest), slopes=True))
    return net


def floats_out(batch: int, inputs: int, outputs: int) -> Reference:
    net = Reference(pixels(batch, 1, 1, inputs))
    net.conv(0, weights(outputs, inputs, 1, 1), floats=True)
    return net


def pools(channels: int) -> Reference:
    net = Reference(pixels(3, 11, 9, channels))
    net.max_pool(0, 3, 2, (1, 1))
    net.max_pool(0, 3, 1, (1, 0))
    net.max_pool(0, 3, 3, (0, 1))
    last = net.max_pool(net.table(0, TABLE), 2, 1, (0, 0), dilation=2)
    for include in (True, False):
        net.average_pool(last, 3, 2, (1, 1), include=include)
    net.average_pool(0, 2, 2, (0, 0), include=True)
    net.global_average(0, floats=True)
    return net


def gate(channels: int) -> Reference:
    net = Reference(pixels(3, 5, 6, channels))
    net.output(net.add(net.scale(0, net.global_average(0)), net.table(0, TABLE), low=40))
    return net


def slices() -> Reference:
    """A concatenation whose parts are written by convolutions and tables, and which has a border for its reader."""
    net = Reference(pixels(2, 5, 6, 19))
    joined = net.empty(5, 6, 19 + 33 + 7)
    net.table(0, TABLE, into=(joined, 33))
    net.conv(0, weights(33, 19, 3, 3), pad=(1, 1), fill=5, into=(joined, 0))
    net.conv(0, weights(7, 19, 1, 1), table=TABLE, into=(joined, 52))
    net.output(net.conv(joined, weights(8, 59, 3, 3), pad=(1, 1), fill=200))
    return net


def moves(channels: int) -> Reference:
    """Bytes to other places: runs of all lengths, single ones, steps forwards and backwards, repeats, constants."""
    height, width = 5, 6
    net = Reference(pixels(3, height, width, channels))
    size = height * width * channels
    places = np.arange(size).reshape(height, width, channels)
    net.move(0, places[::-1, ::-1].reshape(-1), (height, width, channels))
    net.move(0, places.transpose(2, 1, 0).reshape(-1), (channels, width, height), table=TABLE)
    net.move(0, np.pad(places, ((2, 1), (1, 3), (0, 0)), mode="reflect").reshape(-1), (height + 3, width + 4, channels))
    net.move(
        0,
        np.pad(places, ((1, 0), (0, 2), (0, 1)), constant_values=-1).reshape(-1),
        (height + 1, width + 2, channels + 1),
    )
    net.move(0, places.repeat(2, 0).repeat(3, 1)[..., ::2].reshape(-1), (2 * height, 3 * width, (channels + 1) // 2))
    random = np.random.default_rng(2)
    anywhere = random.integers(-1, size, 7 * 3 * 9)
    net.output(net.move(0, anywhere, (7, 3, 9), table=TABLE))
    return net


def elementwise(channels: int, table: Array | None = None) -> Reference:
    net = Reference(pixels(3, 4, 5, channels))
    for places in (False, True):
        for slopes in (False, True):
            last = net.affine(0, places=places, slopes=slopes, table=table)
    net.output(net.multiply(last, net.multiply(0, last, low=50), table=table))
    return net


def resampled(channels: int, table: Array | None = None, *, height: int = 7, floats: bool = False) -> Reference:
    """Windows of every size at every place, with weights of either sign. The first one sees the whole image."""
    net = Reference(pixels(2, height, 5, channels))
    random = np.random.default_rng(3)

    def some(results: int, length: int) -> Array:
        weights_of = random.normal(0.0, 0.5, (results, length)).astype("f4")
        for row in weights_of:
            begin, end = sorted(random.choice(length + 1, 2, replace=False))
            row[:begin], row[end:] = 0, 0
        weights_of[0] = random.normal(0.0, 0.5, length)
        return weights_of

    first = net.resample(0, some(4, height), some(11, 5))
    if floats:
        net.resample(first, some(3, 4), some(6, 11), floats=True)
    else:
        net.output(net.resample(first, some(1, 4), some(6, 11), table=table))
    return net


def between(channels: int, *, floats: bool = False) -> Reference:
    """Windows of one or two rows and columns, as those of bilinear interpolation."""
    net, random = Reference(pixels(2, 7, 5, channels)), np.random.default_rng(4)

    def some(results: int, length: int) -> Array:
        weights_of = np.zeros((results, length), "f4")
        for number, row in enumerate(weights_of):
            begin, count = number % (length - 1), 1 + number // 2 % 2
            row[begin : begin + count] = random.normal(0.0, 0.7, count)
        return weights_of

    found = net.resample(0, some(9, 7), some(11, 5), floats=floats)
    if not floats:
        net.output(found)
    return net


def results(channels: int) -> Reference:
    """Several results side by side, one of them read again, and a border around what was moved."""
    net = Reference(pixels(3, 1, 1, channels))
    net.conv(0, weights(6, channels, 1, 1), floats=True)
    first = net.result
    assert first is not None
    net.output(net.conv(0, weights(5, channels, 1, 1, seed=4)))
    second = net.result
    assert second is not None
    net.global_average(0, floats=True)
    assert net.result is not None
    net.result = np.concatenate([first, second, net.result], 1)
    floats = [layer for layer in net.program.layers if Flag.FLOAT_OUT in layer.flags]
    for layer, offset in zip(floats, (0, 6, 11), strict=True):
        layer.fields["channel_offset"] = offset
    net.program.outputs = net.result.shape[1]
    return net


def by_blocks(width: int, channels: int) -> Reference:
    """Pixels read two by two: the words of four channels eight at a time, and the rest."""
    net = Reference(pixels(3, 6, width, channels), block=2)
    net.output(net.conv(0, weights(20, 4 * channels, 2, 2), pad=(1, 1), fill=9))
    return net


def wide_average() -> Reference:
    """Sums of more values than 16 bits hold."""
    net = Reference(np.full((1, 300, 300, 3), 255, np.uint8))
    net.global_average(0, floats=True)
    return net


FITTING = (
    *("1x1 dense", "1x1 odd channels", "3x3", "3x3 dilated", "7x7 stride of four channels"),
    *("many weights", "groups of 24", "groups of 5 in 7 out", "clamped", "table", "depthwise 3x3", "depthwise 5x5"),
    *("depthwise 7x7", "depthwise 5x5 dilated", "depthwise 1x11"),
)
NETS: dict[str, Callable[[], Reference]] = {
    **{name: lambda name=name: convolution(name) for name in CONVOLUTIONS},
    **{
        f"{name}, up to {largest}": lambda name=name, largest=largest: fitting(name, largest)
        for name in FITTING
        for largest in (32, 64)
    },
    **{
        f"{name}, with zeros {seed}": lambda name=name, seed=seed: sparse(name, seed)
        for name in (
            *("1x1 dense", "3x3", "3x3 that reaches past the image", "7x7 stride of four channels"),
            *("many weights", "groups of 24"),
        )
        for seed in range(3)
    },
    "winograd": lambda: winograd((2, 8, 6, 32), 32),
    "winograd, odd": lambda: winograd((3, 7, 5, 48), 33, table=True),
    "winograd, without padding": lambda: winograd((2, 7, 8, 16), 20, pad=0),
    "winograd, many channels": lambda: winograd((2, 3, 3, 1024), 70),
    "winograd, many tiles": lambda: winograd((2, 20, 31, 64), 16),
    "winograd, tiles of six": lambda: winograd((2, 20, 31, 64), 40, table=True),
    "winograd, tiles of six without padding": lambda: winograd((3, 18, 34, 70), 45, pad=0),
    "winograd, tiles of six of many channels": lambda: winograd((4, 12, 12, 230), 96),
    "winograd, largest sums that fit": lambda: largest_sums(115),
    "winograd, sums that do not fit": lambda: largest_sums(116),
    "weights of -128": lambda: lowest_weights(1),
    "depthwise weights of -128": lambda: lowest_weights(40),
    "very many inputs": lambda: many_inputs(41_100, 127, floats=False),
    "very many inputs, float32 out": lambda: many_inputs(41_100, 127, floats=True),
    "inputs in two parts": lambda: many_inputs(170_000, 30, floats=False),
    "residual": lambda: residual(40, table=False),
    "residual and table": lambda: residual(33, table=True),
    "residual that reaches past the image": lambda: residual(33, table=True, dilation=4),
    **{
        f"residual of {channels}{' and table' if table else ''}, up to {largest}": (
            lambda channels=channels, table=table, largest=largest: residual(channels, table=table, largest=largest)
        )
        for channels in (6, 24, 41, 64)
        for table in (False, True)
        for largest in (32, 64)
    },
    **{
        f"slopes of {outputs}, up to {largest}": (
            lambda outputs=outputs, largest=largest: sloped((2, 5, 7, 19), outputs, largest=largest)
        )
        for outputs in (1, 10, 16, 33, 64)
        for largest in (32, 64, 127)
    },
    "slopes of groups": lambda: sloped((2, 6, 5, 48), 72, groups=6),
    "slopes of a depthwise": lambda: sloped((2, 6, 5, 40), 40, groups=40),
    "slopes of many weights": lambda: sloped((2, 3, 3, 600), 70),
    "slopes of one pixel": lambda: sloped((5, 1, 1, 130), 70, side=1),
    "slopes of winograd's tiles": lambda: sloped((2, 20, 31, 64), 40, winograd=True),
    "residual of a depthwise": lambda: residual(20, table=False, groups=20),
    "float32 out": lambda: floats_out(3, 70, 10),
    "float32 out, many": lambda: floats_out(5, 1280, 1001),
    "pools": lambda: pools(20),
    "pools of many channels": lambda: pools(130),
    "pools of more channels": lambda: pools(300),
    "gate": lambda: gate(70),
    "slices": slices,
    **{f"moves of {channels}": lambda channels=channels: moves(channels) for channels in (1, 3, 20, 70)},
    **{
        f"{make.__name__} {channels}{' and table' if table is not None else ''}": (
            lambda make=make, channels=channels, table=table: make(channels, table)
        )
        for make in (elementwise, resampled)
        for channels in (1, 19, 64, 130)
        for table in (None, TABLE)
    },
    "resampled, large windows": lambda: resampled(19, height=40),
    **{
        f"resampled to floats, {channels}": lambda channels=channels: resampled(channels, floats=True)
        for channels in (1, 3, 17, 19, 64, 130)
    },
    **{
        f"between {channels}{', to floats' * floats}": lambda channels=channels, floats=floats: between(
            channels, floats=floats
        )
        for channels in (1, 5, 8, 9, 16, 17)
        for floats in (False, True)
    },
    "several results": lambda: results(70),
    "pixels by blocks": lambda: by_blocks(54, 4),
    "pixels by blocks of six": lambda: by_blocks(10, 6),
    "wide average": wide_average,
}


def last_writers(net: Reference) -> dict[int, int]:
    """Return the last layer that writes each buffer."""
    return {number: layer for layer, number in enumerate(net.left) if number >= 0}
