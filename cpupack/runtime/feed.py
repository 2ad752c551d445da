"""What the pool takes: of a batch as callers give it, or made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import rows
from .images.inputs import model_input
from .images.spec import PreprocessSpec
from .signature import Signature
from .text.made_up import text_batch
from .text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Feed:
    """Makes the pool's batches. ``spec`` is None for a model without images, ``tokenizer`` for one without text."""

    signature: Signature
    spec: PreprocessSpec | None
    tokenizer: Tokenizer | None
    pixel_input: bool
    takes_rgb: bool

    def ready(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what the pool takes for a batch that ``Runner.check_batch`` accepts."""
        if self.takes_rgb and batch.dtype == np.uint8:
            return batch.transpose(0, 3, 1, 2)  # unchanged: the kernels add the mask while they read
        return model_input(batch, self.spec, pixel_input=self.pixel_input)

    def image_size(self, batch: npt.NDArray[Any]) -> tuple[int, int] | None:
        """Return the height and width of a batch of images that ``ready`` takes, or both sides of sequences.

        None for a package of one size.
        """
        sizes = self.signature.sizes
        if sizes is None:
            return None
        if not sizes.is_image:
            return sizes.size_of(batch.shape[1:])
        first = 1 if self.spec is not None and batch.dtype == np.uint8 else 2
        return batch.shape[first], batch.shape[first + 1]

    def example(self, batch_size: int) -> npt.NDArray[Any]:
        """Return a batch for the pool: random, and always the same."""
        if self.tokenizer is not None:
            return text_batch(self.tokenizer.spec, self.signature.inputs, np.random.default_rng(0), batch_size)
        return rows.random_engine_input(
            self.signature.inputs, np.random.default_rng(0), batch_size, pixel_input=self.pixel_input
        )
