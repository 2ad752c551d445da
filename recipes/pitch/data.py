"""Computed frames of voices and instruments: harmonics of a gliding pitch, through two resonances, with some noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from network import BINS, FRAME, network

RATE = 16000
Floats = npt.NDArray[np.float32]


def calibration() -> Iterator[Floats]:
    """``[calibration] source``: frames of 512 sounds."""
    for number in range(512):
        yield sound(np.random.default_rng(number))[0]


def held_out() -> Iterator[tuple[Floats, Floats]]:
    """``[evaluation] source``: frames of 256 other sounds, with the outputs in FP32."""
    fp32 = network()
    for number in range(10000, 10256):
        frame, _ = sound(np.random.default_rng(number))
        with torch.inference_mode():
            yield frame, fp32(torch.from_numpy(frame)[None])[0].numpy()


def within_five_cents(outputs: Floats, targets: Floats) -> float:
    """``[evaluation] metric``: the share of frames whose pitch is within 5 cents of that in FP32."""
    return float((np.abs(cents(outputs) - cents(targets)) <= 5.0).mean())


def cents(outputs: Floats) -> npt.NDArray[np.float64]:
    """Return the pitch of each frame in cents above 10 Hz: the mean around the most likely bin, as in torchcrepe."""
    places = np.arange(BINS)
    near = np.abs(places - outputs.argmax(1)[:, None]) <= 4
    weights = np.where(near, outputs, 0.0).astype(np.float64)
    return (weights * (20.0 * places + 1997.3794084376191)).sum(1) / weights.sum(1)


def sound(random: np.random.Generator) -> tuple[Floats, float]:
    """Return a frame, float32 ``(1024,)`` from -1 to 1, and the pitch in its middle in Hz."""
    pitch = float(np.exp(random.uniform(np.log(70), np.log(900))))
    time = (np.arange(FRAME) - FRAME / 2) / RATE
    phase = 2 * np.pi * pitch * (time + random.normal(0, 0.3) * time**2)
    resonances, fall = random.uniform(200, 3000, 2), random.uniform(0.3, 1.5)
    frame = np.zeros(FRAME)
    for harmonic in range(1, int(min(RATE / 2 / pitch, 40))):
        near = sum(np.exp(-(((harmonic * pitch - each) / 400) ** 2)) for each in resonances)
        frame += (0.1 + near) * harmonic**-fall * np.sin(harmonic * phase + random.uniform(0, 2 * np.pi))
    frame /= np.abs(frame).max()
    frame += random.normal(0, 10 ** random.uniform(-3, -1), FRAME)
    return (frame * 10 ** random.uniform(-1.5, 0) / np.abs(frame).max()).astype(np.float32), pitch
