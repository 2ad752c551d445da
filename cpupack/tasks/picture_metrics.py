"""Metrics of pictures: the ratio of the peak to the noise, and how alike two pictures are in structure.

Both compare the bytes that ``predict`` gives with those of the true picture, each sample by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import VerificationError
from cpupack.runtime.tasks.base import Presenter
from cpupack.runtime.tasks.image import ImagePresenter
from cpupack.tasks.number_metrics import wrong_shape

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_PEAK = 255.0
_EQUAL_DB = 100.0
"""The ratio of equal pictures, which would be infinite."""
_LUMA = (0.299, 0.587, 0.114)
"""The grey of a colour (ITU-R BT.601), as Pillow has it."""
WINDOW, _SIGMA = 11, 1.5
"""Pixels of the window in which structures are compared, and the deviation of its weights (Wang et al. 2004)."""
_STABLE = ((0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2)


def psnr(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> Floats:
    """Return the peak signal-to-noise ratio of each sample in dB, and that it counts, ``(n, 2)``.

    ``targets`` are pictures ``(n, channels, height, width)``: uint8, or floats from 0 to 1 with NaN where nothing is
    known. A sample without any known pixel does not count. Raises VerificationError for others.
    """
    return _each("psnr", _psnr, presenter, outputs, targets)


def ssim(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> Floats:
    """Return the mean structural similarity of each sample, at most 1, and that it counts, ``(n, 2)``.

    It takes what ``psnr`` takes. Windows with an unknown pixel, and those that reach over an edge, are left out.
    """
    if targets.ndim >= 3 and min(targets.shape[-2:]) < WINDOW and targets.shape[-1] not in (1, 3):
        raise VerificationError(
            f"[evaluation] metric ssim compares windows of {WINDOW} x {WINDOW} pixels; the targets have shape "
            f"{targets.shape}",
            hint='set metric = "psnr"',
        )
    return _each("ssim", _ssim, presenter, outputs, targets)


def _each(
    name: str,
    measure: Callable[[Floats, Floats], float],
    presenter: Presenter,
    outputs: Mapping[str, Array],
    targets: Array,
) -> Floats:
    assert isinstance(presenter, ImagePresenter)
    (values,) = outputs.values()
    expected = _levels(name, targets, tuple(values.shape))
    found = np.zeros((len(expected), 2))
    for row, target in enumerate(expected):
        pixels = presenter.present({"": values[row]}, None).pixels.astype(np.float64)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if len(pixels) == 1 and len(target) == 3:
            target = np.tensordot(_LUMA, target, 1).round()[None]
        value = measure(pixels, target)
        found[row] = np.nan_to_num(value), not np.isnan(value)
    return found


def _levels(name: str, targets: Array, shape: tuple[int, ...]) -> Floats:
    """Return targets as levels from 0 to 255, ``(n, channels, height, width)``. ``shape`` is that of the outputs."""
    *_, height, width = shape
    channels = shape[1] if len(shape) == 4 else 1
    given = targets[:, None] if targets.ndim == 3 else targets
    if given.ndim == 4 and given.shape[1:3] == (height, width) and given.shape[3] in (1, 3):
        given = given.transpose(0, 3, 1, 2)  # pictures as Pillow and OpenCV have them
    if given.ndim != 4 or given.shape[2:] != (height, width) or given.shape[1] not in {channels, 3}:
        raise wrong_shape(name, f"pictures (n, {channels}, {height}, {width})", targets)
    if given.dtype == np.uint8:
        return given.astype(np.float64)
    if np.nanmin(given, initial=0.0) < 0 or np.nanmax(given, initial=0.0) > 1:
        raise VerificationError(
            f"[evaluation] metric {name}: the pictures have {np.nanmin(given):g} to {np.nanmax(given):g}; they are "
            "uint8, or floats from 0 to 1",
            hint="give pixels as np.uint8, and undo the normalization of targets",
        )
    return np.asarray((given.astype(np.float64) * _PEAK).round())


def _psnr(found: Floats, expected: Floats) -> float:
    known = ~np.isnan(expected)
    if not known.any():
        return float("nan")
    noise = float(((found - expected)[known] ** 2).mean())
    return _EQUAL_DB if noise == 0.0 else min(10.0 * float(np.log10(_PEAK**2 / noise)), _EQUAL_DB)


def _ssim(found: Floats, expected: Floats) -> float:
    """Return the mean over windows and channels. Moments are weighted by a Gaussian, without Bessel's correction."""
    one, other = _STABLE
    mean_x, mean_y = _windows(found), _windows(expected)
    spread_x = _windows(found * found) - mean_x**2
    spread_y = _windows(expected * expected) - mean_y**2
    common = _windows(found * expected) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + one) * (2 * common + other)
    values = alike / ((mean_x**2 + mean_y**2 + one) * (spread_x + spread_y + other))
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _windows(values: Floats) -> Floats:
    """Return the weighted mean of each whole window of ``(channels, height, width)``."""
    places = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(places**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (1, 2):
        count = values.shape[axis] - WINDOW + 1
        values = sum(
            weight * np.take(values, range(place, place + count), axis) for place, weight in enumerate(weights)
        )
    return values
