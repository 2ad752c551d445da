"""Codes and weights with extreme values, and the shapes of convolutions, that tests of the kernels share."""

from __future__ import annotations

import numpy as np

from helpers.native_reference import Array

TABLE = np.random.default_rng(5).permutation(256).astype(np.uint8)


def pixels(*shape: int, seed: int = 0) -> Array:
    """Return codes; a quarter of them are 0 and a quarter 255."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, shape, dtype=np.uint8)
    return np.where(random.random(shape) < 0.5, random.choice(np.array([0, 255], np.uint8), shape), codes)


def weights(*shape: int, seed: int = 1) -> Array:
    """Return codes; half of them are -127 or 127."""
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, shape, dtype=np.int8)
    return np.where(random.random(shape) < 0.5, random.choice(np.array([-127, 127], np.int8), shape), codes)


CONVOLUTIONS = {
    # (batch, height, width, channels), (outputs, inputs of a group, height, width), how
    "1x1 dense": ((2, 7, 5, 64), (48, 64, 1, 1), {}),
    "1x1 few channels": ((3, 5, 3, 3), (1, 3, 1, 1), {}),
    "1x1 odd channels": ((2, 9, 11, 37), (33, 37, 1, 1), {}),
    "1x1 stride": ((2, 9, 9, 24), (40, 24, 1, 1), {"stride": 2}),
    "1x1 one pixel": ((5, 1, 1, 130), (257, 130, 1, 1), {}),
    "3x3": ((2, 10, 9, 16), (24, 16, 3, 3), {"pad": (1, 1), "fill": 77}),
    "3x3 wide image": ((1, 3, 70, 5), (17, 5, 3, 3), {"pad": (1, 1), "fill": 255}),
    "3x3 narrow image": ((2, 40, 1, 6), (20, 6, 3, 3), {"pad": (1, 1), "fill": 3}),
    "3x3 stride": ((2, 11, 13, 20), (64, 20, 3, 3), {"stride": 2, "pad": (1, 1), "fill": 9}),
    "3x3 stride, few outputs of many inputs": (
        (12, 14, 14, 256),
        (40, 256, 3, 3),
        {"stride": 2, "pad": (1, 1), "fill": 31},
    ),
    "1x1 stride, many channels": ((3, 13, 14, 200), (70, 200, 1, 1), {"stride": 2}),
    "3x3 dilated": ((1, 12, 12, 10), (33, 10, 3, 3), {"dilation": 2, "pad": (2, 2), "fill": 1}),
    "3x3 that reaches past the image": (
        (2, 9, 33, 20),
        (40, 20, 3, 3),
        {"dilation": 12, "pad": (12, 12), "fill": 77, "table": TABLE},
    ),
    "3x3 that reaches past a larger image": (
        (3, 17, 21, 70),
        (33, 70, 3, 3),
        {"dilation": 9, "pad": (9, 9), "fill": 255, "low": 30, "high": 200},
    ),
    "5x5 dilated": ((1, 11, 19, 12), (16, 12, 5, 5), {"dilation": 5, "pad": (10, 10), "fill": 3}),
    "3x1 dilated": ((3, 5, 7, 12), (20, 12, 3, 1), {"dilation": 4, "pad": (4, 0), "fill": 200}),
    "1x3 dilated": ((3, 5, 40, 12), (20, 12, 1, 3), {"dilation": 17, "pad": (0, 17), "fill": 200}),
    "3x3 dilated, more padding than image": ((2, 2, 2, 8), (8, 8, 3, 3), {"dilation": 5, "pad": (9, 9), "fill": 60}),
    "3x3 dilated, few pixels of many": ((5, 1, 1, 130), (70, 130, 3, 3), {"dilation": 6, "pad": (6, 6), "fill": 9}),
    "3x3 without padding": ((2, 6, 6, 67), (31, 67, 3, 3), {}),
    "7x7 stride of four channels": ((2, 17, 15, 4), (64, 4, 7, 7), {"stride": 2, "pad": (3, 3), "fill": 114}),
    "7x7 stride of three channels": ((1, 23, 23, 3), (32, 3, 7, 7), {"stride": 4, "pad": (3, 3), "fill": 128}),
    "1x7": ((2, 9, 17, 12), (20, 12, 1, 7), {"pad": (0, 3), "fill": 50}),
    "7x1": ((2, 17, 9, 12), (20, 12, 7, 1), {"pad": (3, 0), "fill": 50}),
    "whole image": ((3, 5, 4, 11), (70, 11, 5, 4), {}),
    "windows as wide as the image": ((3, 40, 9, 6), (140, 6, 9, 9), {"table": TABLE}),
    "3x3 of many small images": ((21, 2, 2, 40), (130, 40, 3, 3), {"pad": (1, 1), "fill": 60}),
    "more padding than image": ((1, 2, 2, 8), (8, 8, 3, 3), {"pad": (3, 3), "fill": 60}),
    "many weights": ((2, 3, 3, 600), (96, 600, 3, 3), {"pad": (1, 1), "fill": 0}),
    "groups of 1 in 3 out": ((2, 6, 6, 20), (60, 1, 3, 3), {"groups": 20, "pad": (1, 1), "fill": 4}),
    "groups of 4": ((2, 6, 6, 64), (64, 4, 3, 3), {"groups": 16, "pad": (1, 1), "fill": 4}),
    "groups of 24": ((2, 6, 5, 72), (72, 24, 3, 3), {"groups": 3, "pad": (1, 1), "fill": 4, "stride": 2}),
    "groups of 8 in 12 out": ((2, 5, 7, 40), (60, 8, 3, 3), {"groups": 5, "pad": (1, 1), "fill": 4, "table": TABLE}),
    "groups of 12": ((1, 7, 6, 84), (84, 12, 3, 3), {"groups": 7, "pad": (1, 1), "fill": 4, "low": 30, "high": 200}),
    "groups of 16": ((2, 5, 6, 80), (80, 16, 3, 3), {"groups": 5, "pad": (1, 1), "fill": 4}),
    "groups of 20 in 8 out": ((1, 6, 5, 100), (40, 20, 1, 3), {"groups": 5, "pad": (0, 1), "fill": 4}),
    "groups of 48": ((1, 5, 4, 144), (144, 48, 3, 3), {"groups": 3, "pad": (1, 1), "fill": 4}),
    "groups of 32": ((1, 6, 6, 96), (96, 32, 3, 3), {"groups": 3, "pad": (1, 1), "fill": 4}),
    "groups of 5 in 7 out": ((2, 4, 4, 45), (63, 5, 1, 1), {"groups": 9}),
    "groups of 40 in 56 out": ((1, 4, 4, 80), (112, 40, 3, 3), {"groups": 2, "pad": (1, 1), "fill": 4}),
    "depthwise 3x3": ((2, 9, 7, 64), (64, 1, 3, 3), {"groups": 64, "pad": (1, 1), "fill": 99}),
    "depthwise 3x3, odd": ((3, 8, 8, 70), (70, 1, 3, 3), {"groups": 70, "pad": (1, 1), "fill": 99}),
    "depthwise 3x3 of 24": ((2, 7, 9, 24), (24, 1, 3, 3), {"groups": 24, "pad": (1, 1), "fill": 99}),
    "depthwise 3x3 of 128 and 16": ((2, 11, 5, 144), (144, 1, 3, 3), {"groups": 144, "pad": (1, 1), "fill": 5}),
    "depthwise 3x3 of 64 and 5": ((1, 1, 1, 69), (69, 1, 3, 3), {"groups": 69, "pad": (1, 1), "fill": 5}),
    "depthwise 3x3 stride of 24": (
        (2, 13, 9, 24),
        (24, 1, 3, 3),
        {"groups": 24, "pad": (1, 1), "stride": 2, "fill": 7},
    ),
    "depthwise 3x3 stride of 12": (
        (2, 19, 8, 12),
        (12, 1, 3, 3),
        {"groups": 12, "pad": (0, 0), "stride": 2, "low": 30, "high": 200},
    ),
    "depthwise 3x3 stride": ((2, 9, 10, 33), (33, 1, 3, 3), {"groups": 33, "pad": (1, 1), "stride": 2, "fill": 7}),
    "depthwise 5x5": ((2, 9, 7, 24), (24, 1, 5, 5), {"groups": 24, "pad": (2, 2), "fill": 255}),
    "depthwise 5x5 stride": ((2, 11, 13, 65), (65, 1, 5, 5), {"groups": 65, "pad": (2, 2), "stride": 2, "fill": 1}),
    "depthwise 7x7": ((1, 9, 9, 16), (16, 1, 7, 7), {"groups": 16, "pad": (3, 3), "fill": 1}),
    "depthwise 3x3 dilated": ((1, 9, 9, 16), (16, 1, 3, 3), {"groups": 16, "pad": (2, 2), "dilation": 2, "fill": 1}),
    "depthwise 3x3 stride 3": ((1, 9, 9, 16), (16, 1, 3, 3), {"groups": 16, "stride": 3}),
    "depthwise 3x3 stride 3, dilated": (
        (2, 13, 12, 70),
        (70, 1, 3, 3),
        {"groups": 70, "stride": 3, "pad": (2, 2), "dilation": 2, "fill": 6},
    ),
    "depthwise 5x5 dilated": (
        (2, 9, 11, 40),
        (40, 1, 5, 5),
        {"groups": 40, "pad": (4, 4), "dilation": 2, "fill": 250, "table": TABLE},
    ),
    "depthwise 9x9 of a wide image": ((1, 4, 201, 20), (20, 1, 9, 9), {"groups": 20, "pad": (4, 4), "fill": 3}),
    "depthwise 31x31": ((1, 5, 9, 65), (65, 1, 31, 31), {"groups": 65, "pad": (15, 15), "fill": 9, "low": 30}),
    "depthwise 1x11": ((2, 3, 13, 33), (33, 1, 1, 11), {"groups": 33, "pad": (0, 5), "fill": 8}),
    "depthwise 2x9 dilated": ((1, 5, 31, 20), (20, 1, 2, 9), {"groups": 20, "dilation": 3, "pad": (1, 4), "fill": 4}),
    "depthwise 11x1": ((2, 13, 3, 33), (33, 1, 11, 1), {"groups": 33, "pad": (5, 0), "fill": 8}),
    "depthwise 3x200": ((1, 3, 230, 64), (64, 1, 3, 200), {"groups": 64}),
    "depthwise 1x3000": ((1, 2, 3007, 17), (17, 1, 1, 3000), {"groups": 17}),
    "depthwise 1x1": ((2, 3, 3, 129), (129, 1, 1, 1), {"groups": 129}),
    "depthwise 1x3": ((2, 5, 5, 20), (20, 1, 1, 3), {"groups": 20, "pad": (0, 1), "fill": 8}),
    "clamped": ((2, 5, 5, 20), (20, 20, 1, 1), {"low": 120, "high": 200}),
    "depthwise clamped": ((2, 5, 5, 20), (20, 1, 3, 3), {"groups": 20, "low": 120, "high": 200}),
    "table": ((2, 5, 7, 20), (36, 20, 1, 1), {"table": TABLE}),
    "depthwise table": ((2, 9, 9, 70), (70, 1, 3, 3), {"groups": 70, "pad": (1, 1), "table": TABLE}),
}
