"""Real inputs of the trained networks: crops and sizes of photographs, pairs of noisy and clean ones, sung notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def photographs(directory: Path, height: int, width: int) -> Pixels:
    """Return all photographs of a directory at one size, uint8 ``(n, height, width, 3)``."""
    paths = sorted(each for each in directory.rglob("*") if each.suffix.lower() in {".jpeg", ".jpg", ".png"})
    if not paths:
        raise FileNotFoundError(f"{directory} has no photographs")
    images = [Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR) for path in paths]
    return np.stack([np.asarray(image, np.uint8) for image in images])


def crops(photos: Pixels, size: int, count: int, seed: int) -> Pixels:
    """Return squares of random photographs at random places, between a sixth and all of the height."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        photo = photos[rng.integers(len(photos))]
        height, width, _ = photo.shape
        side = int(rng.integers(height // 6, height + 1))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        square = Image.fromarray(photo[top : top + side, left : left + side])
        found.append(np.asarray(square.resize((size, size), Image.Resampling.BILINEAR), np.uint8))
    return np.stack(found)


def notes(count: int, seed: int) -> Floats:
    """Return frames of sung notes at 16 kHz, float32 ``(count, 1024)``, each of mean 0 and variance 1.

    Harmonics that fall off as those of a voice do, with two formants, vibrato and breath.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(1024) / 16000.0
    frames = np.empty((count, 1024), np.float32)
    for number in range(count):
        pitch = 55.0 * 2.0 ** rng.uniform(0.0, 4.0) * (1.0 + 0.01 * np.sin(2 * np.pi * 5.5 * time + rng.uniform(0, 6)))
        harmonics = np.arange(1, max(2, int(7000.0 / pitch.max())))
        formants = rng.uniform(300, 900), rng.uniform(900, 2600)
        peaks = sum(np.exp(-(((harmonics * pitch[0] - each) / 250.0) ** 2)) for each in formants)
        loudness = harmonics**-1.2 * (0.3 + 2.0 * peaks) * rng.uniform(0.7, 1.3, len(harmonics))
        phase = 2 * np.pi * np.cumsum(pitch) / 16000.0
        frame = (loudness[:, None] * np.sin(harmonics[:, None] * phase + rng.uniform(0, 6, (len(harmonics), 1)))).sum(0)
        frame = frame + rng.normal(0.0, rng.uniform(0.01, 0.2) * frame.std(), 1024)
        frames[number] = (frame - frame.mean()) / max(float(frame.std()), 1e-10)
    return frames


def noisy(images: Pixels, seed: int) -> Pixels:
    """Return images with noise of a twelfth of the range."""
    noise = np.random.default_rng(seed).normal(0.0, 255.0 / 12, images.shape)
    return (images + noise).clip(0, 255).round().astype(np.uint8)
