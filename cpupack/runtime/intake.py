"""What a runner takes: one input of ``predict``, decoded, and whole batches; both checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import rows
from .arrays import in_own_order, is_masked, load_array, of_tensor, require_finite
from .errors import InputError
from .images.inputs import mean_color
from .images.spec import PreprocessSpec
from .items import load_row
from .manifest import Manifest
from .open_sizes import OpenSizes
from .signature import Signature
from .text.inputs import load_text
from .text.texts import is_text
from .text.tokenizer import Tokenizer, Tokens

_TAKEN = {np.dtype(np.float32): "float32", np.dtype(np.uint8): "uint8"}
"""The names of usual dtypes: numpy takes 2.5 us to write one, as long as a small layer."""


class Intake:
    """Decodes and checks inputs, with errors that say what was expected.

    ``sizes`` is None for a model of one size, ``spec`` for one that takes no images, ``tokenizer`` for one that takes
    no text. With ``check_finite`` float32 values are searched for those that INT8 has no code for.
    """

    def __init__(
        self,
        manifest: Manifest,
        signature: Signature,
        spec: PreprocessSpec | None,
        sizes: OpenSizes | None,
        tokenizer: Tokenizer | None,
        *,
        check_finite: bool,
    ) -> None:
        self.manifest, self.signature, self.sizes, self.tokenizer = manifest, signature, sizes, tokenizer
        self.check_finite = check_finite
        self._spec = spec

    def load(self, item: Any) -> npt.NDArray[Any]:
        """Return one input of ``predict``, decoded: uint8 pixels, a float32 array, or a row of several inputs.

        Raises InputError.
        """
        if self.tokenizer is not None and (isinstance(item, Tokens) or is_text(item)):
            return load_text(self.tokenizer, self.signature, item)
        if self.signature.takes_rows:
            return load_row(self.signature, item, check_finite=self.check_finite)
        if isinstance(item, Mapping):
            (item,) = rows.by_name(self.signature, (item,), {}).values() or (None,)
            if isinstance(item, list | tuple) and self._spec is None:  # numbers, as several inputs may be
                item = rows.array_of(self.signature.inputs[0], item)
        if self._spec is not None:
            return self._load_pixels(item)
        shape = self.manifest.input_shape
        if self.sizes is None:
            sample = load_array(item, shape, check_finite=self.check_finite)
            rows.check_blank(self.signature.inputs[0], sample[None])
            return sample
        found = load_array(item, None, check_finite=self.check_finite)
        self.check_batch(str(found.dtype), (1, *found.shape))
        return found

    def only(self, batch: Any = None) -> npt.NDArray[Any]:
        """Return the only input as an array, checked."""
        if (tensor := of_tensor(batch, "")) is not None:
            batch = tensor
        if not isinstance(batch, np.ndarray) or is_masked(batch):
            raise InputError(f"got {type(batch).__name__}; expected a torch tensor or a plain numpy array")
        batch = in_own_order(batch)
        self.check_batch(_TAKEN.get(batch.dtype) or str(batch.dtype), batch.shape)
        return self.finite(batch)

    def check_batch(self, dtype: str, shape: tuple[int, ...]) -> None:
        """Raise InputError for a batch that the model does not take, saying what was expected."""
        if self.sizes is not None:
            self._check_open(self.sizes, dtype, shape)
            return
        one = {"float32": self.manifest.input_shape}
        if (pixels := self.pixel_shape()) is not None:
            one["uint8"] = pixels
        if shape[1:] == one.get(dtype) and shape[0]:
            return
        expected = " or ".join(f"{name} (n, {', '.join(map(str, size))})" for name, size in one.items())
        got = f"{dtype} {shape}"
        if dtype not in one or shape[1:] != one[dtype]:
            missing = "; add the batch dimension: batch[None]" if shape == one.get(dtype) else ""
            raise InputError(f"got {got}; expected {expected}{missing}")
        if not shape[0]:
            raise InputError(f"got an empty batch, {got}; expected {expected} with n >= 1")

    def _check_open(self, sizes: OpenSizes, dtype: str, shape: tuple[int, ...]) -> None:
        """Raise InputError for a batch of images or sequences of a size that the model does not take."""
        if not sizes.is_image:
            sizes.check(dtype, shape)
            return
        channels = self.manifest.input_shape[0]
        forms = {"float32": (f"float32 (n, {channels}, height, width)", 2)}
        if self._spec is not None:
            forms["uint8"] = (f"uint8 (n, height, width, {channels})", 1)
        wanted = f"{' or '.join(text for text, _ in forms.values())} with {sizes.text()}"
        got = f"got {dtype} {shape}"
        if dtype not in forms or len(shape) != 4:
            raise InputError(f"{got}; expected {wanted}")
        first = forms[dtype][1]
        if shape[1 if first == 2 else 3] != channels or not sizes.takes(*shape[first : first + 2]):
            raise InputError(f"{got}; expected {wanted}")
        if not shape[0]:
            raise InputError(f"{got}, an empty batch; expected n >= 1")

    def pixel_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one input of uint8 pixels, None for a model that takes no images."""
        shape = self.manifest.input_shape
        return (shape[1], shape[2], shape[0]) if self._spec is not None and len(shape) == 3 else None

    def finite(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the batch. Raises InputError that says which sample has a value that INT8 cannot hold, or no step."""
        if self.check_finite and batch.dtype == np.float32:
            require_finite(batch)
        if not self.signature.takes_rows:
            rows.check_blank(self.signature.inputs[0], batch)
        return batch

    def _load_pixels(self, item: Any) -> npt.NDArray[np.uint8]:
        assert self._spec is not None
        from .images.fast import load_pixels  # here: it brings Pillow, which callers with batches do not need

        tensor = of_tensor(item, "")
        pixels = load_pixels(item if tensor is None else tensor, self._spec)
        if self.sizes is not None:
            try:
                return self.sizes.fill(pixels, mean_color(self._spec))
            except InputError as error:
                raise InputError(f"{item}: {error}" if isinstance(item, str | os.PathLike) else str(error)) from None
        if pixels.shape != self.pixel_shape():
            name = f"{item}: " if isinstance(item, str | os.PathLike) else ""
            raise InputError(
                f"{name}image is {pixels.shape} (height, width, channels) after preprocessing; "
                f"the model takes {self.pixel_shape()}"
            )
        return pixels
