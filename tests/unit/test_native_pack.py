"""Packed weights, read back in the order in which the kernels walk through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpupack.graph.weight_grid import round_to_grid
from cpupack.stages.quantize.native.pack import BLOCK, interleave_channels, pack_conv, pack_depthwise, pad_channels
from cpupack.stages.quantize.native.program import Buffer
from cpupack.stages.quantize.native.weights import finish_of, quantize_weights


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-127, 128, shape, dtype=np.int8)


def dense_sums(packed: np.ndarray, image: np.ndarray, starts: list[int], outputs: int) -> np.ndarray:
    """Multiply as operators/conv.inc does: for each block, run, chunk, half and four bytes, sixteen outputs at once."""
    sums = np.zeros(len(packed) * BLOCK, np.int64)
    for block, runs in enumerate(packed):
        for run, chunks in enumerate(runs):
            at = starts[block] + run * image.shape[1]
            flat = np.concatenate([image.reshape(-1)[at:], np.zeros(4096, np.int64)])
            for chunk, halves in enumerate(chunks):
                for half, quads in enumerate(halves):
                    for quad, lanes in enumerate(quads):
                        four = flat[4 * (chunk * len(quads) + quad) :][:4]
                        first = block * BLOCK + 16 * half
                        sums[first : first + 16] += lanes.astype(np.int64) @ four
    return sums[:outputs]


@pytest.mark.parametrize(
    ("outputs", "inputs", "height", "width"),
    [(5, 3, 1, 1), (32, 64, 1, 1), (33, 65, 3, 3), (64, 4, 7, 7), (40, 200, 1, 3)],
)
def test_a_dense_convolution(outputs: int, inputs: int, height: int, width: int) -> None:
    codes = weights(outputs, inputs, height, width)
    packed = pack_conv(codes, 1, dilated=False)
    assert packed.chunk_bytes <= 64
    assert packed.chunk_bytes % 4 == 0
    assert 0 <= packed.chunks * packed.chunk_bytes - width * inputs < 64  # what kernels/engine/validate.c allows
    image = np.random.default_rng(1).integers(0, 256, (height, width * inputs))  # one window as NHWC memory
    expected = np.einsum("oihw,hwi->o", codes.astype(np.int64), image.reshape(height, width, inputs))
    np.testing.assert_array_equal(dense_sums(packed.weights, image, [0] * 99, outputs), expected)


@pytest.mark.parametrize(
    ("groups", "group_out", "group_in"), [(8, 4, 4), (3, 24, 24), (20, 3, 1), (2, 64, 32), (9, 7, 5)]
)
def test_a_block_of_grouped_outputs_reads_from_its_first_group_on(groups: int, group_out: int, group_in: int) -> None:
    codes = weights(groups * group_out, group_in, 1, 1)
    packed = pack_conv(codes, groups, dilated=False)
    image = np.random.default_rng(1).integers(0, 256, (1, groups * group_in))
    starts = [BLOCK * block // packed.span_out * packed.span_in for block in range(len(packed.weights))]
    own = image.reshape(groups, group_in)
    expected = np.einsum("goi,gi->go", codes.reshape(groups, group_out, group_in).astype(np.int64), own).reshape(-1)
    np.testing.assert_array_equal(dense_sums(packed.weights, image, starts, len(codes)), expected)


@pytest.mark.parametrize(
    ("size", "stride", "dilated", "several"),
    [
        (3, 1, False, 1),
        (3, 2, False, 1),
        (5, 1, False, 1),
        (5, 2, False, 1),
        (3, 1, True, 0),
        (7, 1, False, 0),
        (3, 3, False, 0),
    ],
)
def test_a_depthwise_convolution(size: int, stride: int, *, dilated: bool, several: int) -> None:
    channels = 70
    codes = weights(channels, size, size)
    packed, runs = pack_depthwise(codes, stride, dilated=dilated)
    assert runs == several
    blocks, height, outputs, groups, *_ = packed.shape
    assert (blocks, height) == (2, size)
    # channel = 64 block + 16 lane + 4 vector + word, and the taps of the output's place among groups of four pixels
    taps = packed.transpose(0, 5, 4, 6, 1, 2, 3, 7).reshape(blocks * 64, height, outputs, 4 * groups)
    for output in range(outputs):
        places = [output * stride + tap if several else 4 * tap for tap in range(size)]
        np.testing.assert_array_equal(taps[:channels, :, output][..., places], codes)
        rest = np.delete(taps[:, :, output], places, axis=2)
        assert not rest.any()
    assert not taps[channels:].any()


def test_numbers_of_channels_are_padded_and_interleaved() -> None:
    values = np.arange(70.0)
    np.testing.assert_array_equal(pad_channels(values, 32), np.r_[values, np.zeros(26)])
    sums = interleave_channels(values).reshape(2, 4, 4, 4)  # block, vector, lane, word
    block, vector, lane, word = np.indices(sums.shape)
    channel = 64 * block + 16 * lane + 4 * vector + word
    np.testing.assert_array_equal(sums, np.where(channel < 70, channel, 0))


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_lie_on_the_grid_that_corrections_know(*, per_channel: bool) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    codes, scales = quantize_weights(weight, per_channel=per_channel)
    assert scales.shape == (6,)
    assert (len(set(scales)) > 1) == per_channel
    grid = round_to_grid(weight, 0 if per_channel else None).numpy()
    np.testing.assert_allclose(codes * scales.reshape(-1, 1, 1, 1), grid, rtol=1e-6)
    assert not codes[2].any()


def test_factor_and_shift_take_sums_of_codes_to_codes() -> None:
    random = np.random.default_rng(0)
    codes, source = weights(3, 5, 2, 2), Buffer(2, 2, 5, scale=0.02, zero_point=31)
    scales, bias = random.uniform(0.01, 0.1, 3), random.normal(size=3)
    factor, shift = finish_of(codes, scales, bias, source, (0.5, 17))
    x = random.integers(0, 256, (5, 2, 2))
    values = np.einsum("oihw,ihw->o", codes * scales.reshape(-1, 1, 1, 1), (x - 31) * 0.02) + bias
    sums = np.einsum("oihw,ihw->o", codes.astype(np.int64), x)
    np.testing.assert_allclose(sums * factor + shift, values / 0.5 + 17)
