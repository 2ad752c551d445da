"""Pixels straight into INT8: normalization in the first convolution's weights, exact at the borders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import CalibratedModel, FloatModel, Samples
from cpupack.graph.pixel_model import PixelModel, fold_normalization
from cpupack.progress import SilentProgress
from cpupack.quantized_engine import engine
from cpupack.recipe import Recipe
from cpupack.runtime.images.inputs import mask_value, model_input, pixel_zero_point, with_mask
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.signature import Signature
from cpupack.stages.calibrate import calibrate
from cpupack.stages.quantize import quantize
from cpupack.targets import Target
from helpers.tiny_models import EIGHT_BITS, fuse_model, host_bits

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
ENGINES = ["onednn", "x86", "fbgemm", "qnnpack"]


def spec_of(mean: list[float], std: list[float], mode: str = "RGB") -> PreprocessSpec:
    return PreprocessSpec.from_dict({"mode": mode, "interpolation": "bilinear", "mean": mean, "std": std})


def random_pixels(count: int, channels: int = 3, size: int = 12, seed: int = 0) -> np.ndarray:
    """Smooth images: noise has no structure that a convolution could tell from its own rounding."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, channels)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return (coarse + generator.integers(-20, 21, coarse.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("mean", "std", "mode"),
    [
        (IMAGENET["mean"], IMAGENET["std"], "RGB"),
        ([0.5], [0.5], "RGB"),
        ([0.0], [1.0], "RGB"),
        ([1.0], [1.0], "RGB"),
        ([0.9, 0.1, 1.0], [0.2, 0.9, 0.1], "RGB"),
        ([-1.0, 1.0, 0.0], [0.3, 0.3, 0.3], "RGB"),
        ([0.1307], [0.3081], "L"),
    ],
)
def test_folded_weights_do_what_normalizing_first_does_borders_included(mean, std, mode):
    spec = spec_of(mean, std, mode)
    pixels = random_pixels(2, channels=1 if mode == "L" else 3)
    weight = torch.randn(5, pixels.shape[3], 3, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.conv2d(torch.from_numpy(normalize(pixels, spec)), weight, padding=1)
    # What the INT8 convolution sees: pixels counted from the zero point, and 0 in the padding.
    seen = torch.from_numpy(model_input(pixels, spec, pixel_input=True)).double() - pixel_zero_point(spec)
    actual = torch.conv2d(seen, fold_normalization(weight, spec).double(), padding=1)
    assert torch.allclose(actual.float(), expected, rtol=1e-4, atol=1e-3)
    assert mask_value(spec) != pixel_zero_point(spec)


def test_model_input_keeps_pixels_and_adds_the_mask():
    spec = spec_of(**IMAGENET)
    pixels = random_pixels(2)
    masked = model_input(pixels, spec, pixel_input=True)
    assert masked.shape == (2, 4, 12, 12)
    assert masked.dtype == np.uint8
    assert np.array_equal(masked[:, :3].transpose(0, 2, 3, 1), pixels)
    assert (masked[:, 3] == mask_value(spec)).all()
    assert torch.from_numpy(masked).is_contiguous(memory_format=torch.channels_last)
    assert model_input(pixels, spec, pixel_input=False).dtype == np.float32
    floats = np.zeros((1, 3, 12, 12), np.float32)
    assert model_input(floats, spec, pixel_input=True) is floats


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 1, 2, 3), (2, 5, 7, 3), (2, 5, 7, 1), (3, 4, 4, 4)])
@pytest.mark.parametrize("layout", ["contiguous", "view"])
def test_mask_is_put_behind_every_pixel(shape, layout):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if layout == "view":
        pixels = pixels[:, ::-1]
    expected = np.concatenate([pixels, np.full((*shape[:3], 1), 117, np.uint8)], axis=3)
    assert np.array_equal(with_mask(pixels, 117), expected)


def plain_net(**conv: object) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, 3, padding=1, **conv)  # type: ignore[arg-type]
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 25, 4)).eval()


class ReadTwice(nn.Module):
    """The input goes into two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a(x) * self.b(x)).flatten(1)


def build(module: nn.Module, target: Target, skip: list[str] | None = None):
    """Quantize ``module`` for 12x12 images; returns the model, its samples and its FP32 outputs."""
    recipe = Recipe.model_validate(
        {
            "schema": 1,
            "package": {"name": "tiny"},
            "model": {"source": "python:x.py:f", "weights": "random", "input_shape": [3, 12, 12]},
            "preprocess": IMAGENET,
            "quantize": {"observer": "minmax", "skip": skip or []},
            "calibration": {"source": "synthetic"},
        }
    )
    spec = spec_of(**IMAGENET)
    data = random_pixels(16)
    samples = Samples(data, "made up", tuple(map(str, range(16))), spec)
    model = FloatModel(module, Signature.plain((3, 12, 12), (4,)), "random", True, None, 0, 0, 0)
    calibrated: CalibratedModel = calibrate(fuse_model(model, recipe, SilentProgress()), samples, 8, SilentProgress())
    with torch.inference_mode():
        expected = module(samples.tensor(slice(None))).numpy()
    return quantize(calibrated, module, recipe, target), samples, expected


def target_of(name: str, bits: int = 8) -> Target:
    isa = None if name == "qnnpack" else ("avx512_vnni" if bits == 8 else "avx2")
    cpu = "aarch64" if name == "qnnpack" else "x86_64"
    return Target(cpu, name, isa, bits, name == "onednn", f"manylinux_2_28_{cpu}")


@pytest.mark.parametrize("name", ENGINES)
def test_pixel_path_is_as_close_to_fp32_as_the_float_path(name):
    quantized, samples, expected = build(plain_net(), target_of(name))
    assert quantized.pixel_input
    assert isinstance(quantized.module, PixelModel)
    pixels = torch.from_numpy(model_input(samples.data, samples.preprocess, pixel_input=True))
    floats = samples.tensor(slice(None)).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), engine(name):
        from_pixels, from_floats = quantized.module(pixels).numpy(), quantized.module(floats).numpy()
    if host_bits(name) < 8:
        return  # both saturate; such a host's wheels take no pixels
    # Rounding differs by chance between the two; a border treated wrongly costs far more than 3 dB.
    assert sqnr_db(expected, from_pixels) > sqnr_db(expected, from_floats) - 3.0


@pytest.mark.parametrize(
    ("module", "bits", "skip"),
    [
        (plain_net(padding_mode="reflect"), 8, []),
        (plain_net(), 7, []),
        (plain_net(), 8, ["0"]),
        (ReadTwice(), 8, []),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Flatten(), nn.Linear(300, 4)).eval(), 8, []),
        (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)).eval(), 8, []),
    ],
    ids=["reflected borders", "7 bits", "skipped", "read twice", "grouped", "not first"],
)
def test_other_inputs_stay_float(module, bits, skip):
    name = EIGHT_BITS if bits == 8 else "fbgemm"
    quantized, samples, expected = build(module, target_of(name, bits), skip)
    assert not quantized.pixel_input
    floats = samples.tensor(slice(None)).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), engine(name):
        assert sqnr_db(expected, quantized.module(floats).numpy()) > 20.0


def test_pixels_would_overflow_16_bits_also_where_8_bit_activations_do_not():
    without_vnni = dataclasses.replace(target_of("fbgemm"), isa="avx2")
    assert not build(plain_net(), without_vnni, [])[0].pixel_input
