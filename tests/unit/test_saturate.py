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
import torch.nn.functional as F
from torch import nn

from cpupack.artifacts import QuantizedModel, Samples
from cpupack.build_facts import safety_in_words
from cpupack.errors import VerificationError
from cpupack.quantized_engine import engine as engine_of
from cpupack.stages.quantize import quantize
from cpupack.stages.saturate import make_safe, overflowing_layers
from cpupack.stages.saturate.pairs import Geometry, PairSums, PairWatcher
from cpupack.targets import Target
from helpers.tiny_models import Recorder, calibrated, host_bits, recipe, run, samples, target

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


class Functional(nn.Module):
    """Calls a function with its own weights: there is no module whose weights could be limited."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


def all_alike(channels: int = 8) -> nn.Module:
    """Return a model whose weights all quantize to 127: any two neighbours overflow with codes above 128."""
    module = nn.Sequential(nn.Conv2d(channels, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.25)
    return module


def at_most(value: float, shape: tuple[int, ...], count: int = 8) -> Samples:
    """Return samples that are 1 almost everywhere, and ``value`` in the first one at one place of every channel."""
    data = np.ones((count, *shape), np.float32)
    data[(0, ..., 0) if len(shape) > 1 else 0] = value
    return Samples(data, "crafted", tuple(map(str, range(count))))


def safe(
    module: nn.Module,
    data: Samples,
    engine: str = "onednn",
    observer: str = "minmax",
    **quantization: Any,
) -> tuple[QuantizedModel, Any, Recorder]:
    shape = data.data.shape[1:]
    spec = recipe(shape, quantize={"observer": observer, **quantization})
    model, stats = calibrated(module, spec, data)
    recorder = Recorder()

    def build(where: Target, limited: frozenset[str]) -> QuantizedModel:
        return quantize(stats, model.module, spec, where, limited)

    return (*make_safe(build, target(engine, 7, "avx2"), data, recorder), recorder)


@pytest.mark.parametrize("engine", ["onednn", "fbgemm"])
def test_a_model_made_to_saturate_gets_7_bits(engine: str) -> None:
    int8, report, recorder = safe(all_alike(), at_most(1.0, (8, 6, 6)), engine)
    assert int8.target.activation_bits == report.activation_bits == 7
    first = report.refused[0]
    assert (first.name, first.activation_bits, first.largest) == ("0", 8, 2 * 127 * 255)
    assert [each.decision for each in report.layers] == ["safe on these samples"] * 2
    assert report.limited == ()
    assert recorder.notes[0].startswith(
        f"{engine}: 8 bits are not safe without VNNI in 0 (284 of 284 pairs of weights)"
    )
    # 4 filters of 72 weights, each with its neighbour: 4 * 71 pairs.
    assert f"8 bits are not safe in {len(report.refused)} layer" in safety_in_words(report)


def test_values_beyond_the_range_limit_the_weights_of_their_layer() -> None:
    # The range ends at 1, so 2 has code 254 of "7" bits; what follows is clipped by the range of its own tensor.
    int8, report, _ = safe(all_alike(), at_most(2.0, (8, 6, 6)), observer="percentile", percentile=90.0)
    assert report.limited == ("0", "2")
    assert int8.target.activation_bits == 7
    assert [each.decision for each in report.layers] == ["safe for any input"] * 2
    assert all(each.bound <= 2 * 64 * 255 for each in report.layers)
    assert {each.activation_bits for each in report.refused} == {7, 8}
    assert safety_in_words(report).endswith("7-bit weights in 0, 2")


def test_limited_weights_are_as_close_as_7_bits_are() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3))
    data = samples()
    model, stats = calibrated(module, recipe(), data)
    full = quantize(stats, model.module, recipe(), target("fbgemm"))
    less = quantize(stats, model.module, recipe(), target("fbgemm"), {"0", "1"})
    for name in ("0", "1"):
        assert 63 <= less.module.get_submodule(name).weight().int_repr().abs().max() <= 64  # type: ignore[operator]
        assert full.module.get_submodule(name).weight().int_repr().abs().max() >= 127  # type: ignore[operator]
    expected = run(model, data)
    noise = [np.square(run(each, data) - expected).sum() for each in (full, less)]
    assert noise[0] < noise[1] < np.square(expected).sum() / 100


def test_8_bits_stay_where_no_pair_can_overflow() -> None:
    module = all_alike()
    with torch.no_grad():
        for parameter in module.parameters():  # neighbours of unlike signs
            parameter[:, ::2] *= -1.0
    int8, report, recorder = safe(module, at_most(1.0, (8, 6, 6)))
    assert int8.target.activation_bits == report.activation_bits == 8
    assert report.refused == ()
    assert recorder.notes == []
    assert safety_in_words(report).endswith("8-bit activations")


def test_made_up_samples_do_not_show_that_8_bits_are_safe() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    quiet = Samples(samples().data * 0.0, "zeros", samples().names)
    assert safe(module, quiet)[0].target.activation_bits == 8
    made_up = Samples(quiet.data, "synthetic", quiet.names, synthetic=True)
    assert safe(module, made_up)[0].target.activation_bits == 7


def test_what_overflows_in_the_end_fails_the_build() -> None:
    data = at_most(2.0, (6,), count=64)
    model, stats = calibrated(Functional(), recipe((6,), quantize={"observer": "percentile", "percentile": 90.0}), data)
    spec = recipe((6,), quantize={"observer": "percentile", "percentile": 90.0})

    def with_full_weights(where: Target, limited: frozenset[str]) -> QuantizedModel:
        del limited  # an engine that cannot limit them
        return quantize(stats, model.module, spec, where)

    with pytest.raises(VerificationError, match=r"16-bit sums of linear \(20 of 20 pairs.*crafted") as caught:
        make_safe(with_full_weights, target("onednn", 7, "avx2"), data, Recorder())
    assert caught.value.exit_code == 6


def test_a_function_with_weights_of_its_own_is_a_layer_that_can_be_limited() -> None:
    _, report, _ = safe(Functional(), at_most(2.0, (6,), count=64), observer="percentile", percentile=90.0)
    assert report.limited == ("linear",)


EXACT = """
import sys
import numpy as np, torch
directory, torch.backends.quantized.engine = sys.argv[1:3]
with torch.inference_mode():
    for name in sys.argv[3:]:
        model = torch.jit.load(f"{directory}/{name}.pt")
        np.save(f"{directory}/{name}.npy", model(torch.from_numpy(np.load(f"{directory}/in.npy"))).numpy())
