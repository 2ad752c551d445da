"""The states of samples that follow one another, where data has none."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from cpupack.artifacts import FloatModel, Samples
from cpupack.runtime.signature import Signature

_STREAMS = 16


def rolled(samples: Samples, model: FloatModel) -> Samples:
    """Return samples with the states that FP32 gives for the samples before them, where the data has none.

    Data without states is taken as up to 16 streams, one after the other, each of which begins with the defaults.
    """
    signature = model.signature
    if not signature.states or not len(samples) or _has_states(samples.data, signature):
        return samples
    streams = min(_STREAMS, len(samples))
    order = np.array_split(np.arange(len(samples)), streams)
    rows = np.array(samples.data, np.float32)
    places = dict(zip((each.name for each in signature.inputs), signature.input_places(), strict=True))
    with torch.inference_mode():
        for step in range(max(map(len, order)) - 1):
            here = np.array([each[step] for each in order if len(each) > step + 1])
            found = signature.split(model.module(torch.from_numpy(rows[here])).numpy())
            for spec, output in signature.states:
                rows[here + 1, places[spec.name]] = found[output.name].reshape(len(here), -1)
    return dataclasses.replace(samples, data=rows)


def _has_states(rows: np.ndarray, signature: Signature) -> bool:
    """Whether some sample begins with another state than the default."""
    return any(
        spec.state is not None and bool((rows[:, place] != (spec.default or 0.0)).any())
        for spec, place in zip(signature.inputs, signature.input_places(), strict=True)
    )
