"""``synthetic``: generated data with the statistics of natural images, only to measure speed.

Photographs have an amplitude spectrum of about 1/f (Field 1987), colours that vary mostly in brightness
(Ruderman, Cronin and Chiao 1998), and edges where one object covers another (the dead leaves model: Lee, Mumford
and Huang 2001). White noise has none of these and would give activations that the network never has on real images.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.runtime.open_inputs import names_of
from cpupack.runtime.rows import add_sizes, flat
from cpupack.sources.named import generated
from cpupack.sources.request import Floats, Pixels, Request, workers

Field = npt.NDArray[np.float32]

# Rows: brightness, yellow-blue, red-green (orthonormal). The factors are each row's share of a photograph's contrast.
_OPPONENT = np.array(
    [[1 / 3**0.5] * 3, [1 / 6**0.5, 1 / 6**0.5, -2 / 6**0.5], [1 / 2**0.5, -1 / 2**0.5, 0]], np.float32
)
_OPPONENT_SCALE = np.array([1.0, 0.4, 0.2], np.float32)
_LEAVES = 24


def read(rest: str, request: Request) -> Samples:
    """Return ``request.samples`` generated images, or standard normal arrays for a recipe without [preprocess].

    Image ``i`` depends only on the seed and ``i``. Raises CalibrationError when labels or all samples are requested.
    """
    if request.labelled or request.samples is None:
        what = "labels" if request.labelled else "a number of samples"
        raise CalibrationError(f"synthetic data has no {what} of its own", hint="name a source with real data")
    if rest:
        raise CalibrationError(f'synthetic takes no argument, not "{rest}"')
    request.progress.warn("synthetic data: good only to measure speed; the accuracy on real inputs is unknown")
    request.check_memory(request.samples)
    names = tuple(f"synthetic {index}" for index in range(request.samples))
    if request.takes_rows:
        return Samples(_rows(request, request.samples), request.spec, names, synthetic=True)
    if request.preprocess is None:
        data: Floats = np.random.default_rng(request.seed).standard_normal(
            (request.samples, *request.input_shape), np.float32
        )
        return Samples(data, request.spec, names, synthetic=True)
    pixels = _images(request, request.samples, ())
    return Samples(pixels, request.spec, names, request.preprocess, synthetic=True)


def _images(request: Request, count: int, which: tuple[int, ...]) -> Pixels:
    """Return ``count`` images ``(n, height, width, channels)``. Those of several inputs differ by ``which``."""
    height, width, channels = request.pixel_shape
    pixels = np.empty((count, height, width, channels), np.uint8)

    def make(index: int) -> Pixels:
        return natural_image(np.random.default_rng([request.seed, index, *which]), height, width, channels)

    with workers() as pool:
        for index, image in enumerate(pool.map(make, range(count))):
            pixels[index] = image
            request.progress.step(index + 1, count, "images")
    return pixels


def _rows(request: Request, count: int) -> Floats:
    """Return rows of all inputs."""
    parts = []
    for number, spec in enumerate(request.inputs):
        if spec.preprocess is not None:
            batch: Any = _images(dataclasses.replace(request, inputs=(spec,)), count, (number,))
        else:
            batch = generated(spec, request, count, number)
        parts.append(np.asarray(flat(spec, batch), np.float32))
    parts.append(np.empty((count, len(names_of(request.inputs))), np.float32))
    rows: Floats = np.concatenate(parts, axis=1)
    add_sizes(request.inputs, rows)
    return rows


def natural_image(rng: np.random.Generator, height: int, width: int, channels: int) -> Pixels:
    """Return one generated photograph, uint8 ``(height, width, channels)`` with 1 or 3 channels."""
    fields = _textures(rng, height, width, channels)
    _drop_leaves(rng, fields)
    fields -= fields.mean(axis=(0, 1))
    fields /= max(float(fields[..., 0].std()), 1e-6)
    fields *= _OPPONENT_SCALE[:channels]
    image = fields @ _OPPONENT * np.float32(3**0.5) if channels == 3 else fields
    mean = np.full(channels, rng.normal(0.45, 0.08)) + rng.normal(0.0, 0.03, channels)
    image = image * np.float32(rng.uniform(0.16, 0.30)) + np.asarray(mean, np.float32)
    return np.ascontiguousarray((image.clip(0, 1) * 255).round().astype(np.uint8))


def _textures(rng: np.random.Generator, height: int, width: int, planes: int) -> Field:
    """Return random fields ``(height, width, planes)``: amplitude 1/f**slope, zero mean, unit variance."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    # Photographs have slopes of 1.0 to 1.6. The edges that are added later flatten the spectrum, so it starts steeper.
    spectrum = rng.standard_normal((planes, *frequency.shape, 2)).view(np.complex128)[..., 0]
    fields = np.fft.irfft2(spectrum * frequency ** -rng.uniform(1.3, 1.7), s=(height, width))
    fields /= np.maximum(fields.std(axis=(1, 2), keepdims=True), 1e-6)
    return np.ascontiguousarray(np.moveaxis(fields, 0, -1), np.float32)


def _drop_leaves(rng: np.random.Generator, fields: Field) -> None:
    """Draw ellipses, each in a colour of its own, over the fields in place. Radii have the density 1/r**3."""
    height, width, _ = fields.shape
    smallest, largest = 0.06, 0.5
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