"""


@pytest.mark.parametrize("engine", ["onednn", "fbgemm"])
def test_a_cpu_without_vnni_agrees(engine: str, tmp_path: Path) -> None:
    """Without VNNI the 8-bit model answers wrongly, the safe one as anywhere."""
    if engine == "fbgemm" and host_bits(engine) == 8:
        pytest.skip("this CPU has AVX512-VNNI, and fbgemm, unlike oneDNN, cannot be told to use no more than AVX2")
    data = at_most(1.0, (8, 6, 6))
    module, spec = all_alike(), recipe((8, 6, 6), quantize={"observer": "minmax"})
    model, stats = calibrated(module, spec, data)
    unsafe = quantize(stats, model.module, spec, target(engine, 8))
    assert overflowing_layers(unsafe, data)[0].overflows
    int8, _, _ = safe(module, data, engine)
    np.save(tmp_path / "in.npy", data.data)
    for name, each in (("unsafe", unsafe), ("safe", int8)):
        example = torch.from_numpy(data.data).contiguous(memory_format=torch.channels_last)
        with engine_of(engine):
            torch.jit.freeze(torch.jit.trace(each.module, example).eval()).save(str(tmp_path / f"{name}.pt"))
    subprocess.run(
        [sys.executable, "-c", EXACT, str(tmp_path), engine, "unsafe", "safe"],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        check=True,
    )
    expected = run(model, data)
    wrong, right = (np.load(tmp_path / f"{name}.npy") for name in ("unsafe", "safe"))
    # Two products of 255 * 127 saturate at 32767 of 64770; what is left of them fits in the second layer.
    assert np.allclose(wrong / expected, 32767 / 64770, rtol=0.02)
    assert np.allclose(right, expected, rtol=0.02)
