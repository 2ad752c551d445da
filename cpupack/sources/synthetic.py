"""``synthetic``: made-up data with the statistics of natural images, for speed work only.

Photographs have an amplitude spectrum of about 1/f (Field 1987), colours that vary mostly in brightness
(Ruderman, Cronin and Chiao 1998), and edges where things hide each other (the dead leaves model: Lee, Mumford
and Huang 2001). White noise has none of these and drives a network into activations it never sees in use.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.sources.request import Floats, Pixels, Request

Field = npt.NDArray[np.float32]

# Rows: brightness, yellow-blue, red-green (orthonormal), and how much of a photograph's contrast is in each.
_OPPONENT = np.array(
    [[1 / 3**0.5] * 3, [1 / 6**0.5, 1 / 6**0.5, -2 / 6**0.5], [1 / 2**0.5, -1 / 2**0.5, 0]], np.float32
)
_OPPONENT_SCALE = np.array([1.0, 0.25, 0.12], np.float32)
_LEAVES = 24


def read(rest: str, request: Request) -> Samples:
    """Return ``request.samples`` made-up images, or standard normal arrays where there is no [preprocess].

    Image ``i`` depends on the seed and ``i`` alone. Raises CalibrationError when labels or "all" are asked.
    """
    if request.labelled or request.samples is None:
        what = "labels" if request.labelled else "a number of samples"
        raise CalibrationError(
            f"synthetic data has no {what} of its own", hint="name a source with real data"
        )
    if rest:
        raise CalibrationError(f'synthetic takes no argument, not "{rest}"')
    request.progress.warn("synthetic data: good for speed work only, accuracy on real inputs is unknown")
    names = tuple(f"synthetic {index}" for index in range(request.samples))
    if request.preprocess is None:
        data: Floats = np.random.default_rng(request.seed).standard_normal(
            (request.samples, *request.input_shape), np.float32
        )
        return Samples(data, request.spec, names, synthetic=True)
    height, width, channels = request.pixel_shape
    pixels = np.empty((request.samples, height, width, channels), np.uint8)
    for index in range(request.samples):
        pixels[index] = natural_image(np.random.default_rng([request.seed, index]), height, width, channels)
        request.progress.step(index + 1, request.samples, "images")
    return Samples(pixels, request.spec, names, request.preprocess, synthetic=True)


def natural_image(rng: np.random.Generator, height: int, width: int, channels: int) -> Pixels:
    """Return one made-up photograph, uint8 ``(height, width, channels)`` with 1 or 3 channels."""
    planes = min(channels, len(_OPPONENT_SCALE))
    slope = rng.uniform(0.9, 1.3)
    fields = np.stack([_pink(rng, height, width, slope) for _ in range(planes)], axis=-1)
    _drop_leaves(rng, fields)
    fields -= fields.mean(axis=(0, 1))
    fields /= max(float(fields[..., 0].std()), 1e-6)
    fields *= _OPPONENT_SCALE[:planes]
    image = fields @ _OPPONENT * np.float32(3**0.5) if channels == 3 else fields
    mean = np.full(channels, rng.normal(0.45, 0.08)) + rng.normal(0.0, 0.03, channels)
    image = image * np.float32(rng.uniform(0.14, 0.28)) + np.asarray(mean, np.float32)
    return np.ascontiguousarray((image.clip(0, 1) * 255).round().astype(np.uint8))


def _pink(rng: np.random.Generator, height: int, width: int, slope: float) -> Field:
    """Return a random field with amplitude 1/f**slope, zero mean, unit variance."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((height, width)))
    field = np.fft.irfft2(white / frequency**slope, s=(height, width))
    return np.asarray(field / max(field.std(), 1e-6), np.float32)


def _drop_leaves(rng: np.random.Generator, fields: Field) -> None:
    """Lay ellipses of their own colour over the fields, in place; radii have the model's 1/r**3 density."""
    height, width, _ = fields.shape
    smallest, largest = 0.04, 0.5
    for _ in range(_LEAVES):
        # Inverse of the cumulative distribution of a density proportional to r**-3.
        radius = (rng.uniform(largest**-2, smallest**-2)) ** -0.5 * min(height, width)
        across, down = radius * rng.uniform(0.5, 1.5), radius * rng.uniform(0.5, 1.5)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        top, bottom = max(int(y - down), 0), min(int(y + down) + 2, height)
        left, right = max(int(x - across), 0), min(int(x + across) + 2, width)
        rows = (np.arange(top, bottom)[:, None] - y) / down
        columns = (np.arange(left, right)[None, :] - x) / across
        inside = rows**2 + columns**2 < 1
        patch = fields[top:bottom, left:right]
        colour = rng.standard_normal(fields.shape[2:]).astype(np.float32)
        patch[inside] = colour + np.float32(rng.uniform(0.1, 0.6)) * patch[inside]
