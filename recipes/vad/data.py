"""Computed voices with pauses and noise, in chunks of 32 milliseconds with the states that the chunks before leave."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from network import CHUNK, CONTEXT, UNITS, network

RATE, CHUNKS = 16000, 96
Floats = npt.NDArray[np.float32]
_VOWELS = np.array(
    [[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410], [440, 1020, 2240]]
)
"""Resonances in Hz: a, i, u, e, o and the neutral one (after Peterson and Barney 1952)."""


def calibration() -> Iterator[dict[str, Floats]]:
    """``[calibration] source``: every fourth chunk of 16 sounds of 3 seconds, with the states before it."""
    for number in range(16):
        for place, (inputs, _) in enumerate(_with_states(sound(np.random.default_rng(number)))):
            if place % 4 == number % 4:
                yield inputs


def held_out() -> Iterator[tuple[dict[str, Floats], Floats]]:
    """``[evaluation] source``: the chunks of 8 other sounds, with how likely each is speech in FP32."""
    for number in range(1000, 1008):
        yield from _with_states(sound(np.random.default_rng(number)))


def same_decisions(outputs: dict[str, Floats], targets: Floats) -> float:
    """``[evaluation] metric``: the share of chunks that are speech, or not, as in FP32."""
    return float(((outputs["speech"] >= 0.5) == (targets >= 0.5)).mean())


def _with_states(samples: Floats) -> Iterator[tuple[dict[str, Floats], Floats]]:
    """Yield the inputs of each chunk and what FP32 answers."""
    fp32 = network()
    names = ("x", "context", "h", "c")
    states = [torch.zeros(1, CONTEXT), torch.zeros(1, 1, UNITS), torch.zeros(1, 1, UNITS)]
    for chunk in samples.reshape(-1, CHUNK):
        inputs = [torch.from_numpy(chunk)[None], *states]
        with torch.inference_mode():
            found = fp32(*inputs)
        own = [inputs[0][0], states[0][0], states[1][:, 0], states[2][:, 0]]  # without the batch
        yield {name: each.numpy() for name, each in zip(names, own, strict=True)}, found["speech"][0].numpy()
        states = [found[name] for name in names[1:]]


def sound(random: np.random.Generator) -> Floats:
    """Return some words of a voice that ``random`` chooses, float32 ``(CHUNKS * CHUNK,)`` from -1 to 1."""
    pitch, tract = np.exp(random.uniform(np.log(85), np.log(260))), random.uniform(0.85, 1.2)
    whole, at = np.zeros(CHUNKS * CHUNK), 0
    while at < len(whole):
        at += int(random.uniform(0.2, 0.8) * RATE)  # a pause, then a word
        for _ in range(random.integers(2, 7)):
            length = min(int(random.uniform(0.08, 0.25) * RATE), len(whole) - at)
            if length > RATE // 50:
                whole[at : at + length] = _syllable(random, length, pitch, tract)
            at += length
    whole += random.normal(0, 10 ** random.uniform(-4.5, -2), len(whole))
    return (whole * 10 ** random.uniform(-1.2, -0.2) / max(np.abs(whole).max(), 1e-9)).astype(np.float32)


def _syllable(random: np.random.Generator, length: int, pitch: float, tract: float) -> npt.NDArray[np.float64]:
    time = np.arange(length) / RATE
    contour = pitch * (1 + 0.15 * random.normal() * np.sin(np.pi * time / time[-1] + random.uniform(0, 3)))
    source = np.diff(np.floor(np.cumsum(contour) / RATE), prepend=0.0) + random.normal(0, 0.02, length)
    here, there = _VOWELS[random.integers(len(_VOWELS), size=2)] * tract
    voiced = np.zeros(length)
    for place, (frequency, width) in enumerate(zip((here + there) / 2, (80, 100, 140), strict=True)):
        voiced += _resonance(source, frequency, width) / (1 + place)
    envelope = np.minimum(1.0, np.minimum(time, time[-1] - time) / 0.02)
    return np.asarray(voiced * envelope * random.uniform(0.4, 1.0))


def _resonance(source: npt.NDArray[np.float64], frequency: float, width: float) -> npt.NDArray[np.float64]:
    """Return a source through one resonance, by its impulse response of 50 ms."""
    time = np.arange(RATE // 20) / RATE
    response = np.exp(-np.pi * width * time) * np.sin(2 * np.pi * frequency * time)
    size = 1 << int(np.ceil(np.log2(len(source) + len(response))))
    return np.fft.irfft(np.fft.rfft(source, size) * np.fft.rfft(response, size), size)[: len(source)]
