"""Made-up texts as rows of a model's inputs: random tokens, with padding behind them as real texts have it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..random_rows import random_rows
from ..signature import Floats
from ..tensor_spec import TensorSpec, input_places
from .spec import TokenizerSpec

FEWEST = 8
"""Tokens of the shortest text."""


def text_batch(spec: TokenizerSpec, inputs: Sequence[TensorSpec], generator: np.random.Generator, count: int) -> Floats:
    """Return rows ``(count, values)`` of texts with 8 tokens to the most that the model reads, all as likely."""
    rows = random_rows(inputs, generator, count)
    longest = spec.max_length
    lengths = generator.integers(min(FEWEST, longest), longest + 1, count)
    places = np.arange(longest)
    real = places < lengths[:, None] if spec.side == "right" else places >= longest - lengths[:, None]
    for each, place in zip(inputs, input_places(inputs), strict=True):
        if each.name == spec.ids:
            rows[:, place] = np.where(real, rows[:, place], spec.pad_id)
        elif each.name == spec.mask:
            rows[:, place] = real
        elif each.name == spec.types:
            rows[:, place] = np.where(real, 0, spec.pad_type_id)
    return rows
