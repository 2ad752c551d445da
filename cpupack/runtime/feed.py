"""What the pool takes: of a batch as callers give it, or made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .images.inputs import model_input
from .images.spec import PreprocessSpec
from .open_inputs import size_of_row
from .open_sizes import Size
from .random_rows import random_engine_input
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

    def size_of(self, batch: npt.NDArray[Any]) -> Size | None:
        """Return the size of the samples of a batch that ``ready`` takes; None for a package of one size."""
        sizes = self.signature.sizes
        if sizes is None:
            return None
        if not sizes.is_image:
            return sizes.size_in(batch)
        first = 1 if self.spec is not None and batch.dtype == np.uint8 else 2
        return batch.shape[first], batch.shape[first + 1]

    def kind(self, sample: npt.NDArray[Any]) -> Any:
        """Return what samples must have in common to be in one batch: their dtype, shape and size."""
        sizes = self.signature.sizes
        own = None if sizes is None or not sizes.inputs else size_of_row(sample, len(sizes.names))
        return sample.dtype, sample.shape, own

    def example(self, batch_size: int) -> npt.NDArray[Any]:
        """Return a batch for the pool: random, and always the same."""
        if self.tokenizer is not None:
            return text_batch(self.tokenizer.spec, self.signature.inputs, np.random.default_rng(0), batch_size)
        return random_engine_input(
            self.signature.inputs, np.random.default_rng(0), batch_size, pixel_input=self.pixel_input
        )
