"""Long Fourier transforms run as two products with small matrices: the values, and which layers are such transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cpupack import accuracy
from cpupack.graph.fourier import Transform, fourier
from cpupack.runtime.engine import library
from cpupack.stages.quantize.native.transforms import complex_waves_of, layer_of, waves_of
from cpupack.stages.quantize.native.walks import View
from helpers import float_nets
from helpers.lowered import needs_kernels

LENGTH = 1200


@needs_kernels
@pytest.mark.parametrize("onesided", [True, False])
@pytest.mark.parametrize("length", [512, 400, 441, 405, 450, 1024])
def test_short_time_transforms_are_those_of_torch_alone_and_in_a_batch(length: int, onesided: bool) -> None:
    """The first factor is even and the second too, one of both, or none."""
    window, hop = torch.hann_window(length), length // 3
    weight = fourier(window, hop, onesided=onesided, normalized=True).weight.detach()[:, 0]
    how = {"n_fft": length, "hop_length": hop, "center": False, "normalized": True, "onesided": onesided}
    x = torch.from_numpy(samples(LENGTH)).double()
    found = torch.stft(x, window=window.double(), return_complex=True, **how)  # type: ignore[arg-type]
    wanted = torch.cat([found.real, found.imag], 1).transpose(1, 2)
    check((wanted.shape[1], length), (hop, 1), weight, wanted)


@needs_kernels
@pytest.mark.parametrize("kind", ["rfft", "fft", "ifft"])
@pytest.mark.parametrize("length", [256, 400, 405, 441])
def test_transforms_of_rows_are_those_of_torch(kind: str, length: int) -> None:
    transform = Transform(kind, length, length, "ortho")
    inputs = length if kind == "rfft" else 2 * length
    rows = torch.from_numpy(samples(6 * inputs)).double().reshape(-1, 2, inputs, 3).transpose(2, 3)
    check((2, 3, inputs), (3 * inputs, 1, 3), transform.matrix().t().float(), rows @ transform.matrix())


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, count)).astype(np.float32)


def check(shape: tuple[int, ...], steps: tuple[int, ...], weight: torch.Tensor, wanted: torch.Tensor) -> None:
    """Compare a view of a sample's values times a layer's weights with what is wanted."""
    library.load()
    count = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    net = float_nets.Net(samples(max(count, LENGTH)) if len(shape) == 2 else samples(count))
    found = layer_of(net.floats, View(net.all.buffer, shape, steps), weight)
    assert found is not None
    net.result(found, wanted.numpy())
    x, program = net.tensors()
    result = torch.ops.cpupack.run_3(x, program, net.program.outputs)
    assert accuracy.sqnr_db(net.expected[0], result.numpy()) > 125.0
    alone = [torch.ops.cpupack.run_3(each[None], program, net.program.outputs) for each in x]
    assert torch.equal(torch.cat(alone), result)


@pytest.mark.parametrize("length", [32, 128, 257])
def test_short_and_prime_transforms_stay_one_product(length: int) -> None:
    weight = fourier(torch.hann_window(length), length, onesided=True, normalized=False).weight.detach()[:, 0]
    assert waves_of(weight) is None


def test_a_transform_is_known_by_its_weights_alone() -> None:
    weight = fourier(torch.hann_window(512), 100, onesided=True, normalized=False).weight.detach()[:, 0].clone()
    found = waves_of(weight)
    assert found is not None
    assert found.length == 512
    turned = weight.clone()
    turned[257:] *= -1
    backward = waves_of(turned)
    assert backward is not None
    assert backward.sign == 1
    weight[300, 17] += 1e-4  # trained further
    assert waves_of(weight) is None
    assert waves_of(torch.zeros(514, 512)) is None
    assert waves_of(torch.rand(514, 512)) is None
    assert waves_of(weight[:-1]) is None
    whole = Transform("fft", 512, 512, "backward").matrix().t().float()
    assert complex_waves_of(whole) is not None
    whole[3, 700] += 0.01
    assert complex_waves_of(whole) is None
    assert complex_waves_of(Transform("fft", 500, 512, "backward").matrix().t().float()) is None
