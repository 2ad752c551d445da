"""Computed voices: pulses of a voice's pitch through the resonances of vowels, with breath and pauses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from encoder import speaker_encoder

RATE, SAMPLES = 16000, 25840
Floats = npt.NDArray[np.float32]
_VOWELS = np.array(
    [[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410], [440, 1020, 2240]]
)
"""Resonances in Hz: a, i, u, e, o and the neutral one (after Peterson and Barney 1952)."""


def calibration() -> Iterator[Floats]:
    """``[calibration] source``: one piece of speech of each of 64 voices."""
    for number in range(64):
        yield speech(np.random.default_rng(number))


def held_out() -> Iterator[tuple[Floats, Floats]]:
    """``[evaluation] source``: one piece of speech of each of 32 other voices, with the embedding in FP32."""
    network = speaker_encoder()
    for number in range(1000, 1032):
        sound = speech(np.random.default_rng(number))
        with torch.inference_mode():
            yield sound, network(torch.from_numpy(sound)[None])[0].numpy()


def least_cosine(outputs: Floats, targets: Floats) -> float:
    """``[evaluation] metric``: the least cosine between an embedding and the one in FP32. All have length 1."""
    return float((outputs * targets).sum(1).min())


def speech(random: np.random.Generator) -> Floats:
    """Return 1.6 seconds of a voice that ``random`` chooses, float32 ``(SAMPLES,)`` from -1 to 1."""
    pitch, tract = np.exp(random.uniform(np.log(85), np.log(260))), random.uniform(0.85, 1.2)
    sound, at = np.zeros(SAMPLES), 0
    while at < SAMPLES:
        length = min(int(random.uniform(0.08, 0.3) * RATE), SAMPLES - at)
        if random.random() > 0.15:  # else a pause
            sound[at : at + length] = _syllable(random, length, pitch, tract)
        at += length
    sound += random.normal(0, 10 ** random.uniform(-4.5, -3), SAMPLES)
    return (sound * 10 ** random.uniform(-1.2, -0.2) / max(np.abs(sound).max(), 1e-9)).astype(np.float32)


def _syllable(random: np.random.Generator, length: int, pitch: float, tract: float) -> npt.NDArray[np.float64]:
    time = np.arange(length) / RATE
    contour = pitch * (1 + 0.15 * random.normal() * np.sin(np.pi * time / time[-1] + random.uniform(0, 3)))
    phase = np.cumsum(contour) / RATE
    source = np.diff(np.floor(phase), prepend=0.0) + random.normal(0, 0.02, length)
    here, there = _VOWELS[random.integers(len(_VOWELS), size=2)] * tract
    sound = np.zeros(length)
    middle = (here + there) / 2
    for place, (frequency, width) in enumerate(zip(middle, (80, 100, 140), strict=True)):
        sound += _resonance(source, frequency, width) / (1 + place)
    envelope = np.minimum(1.0, np.minimum(time, time[-1] - time) / 0.02)
    return sound * envelope * random.uniform(0.4, 1.0)


def _resonance(source: npt.NDArray[np.float64], frequency: float, width: float) -> npt.NDArray[np.float64]:
    """Return a source through one resonance, by its impulse response of 50 ms."""
    time = np.arange(RATE // 20) / RATE
    response = np.exp(-np.pi * width * time) * np.sin(2 * np.pi * frequency * time)
    size = 1 << int(np.ceil(np.log2(len(source) + len(response))))
    return np.fft.irfft(np.fft.rfft(source, size) * np.fft.rfft(response, size), size)[: len(source)]
