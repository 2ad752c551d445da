"""Weights for 16-bit sums: what the AVX2 kernels add, walked through as they do, and the closest weights that fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cpupack.accuracy import sqnr_db
from cpupack.stages.quantize.native.fit import Fit, fit_of, fit_of_depthwise, limit_conv, limit_depthwise
from cpupack.stages.quantize.native.pack import pack_conv, pack_depthwise
from cpupack.stages.quantize.native.weights import quantize_weights

LARGEST, SMALLEST = 2**15 - 1, -(2**15)


def extreme_sums(codes: np.ndarray, groups: int, together: int) -> tuple[int, int]:
    """Return the largest and smallest 16-bit sums that ``kernels/avx2/conv_in_registers.inc`` makes of packed weights.

    There 16 columns of a chunk are (chunk / 4, 16, 4): two products of four are added in 16 bits, and with ``together``
    4 those of the next four, as long as eight are left.
    """
    packed = pack_conv(codes, groups, dilated=False)
    columns = packed.weights.reshape(-1, packed.chunk_bytes // 4, 16, 4).astype(np.int64)
    pairs = columns.reshape(*columns.shape[:3], 2, 2)
    high, low = 255 * pairs.clip(min=0).sum(-1), 255 * pairs.clip(max=0).sum(-1)
    if together == 4:
        whole = high.shape[1] // 2 * 2
        high, low = (
            np.concatenate([each[:, :whole:2] + each[:, 1:whole:2], each[:, whole:]], 1) for each in (high, low)
        )
    return int(high.max()), int(low.min())


SHAPES = [((5, 8, 1, 1), 1), ((40, 13, 3, 3), 1), ((7, 70, 1, 1), 1), ((12, 4, 3, 3), 3), ((33, 3, 7, 7), 1)]


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("largest", [20, 32, 40, 64, 70, 127])
def test_what_fits_is_what_the_kernels_sums_hold(shape: tuple[int, ...], groups: int, largest: int) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        codes = random.integers(-largest, largest + 1, shape, dtype=np.int8)
        codes[random.random(shape) < random.random()] = 0
        fits = [
            low >= SMALLEST and high <= LARGEST for high, low in (extreme_sums(codes, groups, each) for each in (4, 2))
        ]
        expected = Fit.FOURS if fits[0] else Fit.PAIRS if fits[1] else Fit.UNKNOWN
        assert fit_of(codes, groups, dilated=False) == expected


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_limited_weights_fit_and_are_close(shape: tuple[int, ...], groups: int, per_channel: bool) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    codes, scales = limit_conv(weight, groups, dilated=False, per_channel=per_channel)
    fit = fit_of(codes, groups, dilated=False)
    assert fit in {Fit.FOURS, Fit.PAIRS}
    together = {Fit.FOURS: 4, Fit.PAIRS: 2}[fit]
    high, low = extreme_sums(codes, groups, together)
    assert (high <= LARGEST, low >= SMALLEST) == (True, True)
    assert (len(set(scales.tolist())) == 1) is not per_channel
    # Nearest codes up to 32 (fours) or 64 (pairs) fit without a look: what was found is no worse.
    found = np.square(codes * scales.reshape(-1, 1, 1, 1) - weight.numpy()).sum()
    largest = {Fit.FOURS: 32, Fit.PAIRS: 64}[fit]
    _, finest = quantize_weights(weight, per_channel=per_channel)
    coarse = finest.reshape(-1, 1, 1, 1) * 127 / largest
    assert found <= np.square(np.rint(weight.numpy() / coarse) * coarse - weight.numpy()).sum() * (1 + 1e-6)


def test_weights_on_the_grid_that_fit_are_left_as_they_are() -> None:
    """As corrections leave them. One weight of four is not zero."""
    codes = np.zeros((6, 64, 1, 1), np.int8)
    codes[:, ::8] = np.random.default_rng(0).integers(-126, 127, (6, 8, 1, 1))
    codes[:, 0] = 127
    scale = np.float32(0.013)
    found, scales = limit_conv(torch.from_numpy(codes * scale), 1, dilated=False, per_channel=True)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(scales, scale, rtol=1e-6)


def test_where_fours_cost_too_much_pairs_are_taken() -> None:
    """Three of sixteen fours are of equal weights, the others small: codes of 32 leave 34 dB, of 64 leave 40 dB."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(4, 64, 1, 1, generator=generator) * 0.04 - 0.02
    for first in (0, 1, 4, 5):
        weight[:, first:24:8] = 0.98 + 0.02 * torch.rand(4, 3, 1, 1, generator=generator)
    codes, scales = limit_conv(weight, 1, dilated=False, per_channel=True)
    assert fit_of(codes, 1, dilated=False) == Fit.PAIRS
    assert sqnr_db(weight.numpy(), (codes * scales.reshape(-1, 1, 1, 1)).astype(np.float32)) > 38.0


def best_error(exact: np.ndarray) -> float:
    """Return the least squared error of codes whose positive and negative sums are within 128, from all there are.

    Each code is the nearest or less, and lower by at most 12 more than the others of its sum: all are tried.
    """
    best = 0.0
    for part in (exact[exact > 0], -exact[exact < 0]):
        nearest = np.rint(part)
        if nearest.sum() <= 128:
            best += np.square(nearest - part).sum()
            continue
        even = int((nearest.sum() - 128) // len(part))
        choices = itertools.product(*(np.arange(max(0, int(each) - even - 12), int(each) + 1) for each in nearest))
        best += min(
            np.square(np.array(codes) - part).sum() for codes in choices if sum(codes) <= 128
        )  # fmt: skip
    return float(best)


def test_sums_that_are_too_large_are_clipped_with_the_least_error() -> None:
    """Four weights beside a larger one that sets the grid: against every choice of codes."""
    random = np.random.default_rng(0)
    for _ in range(12):
        weight = np.zeros((1, 16, 1, 1), np.float32)
        weight[0, [0, 1, 4, 5], 0, 0] = random.uniform(20.0, 60.0, 4) * random.choice([-1.0, 1.0, 1.0, 1.0], 4)
        weight[0, 8, 0, 0] = 127.0
        codes, scales = limit_conv(torch.from_numpy(weight), 1, dilated=False, per_channel=True)
        exact = weight[0, [0, 1, 4, 5], 0, 0] / scales[0]
        found = np.square(codes[0, [0, 1, 4, 5], 0, 0] - exact).sum()
        assert found <= best_error(exact) + 1e-4


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 3), (7, 7), (1, 1), (3, 1)])
def test_depthwise_weights_fit_wherever_a_pair_begins(kernel: tuple[int, int]) -> None:
    weight = torch.rand(70, 1, *kernel, generator=torch.Generator().manual_seed(0)) + 0.2
    codes, scales = limit_depthwise(weight, per_channel=True)
    assert sqnr_db(weight.numpy(), (codes * scales.reshape(-1, 1, 1, 1)).astype(np.float32)) > 38.0  # of 6 bits or more
    for stride in (1, 2):
        assert fit_of_depthwise(codes[:, 0], stride, dilated=False) == Fit.PAIRS
        packed, _ = pack_depthwise(codes[:, 0], stride, dilated=False)
        pairs = 255 * packed.reshape(-1, 2).astype(np.int64)
        assert pairs.clip(min=0).sum(1).max() <= LARGEST
        assert pairs.clip(max=0).sum(1).min() >= SMALLEST
    full = np.full((3, 3, 3), 127, np.int8)
    assert fit_of_depthwise(full, 1, dilated=False) == Fit.UNKNOWN
