"""16-bit saturation: the sums against a saturating computation in numpy and a real CPU path, and what is decided."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from tiny_models import Recorder, calibrated, recipe, run, samples, target
from torch import nn

from cpupack.artifacts import QuantizedModel, Samples
from cpupack.errors import VerificationError
from cpupack.stages.quantize import quantize
from cpupack.stages.saturate import make_safe, overflowing_layers
from cpupack.stages.saturate.pairs import Geometry, PairSums, PairWatcher
from cpupack.targets import Target

Codes = np.ndarray[Any, np.dtype[np.int64]]


def brute_force(codes: Codes, weights: Codes, geometry: Geometry, zero_point: int) -> tuple[int, int, int]:
    """Return pairs, overflowing pairs and the largest overflow of a convolution, sum by sum.

    Every two consecutive weights in the order (kernel position, channel of the group), each multiplied by what it
    meets at every output position.
    """
    spatial = range(2)
    padded = np.pad(codes, [(0, 0), (0, 0), *((pad, pad) for pad in geometry.padding)], constant_values=zero_point)
    kernel = weights.shape[2:]
    size = [
        (padded.shape[2 + d] - geometry.dilation[d] * (kernel[d] - 1) - 1) // geometry.stride[d] + 1 for d in spatial
    ]
    rows = len(weights) // geometry.groups
    channels = weights.shape[1]
    order = [(*position, channel) for position in product(*map(range, kernel)) for channel in range(channels)]
    pairs = overflows = largest = 0
    for row, (one, other) in product(range(len(weights)), list(pairwise(order))):
        first_channel = row // rows * channels
        products = []
        for y, x, channel in (one, other):
            seen = padded[
                :,
                first_channel + channel,
                y * geometry.dilation[0] :: geometry.stride[0],
                x * geometry.dilation[1] :: geometry.stride[1],
            ][:, : size[0], : size[1]]
            products.append(seen * weights[row, channel, y, x])
        sums = products[0] + products[1]
        saturated = np.clip(sums, -(2**15), 2**15 - 1)
        pairs += 1
        if (saturated != sums).any():
            overflows += 1
            largest = max(largest, int(np.abs(sums[saturated != sums]).max()))
    return pairs, overflows, largest


GEOMETRIES = {
    "dense": (Geometry(1, (1, 1), (1, 1), (1, 1)), (6, 5, 3, 3), 5),
    "one by one": (Geometry(1, (1, 1), (0, 0), (1, 1)), (8, 6, 1, 1), 6),
    "grouped": (Geometry(2, (1, 1), (1, 1), (1, 1)), (6, 3, 3, 3), 6),
    "depthwise": (Geometry(4, (1, 1), (1, 1), (1, 1)), (4, 1, 3, 3), 4),
    "depthwise, strided and dilated": (Geometry(4, (2, 1), (2, 1), (1, 2)), (8, 1, 3, 2), 4),
    "one channel": (Geometry(1, (1, 1), (0, 0), (1, 1)), (5, 1, 3, 3), 1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("zero_point", [0, 140])
def test_the_sums_are_those_of_every_pair(name: str, zero_point: int) -> None:
    geometry, shape, channels = GEOMETRIES[name]
    random = np.random.default_rng(0)
    weights = random.integers(-128, 128, shape)
    # Beta noise has the full range, and few pixels where both of a pair are large.
    codes = np.rint(random.beta(0.4, 0.8, (4, channels, 7, 6)) * 255).astype(np.int64)
    watcher = PairWatcher(torch.from_numpy(weights.astype(np.int8)), geometry)
    for batch in np.split(codes, 2):
        watcher.add(torch.from_numpy(batch.astype(np.uint8)), zero_point)
    found = watcher.finish()
    pairs, overflows, largest = brute_force(codes, weights, geometry, zero_point)
    assert 0 < overflows < pairs
    assert (found.pairs, found.overflows, found.largest) == (pairs, overflows, largest)


def test_a_stride_may_report_more_than_there_is_but_never_less() -> None:
    geometry = Geometry(1, (2, 2), (0, 0), (1, 1))
    codes = np.zeros((1, 2, 3, 3), np.int64)
    codes[:, :, 1, 1] = 255  # a 1 x 1 kernel of stride 2 steps over it
    weights = np.full((1, 2, 1, 1), 127)
    watcher = PairWatcher(torch.from_numpy(weights.astype(np.int8)), geometry)
    watcher.add(torch.from_numpy(codes.astype(np.uint8)), 0)
    assert brute_force(codes, weights, geometry, 0)[1] == 0
    assert watcher.finish() == PairSums(1, 2 * 127 * 255, 1, 2 * 127 * 255)


def test_linear_layers_pair_their_features() -> None:
    watcher = PairWatcher(torch.tensor([[100, 29, -100], [100, 28, -28]], dtype=torch.int8), Geometry())
    watcher.add(torch.full((2, 3, 3), 255, dtype=torch.uint8), 0)
    # 255 * (100 + 29) = 32895 overflows, 255 * (100 + 28) = 32640 does not, and unlike signs never do.
    assert watcher.finish() == PairSums(4, 32895, 1, 32895)


def test_negative_sums_reach_one_further() -> None:
    for sign, codes, overflows in ((1, (128, 128), 1), (-1, (128, 128), 0), (-1, (129, 128), 1)):
        watcher = PairWatcher(torch.tensor([[sign * 127 - (sign < 0)] * 2], dtype=torch.int8), Geometry())
        extra = torch.tensor([[codes[0] + 2 * (sign > 0), codes[1] + 2 * (sign > 0)]], dtype=torch.uint8)
        watcher.add(extra, 0)
        # 127 * 260 = 33020; -128 * 256 = -32768 is the least 16-bit number, -128 * 257 is beyond.
        assert watcher.finish().overflows == overflows


def test_transposed_convolutions_are_never_underestimated() -> None:
    weights = torch.full((4, 3, 2, 2), 100, dtype=torch.int8)  # (in, out, *kernel)
    watcher = PairWatcher(weights, Geometry(1, (2, 2), (0, 0), (1, 1), transposed=True))
    codes = torch.zeros((1, 4, 3, 3), dtype=torch.uint8)
    codes[0, 1, 0, 0], codes[0, 2, 0, 0] = 255, 255
    watcher.add(codes, 0)
    # One of three pairs of channels, at four positions, for three outputs; no last with a first channel.
    assert watcher.finish() == PairSums(3 * (4 * 3 + 3), 51000, 12, 51000)
