"""Metrics of pictures: the ratio of peak to noise, and structural similarity, by their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from cpupack.artifacts import FloatModel
from cpupack.errors import VerificationError
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.signature import INPUT, OutputSpec, Signature
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.tasks.metrics import task_metric
from cpupack.tasks.picture_metrics import WINDOW

SIZE = 14


def measured(name: str, outputs: Any, targets: Any, preprocess: PreprocessSpec | None = None, **settings: Any) -> float:
    outputs = np.asarray(outputs, np.float32)
    signature = Signature(
        (TensorSpec(INPUT, (3, SIZE, SIZE), preprocess=preprocess),), (OutputSpec("output", outputs.shape[1:]),)
    )
    of = FloatModel(nn.Identity(), signature, "", False, None, 0, 0, 0, task=TaskSpec.of("image", **settings))
    return task_metric(name, of, resampled=False)(outputs, np.asarray(targets))


def pictures(count: int = 2, channels: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, channels, SIZE, SIZE), np.uint8)


def test_psnr_is_the_mean_over_pictures_of_their_own_ratios() -> None:
    true = np.full((2, 3, SIZE, SIZE), 100, np.uint8)
    found = true.astype(np.float64)
    found[0] += 5
    found[1] += 10
    # 20 log10(255 / 5) = 34.1514 dB and 20 log10(255 / 10) = 28.1308 dB.
    expected = (20 * np.log10(51) + 20 * np.log10(25.5)) / 2
    assert measured("psnr", found / 255, true) == pytest.approx(expected)
    assert measured("psnr", found / 255, true / 255) == pytest.approx(expected)
    assert measured("psnr", found / 255, true.transpose(0, 2, 3, 1)) == pytest.approx(expected)
    assert measured("psnr", found / 127.5 - 1, true, scale=[0.5], offset=[0.5]) == pytest.approx(expected)
    assert measured("psnr", true / 255, true) == 100.0


def test_what_is_not_known_does_not_count() -> None:
    true = np.full((2, 1, SIZE, SIZE), 0.5)
    true[0, :, :3] = np.nan
    true[1] = np.nan
    found = np.full_like(true, 127.5 / 255)  # both are rounded to 128
    found[0, :, :3] = 1.0
    assert measured("psnr", found, true) == 100.0
    assert measured("ssim", found, true) == pytest.approx(1.0)
    with pytest.raises(VerificationError, match="no pixel of the targets is known"):
        measured("psnr", found, np.full_like(true, np.nan))


def test_a_grey_output_is_compared_with_the_grey_of_a_colour() -> None:
    true = np.zeros((1, 3, SIZE, SIZE), np.uint8)
    true[:, 0], true[:, 1], true[:, 2] = 200, 100, 50
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert measured("psnr", np.full((1, SIZE, SIZE), (grey + 1) / 255), true) == pytest.approx(20 * np.log10(255))


def test_channels_in_opencvs_order_are_compared_as_such() -> None:
    true = pictures()
    bgr = PreprocessSpec(resize=(SIZE, SIZE), mode="BGR")
    assert measured("psnr", true[:, ::-1] / 255, true, bgr) == 100.0
    assert measured("psnr", true / 255, true, bgr) < 30


def test_ssim_is_that_of_its_definition() -> None:
    """Of pictures of one window's size there is one window, whose moments are written out here."""
    random = np.random.default_rng(1)
    true = random.integers(0, 256, (1, 1, WINDOW, WINDOW)).astype(np.uint8)
    found = np.clip(true + random.normal(0, 20, true.shape), 0, 255).round()
    down, across = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(down**2 + across**2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = found[0, 0], true[0, 0].astype(np.float64)
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    spread_x, spread_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    common = (weights * (x - mean_x) * (y - mean_y)).sum()
    one, other = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_x * mean_y + one) * (2 * common + other)
    expected /= (mean_x**2 + mean_y**2 + one) * (spread_x + spread_y + other)
    assert measured("ssim", found / 255, true) == pytest.approx(expected)
    assert measured("ssim", true / 255, true) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (np.zeros((2, 3, SIZE, SIZE - 1), np.uint8), r"compares with pictures \(n, 3, 14, 14\)"),
        (np.zeros((2, 1, SIZE, SIZE), np.uint8), r"compares with pictures"),
        (np.full((2, 3, SIZE, SIZE), 128.0), "the pictures have 128 to 128; they are uint8, or floats from 0 to 1"),
        (np.full((2, 3, SIZE, SIZE), np.inf), "are not all finite"),
    ],
)
def test_targets_that_are_no_such_pictures(targets: Any, words: str) -> None:
    for name in ("psnr", "ssim"):
        with pytest.raises(VerificationError, match=words):
            measured(name, np.zeros((2, 3, SIZE, SIZE)), targets)


def test_pictures_smaller_than_a_window_have_no_structure() -> None:
    with pytest.raises(VerificationError, match="compares windows of 11 x 11 pixels"):
        measured("ssim", np.zeros((1, 1, 8, 8)), np.zeros((1, 1, 8, 8), np.uint8))
