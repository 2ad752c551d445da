"""Random inputs that a model takes: to try it, to time it, and to calibrate where there is no data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .images.inputs import random_input
from .open_inputs import names_of
from .rows import add_sizes, flat
from .signature import Array, Floats
from .tensor_spec import TensorSpec, takes_rows

_SOME_IDS = 256
"""How many ids random values have where any whole number is fine."""
_MOSTLY = 0.9
"""The share of ones in a random mask: a sample without any would have nothing to attend to."""


def random_engine_input(
    inputs: Sequence[TensorSpec], generator: np.random.Generator, count: int, *, pixel_input: bool
) -> Array:
    """Return a batch as the engine takes it, with random values that the model takes.

    For one image these are pixels as ``images.inputs.model_input`` makes them for a model with ``pixel_input``.
    """
    if not takes_rows(inputs):
        return random_input(generator, count, inputs[0].shape, inputs[0].preprocess, pixel_input=pixel_input)
    return random_rows(inputs, generator, count)


def random_rows(inputs: Sequence[TensorSpec], generator: np.random.Generator, count: int) -> Floats:
    """Return rows with values that the model takes: ids of its vocabulary, random pixels, masks of mostly ones."""
    parts = [flat(each, random_batch(each, generator, count)) for each in inputs]
    parts.append(np.empty((count, len(names_of(inputs))), np.float32))
    rows = np.concatenate([np.asarray(each, np.float32) for each in parts], axis=1)
    add_sizes(inputs, rows)
    return rows


def random_batch(spec: TensorSpec, generator: np.random.Generator, count: int) -> Array:
    """Return a batch of one input with values that the model takes."""
    if spec.pixel_shape is not None:
        return generator.integers(0, 256, (count, *spec.pixel_shape), dtype=np.uint8)
    shape = (count, *spec.shape)
    if spec.state is not None:  # a stream begins with it
        return np.full(shape, spec.default or 0.0, np.float32)
    if spec.dtype == "float32":
        return generator.standard_normal(shape, dtype=np.float32)
    if spec.dtype == "bool" or (spec.dtype == "int64" and spec.vocabulary in {None, 2} and not spec.vocabularies):
        mask = generator.random(shape) < _MOSTLY
        mask.reshape(count, -1)[:, 0] = True
        return mask.astype(spec.dtype)
    limits = [each or _SOME_IDS for each in spec.vocabularies] or (spec.vocabulary or _SOME_IDS)
    return generator.integers(spec.least, limits, shape, dtype=spec.dtype)
