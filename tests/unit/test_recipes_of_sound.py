"""recipes/voice.toml, pitch.toml and vad.toml: the trained networks in INT8 answer as their users would measure it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from cpupack.artifacts import QuantizedModel, Samples
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.runtime.stream import Stream
from cpupack.stages.load import load
from helpers.lowered import needs_kernels
from helpers.recipe_models import RECIPES, quantized

pytestmark = needs_kernels


def needs_package(name: str, *, extra: str) -> None:
    """Skip without the package that has the weights. Its own dependencies are not needed, so it is not imported."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the trained weights are a package (extra: {extra})")


def outputs(int8: QuantizedModel, samples: Samples) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(int8.module(samples.tensor(slice(None))).numpy())


def test_embeddings_of_voices_are_those_of_fp32() -> None:
    needs_package("resemblyzer", extra="voice")
    int8, held_out = quantized("voice", 8, 8)
    assert {each.name: each.kernel for each in int8.layers if "recurrent" in each.kernel} == {
        "lstm.l0": "cpupack::recurrent with inputs of 16 bits",  # its steps are spectra
        "lstm.l1": "cpupack::recurrent",
        "lstm.l2": "cpupack::recurrent",
    }
    assert held_out.targets is not None
    assert np.allclose((held_out.targets**2).sum(1), 1.0, atol=1e-5)
    assert (outputs(int8, held_out) * held_out.targets).sum(1).min() > 0.99


def test_pitches_are_within_five_cents_of_those_of_fp32() -> None:
    needs_package("torchcrepe", extra="pitch")
    int8, held_out = quantized("pitch", 128, 32)
    found, targets = outputs(int8, held_out), held_out.targets
    assert targets is not None
    assert (found.argmax(1) == targets.argmax(1)).mean() >= 0.9  # else another bin, 20 cents away
    near = np.abs(np.arange(360) - targets.argmax(1)[:, None]) <= 4
    place = [
        (np.where(near, each, 0.0) * np.arange(360)).sum(1) / np.where(near, each, 0.0).sum(1)
        for each in (found, targets)
    ]
    assert np.median(20.0 * np.abs(place[0] - place[1])) < 5.0


def test_decisions_of_speech_in_a_stream_are_those_of_fp32() -> None:
    """At most 2 % of them are others, although each error of the states goes on to all later chunks."""
    needs_package("silero_vad", extra="vad")
    chunks = 96  # of each sound of recipes/vad/data.py
    int8, held_out = quantized("vad", 384, 4 * chunks)
    model = load(load_recipe(RECIPES / "vad.toml"), SilentProgress())
    assert {each.name: each.kernel for each in int8.layers}["lstm"] == "cpupack::recurrent"
    names = [each.name for each in model.signature.inputs]
    sounds = held_out.data[:, model.signature.input_places()[names.index("x")]].reshape(4, chunks, -1)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(int8.module(torch.from_numpy(batch)).numpy())

    stream = Stream(model.signature, run)
    found = np.stack([stream(np.ascontiguousarray(sounds[:, chunk])) for chunk in range(chunks)], 1)
    assert held_out.targets is not None
    speech = held_out.targets.reshape(found.shape) >= 0.5
    assert 0.2 < speech.mean() < 0.8  # FP32 hears speech, and pauses
    assert ((found >= 0.5) != speech).mean() <= 0.02
