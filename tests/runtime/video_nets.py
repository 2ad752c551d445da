"""Networks of videos that together use every kernel that knows frames, at odd sizes and with extreme values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from native_convolutions import TABLE, pixels, weights

from helpers.native_reference import Array
from helpers.video_reference import VideoReference

CONVOLUTIONS = {
    # (batch, frames, height, width, channels), (outputs, inputs of a group, frames, height, width), how
    "3x3x3": ((2, 4, 6, 5, 16), (24, 16, 3, 3, 3), {"pad": (1, 1, 1), "fill": 77}),
    "3x3x3 stride": ((2, 5, 9, 11, 20), (40, 20, 3, 3, 3), {"pad": (1, 1, 1), "stride": (2, 2, 2), "fill": 9}),
    "3x3x3 wide": ((1, 2, 3, 40, 5), (17, 5, 3, 3, 3), {"pad": (1, 1, 1), "fill": 255}),
    "3x3x3 without padding": ((2, 5, 6, 7, 33), (31, 33, 3, 3, 3), {}),
    "3x3x3 dilated": ((1, 7, 8, 9, 10), (33, 10, 3, 3, 3), {"pad": (2, 1, 3), "dilation": (2, 1, 3), "fill": 1}),
    "1x3x3": ((2, 3, 9, 10, 64), (32, 64, 1, 3, 3), {"pad": (0, 1, 1), "fill": 14}),
    "1x3x3 of many frames": ((1, 7, 20, 31, 64), (40, 64, 1, 3, 3), {"pad": (0, 1, 1), "fill": 6, "table": TABLE}),
    "3x3x3, tiles of six": ((1, 4, 14, 20, 32), (33, 32, 3, 3, 3), {"pad": (1, 1, 1), "fill": 0}),
    "3x3x3, tiles of six, dilated": (
        (1, 7, 13, 17, 40), (32, 40, 3, 3, 3), {"pad": (2, 1, 1), "dilation": (2, 1, 1), "fill": 5}
    ),
    "3x3x3, tiles of six, stride of frames": (
        (2, 5, 12, 12, 33), (40, 33, 3, 3, 3), {"pad": (1, 1, 1), "stride": (2, 1, 1), "fill": 0, "table": TABLE}
    ),
    "5x3x3, tiles of six, many frames of padding": (
        (2, 3, 9, 16, 40), (32, 40, 5, 3, 3), {"pad": (4, 1, 1), "fill": 0}
    ),
    "3x1x1": ((2, 6, 5, 4, 45), (30, 45, 3, 1, 1), {"pad": (1, 0, 0), "fill": 8}),
    "3x1x1 stride": ((2, 6, 5, 4, 45), (30, 45, 3, 1, 1), {"pad": (1, 0, 0), "stride": (2, 1, 1), "fill": 8}),
    "1x1x1": ((2, 3, 5, 7, 40), (33, 40, 1, 1, 1), {}),
    "1x1x1 stride": ((2, 5, 9, 7, 40), (33, 40, 1, 1, 1), {"stride": (2, 2, 2)}),
    "1x1x1 stride of frames": ((2, 6, 4, 4, 24), (33, 24, 1, 1, 1), {"stride": (3, 1, 1)}),
    "3x7x7 stride of three channels": (
        (1, 4, 21, 19, 3), (24, 3, 3, 7, 7), {"pad": (1, 3, 3), "stride": (1, 2, 2), "fill": 114}
    ),
    "5x7x7 stride, wide": ((1, 8, 17, 40, 4), (8, 4, 5, 7, 7), {"pad": (2, 3, 3), "stride": (1, 2, 2), "fill": 50}),
    "3x3x5, as wide as the video": ((2, 4, 20, 5, 12), (140, 12, 3, 3, 5), {"pad": (1, 0, 0), "fill": 9}),
    "1x9x1 stride of rows": ((2, 3, 40, 1, 5), (70, 5, 1, 9, 1), {"stride": (1, 4, 1), "table": TABLE}),
    "more padding than video": ((1, 2, 2, 2, 8), (8, 8, 3, 3, 3), {"pad": (3, 3, 3), "fill": 60}),
    "many weights": ((2, 2, 2, 3, 260), (70, 260, 3, 3, 3), {"pad": (1, 1, 1), "fill": 3}),
    "groups of 4": ((2, 4, 6, 6, 64), (64, 4, 3, 3, 3), {"groups": 16, "pad": (1, 1, 1), "fill": 4}),
    "groups of 24": ((1, 3, 6, 5, 72), (72, 24, 3, 3, 3), {"groups": 3, "pad": (1, 1, 1), "stride": (1, 2, 2)}),
    "depthwise 3x3x3": ((2, 4, 9, 7, 70), (70, 1, 3, 3, 3), {"groups": 70, "pad": (1, 1, 1), "fill": 99}),
    "depthwise 3x3x3 stride": (
        (2, 4, 9, 8, 24), (24, 1, 3, 3, 3), {"groups": 24, "pad": (1, 1, 1), "stride": (1, 2, 2), "fill": 99}
    ),
    "depthwise 5x1x1": ((2, 6, 5, 5, 24), (24, 1, 5, 1, 1), {"groups": 24, "pad": (2, 0, 0), "fill": 99}),
    "depthwise 1x3x3": ((2, 3, 11, 6, 64), (64, 1, 1, 3, 3), {"groups": 64, "pad": (0, 1, 1), "fill": 7}),
    "depthwise 3x5x5": ((1, 4, 9, 12, 40), (40, 1, 3, 5, 5), {"groups": 40, "pad": (1, 2, 2), "fill": 7, "low": 20}),
    "depthwise 3x3x3 dilated": (
        (1, 6, 7, 8, 17), (17, 1, 3, 3, 3), {"groups": 17, "pad": (2, 1, 1), "dilation": (2, 1, 1), "fill": 7}
    ),
}  # fmt: skip


def start(shape: tuple[int, ...]) -> tuple[VideoReference, int]:
    """Return a network and its first video."""
    n, frames, height, width, channels = shape
    net = VideoReference(pixels(n, frames * height, width, channels))
    return net, net.frames(0, frames)


def convolution(name: str, largest: int = 127) -> VideoReference:
    shape, kernel, how = CONVOLUTIONS[name]
    net, video = start(shape)
    limited: Array = np.clip(weights(*kernel), -largest, largest)
    net.output(net.convolve(video, limited, **how))
    return net


def residual() -> VideoReference:
    """A block with a shortcut, an addition with a table and a clamp, in videos with borders of their own."""
    net, video = start((2, 4, 6, 7, 32))
    one = net.convolve(video, weights(32, 32, 3, 3, 3), pad=(1, 1, 1), fill=20)
    two = net.convolve(one, weights(48, 32, 1, 3, 3, seed=2), pad=(0, 1, 1), stride=(1, 2, 2), fill=30, low=30)
    short = net.convolve(video, weights(48, 32, 1, 1, 1, seed=3), stride=(2, 2, 2))
    three = net.convolve(
        two, weights(48, 48, 3, 1, 1, seed=4), pad=(1, 0, 0), stride=(2, 1, 1), fill=30, residual=short, table=TABLE
    )
    net.output(net.convolve(three, weights(20, 48, 2, 3, 4, seed=5)))
    return net


def pools() -> VideoReference:
    net, video = start((2, 6, 9, 10, 37))
    two = net.largest(video, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    three = net.largest(two, (3, 1, 1), (2, 1, 1), (1, 0, 0))
    net.largest(two, (2, 3, 2), (1, 1, 2), (1, 1, 0), (2, 1, 1))
    net.average(two, (3, 3, 3), (2, 1, 2), (1, 1, 1), include=False)
    net.average(two, (2, 2, 1), (2, 2, 1), (0, 0, 0), include=True)
    net.output(net.one(three))
    return net


def elementwise() -> VideoReference:
    net, video = start((2, 3, 4, 5, 19))
    other = net.convolve(video, weights(19, 19, 3, 3, 3), pad=(1, 1, 1), fill=4)
    summed = net.add(video, other)
    product = net.multiply(summed, other, table=TABLE)
    places = net.affine(product, places=True, slopes=False)
    channels = net.affine(places, places=False, slopes=True)
    gate = net.mean(channels)
    gated = net.scale(net.table(channels, TABLE), gate)
    last = net.convolve(gated, weights(9, 19, 3, 3, 3, seed=3), pad=(1, 1, 1), fill=9)
    net.output(net.one(last))
    return net


def resized(*, floats: bool = False) -> VideoReference:
    """Three linear interpolations at once, and a reduction to fewer frames."""
    net, video = start((2, 3, 4, 5, 19))
    frames, rows, columns = (linear(*each) for each in ((3, 6), (4, 8), (5, 7)))
    wide = net.resized(video, frames, rows, columns)
    if floats:
        net.resized(wide, linear(6, 3), linear(8, 5), np.eye(7), floats=True)
    else:
        net.output(net.resized(wide, linear(6, 2), np.eye(8), np.eye(7)))
    return net


def linear(length: int, result: int) -> Array:
    """Return the weights (result, length) of an interpolation whose ends meet."""
    at = np.arange(result) * (length - 1) / (result - 1)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(length)))


VIDEO_NETS: dict[str, Callable[[], VideoReference]] = {
    **{f"video {name}": lambda name=name: convolution(name) for name in CONVOLUTIONS},
    **{
        f"video {name}, up to {largest}": lambda name=name, largest=largest: convolution(name, largest)
        for name in (
            "3x3x3",
            "3x3x3, tiles of six",
            "3x7x7 stride of three channels",
            "groups of 24",
            "depthwise 3x3x3",
        )
        for largest in (32, 64)
    },
    "video residual": residual,
    "video pools": pools,
    "video elementwise": elementwise,
    "video resized": resized,
    "video resized to floats": lambda: resized(floats=True),
}
