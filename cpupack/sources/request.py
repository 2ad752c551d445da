"""The request to a data source, and the checks that every source applies to its samples."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from PIL import Image

from cpupack.errors import CalibrationError
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.tables.signature import NamedSizes
from cpupack.runtime.arrays import of_tensor
from cpupack.runtime.errors import InputError
from cpupack.runtime.host import cgroup
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels
from cpupack.runtime.tensor_spec import TensorSpec, engine_input_shape, takes_rows
from cpupack.runtime.text.spec import TextInput

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_MEMORY_SHARE = 0.8
_MAX_WORKERS = 8
_SLACK = 0.5
"""By which share of the range of normalized pixels others may lie outside it, such as those of augmented images."""
_BYTES_OF_A_NAME = 100
"""Of a sample, with the tuple that holds it. Small samples in absurd numbers need most of their memory for this."""


@dataclass(frozen=True)
class Request:
    """A request to a source: which data, how much of it, and what input the model takes.

    ``inputs`` are those of the model. ``samples`` None means all. ``labelled`` asks for a class index with each sample,
    ``targets`` for what a user's metric compares outputs with. If the data has no labels or targets, that is an error
    if they are ``required``; otherwise they are left out. ``tokenizer`` is that of a model that takes text. ``labels``
    are names that the model itself has, None for those of the recipe.
    """

    spec: str
    loaded: LoadedRecipe
    inputs: tuple[TensorSpec, ...]
    samples: int | None
    seed: int
    skip_corrupt: bool
    labelled: bool
    progress: Progress
    required: bool = True
    targets: bool = False
    tokenizer: TextInput | None = None
    labels: tuple[str, ...] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as ``Samples`` has it: that of the only float input, or of a row."""
        return engine_input_shape(self.inputs)

    @property
    def takes_rows(self) -> bool:
        """Whether a sample is a row of all inputs."""
        return takes_rows(self.inputs)

    @property
    def preprocess(self) -> PreprocessSpec | None:
        """What makes the only input from an image, None for rows and arrays."""
        return None if self.takes_rows else self.inputs[0].preprocess

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pixels that the model takes (only for recipes with [preprocess])."""
        channels, height, width = self.input_shape
        return height, width, channels

    def choose(self, count: int) -> npt.NDArray[np.int64]:
        """Return sorted indices of the samples to use out of ``count``, drawn with the seed."""
        if self.samples is None or self.samples >= count:
            self.warn_if_few(count)
            return np.arange(count, dtype=np.int64)
        return np.sort(np.random.default_rng(self.seed).choice(count, self.samples, replace=False))

    def warn_if_few(self, count: int) -> None:
        """Warn when the source has fewer samples than were asked for."""
        if self.samples is not None and count < self.samples:
            self.progress.warn(f"{self.spec} has {count} usable samples; {self.samples} were asked for")

    def check_memory(self, count: int) -> None:
        """Raise CalibrationError when ``count`` samples do not fit in the memory that this process may still take."""
        bytes_each = 4 if self.preprocess is None else 1  # rows and arrays are float32, pixels bytes
        needed = count * (math.prod(self.input_shape) * bytes_each + _BYTES_OF_A_NAME)
        free = psutil.virtual_memory().available
        if (left := cgroup.memory_left_bytes(Path("/"))) is not None:
            free = min(free, left)
        if needed > _MEMORY_SHARE * free:
            raise CalibrationError(
                f"{self.spec}: {count} samples need {needed / 2**30:.1f} GiB of memory; {free / 2**30:.1f} GiB is free",
                hint="use fewer: set samples in the table of the source",
            )


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads for work on images. Pillow and numpy's FFT release the interpreter lock."""
    pool = ThreadPoolExecutor(min(_MAX_WORKERS, HostProbe().budget().affinity), thread_name_prefix="images")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def array_of(value: Any, request: Request, name: str) -> Array:
    """Return what a user's code gives for one input as an array; a tensor in any form whose values numpy can hold.

    Raises CalibrationError with ``name`` for what is no array of numbers.
    """
    try:
        half = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
        tensor = of_tensor(value.float() if half else value, "")
        array = np.asarray(value) if tensor is None else tensor
    except (ValueError, TypeError, RuntimeError, InputError) as error:
        raise CalibrationError(f"{request.spec}: {name} is no array: {error}") from error
    if array.dtype.kind not in "biufc":
        raise CalibrationError(
            f"{request.spec}: {name} is a {type(value).__name__}"
            + ("" if array.dtype == object and not isinstance(value, np.ndarray) else f" of {array.dtype}")
            + ", not an array of numbers",
            hint="yield arrays or tensors; images may also be PIL images or paths, where the recipe has [preprocess]",
        )
    return array


def image_of(file: str | bytes | os.PathLike[str], request: Request, name: str) -> Image.Image:
    """Return the image in a file, or in its bytes. Raises CalibrationError with ``name``."""
    try:
        return decode_image(file)
    except InputError as error:
        raise CalibrationError(f"{request.spec}: {name}: {error}") from error


def pixels_of(image: Image.Image | Array, request: Request, name: str) -> Pixels:
    """Return one image as uint8 ``request.pixel_shape``.

    An array that already has the model's height and width is used unchanged. Anything else goes through the runner's
    preprocessing. Raises CalibrationError with ``name`` for a wrong number of channels or a wrong size.
    """
    assert request.preprocess is not None
    wanted = request.pixel_shape
    try:
        if isinstance(image, np.ndarray):
            image = image[:, :, None] if image.ndim == 2 else image
            _check_channels(image, request, name)
            if image.shape == wanted:
                return np.ascontiguousarray(image)
        pixels = to_pixels(decode_image(image), request.preprocess)
    except InputError as error:
        raise CalibrationError(f"{request.spec}: {name}: {error}") from error
    check_size(pixels, request, name)
    return pixels


def _check_channels(image: Array, request: Request, name: str) -> None:
    channels = request.input_shape[0]
    if image.ndim != 3:
        raise CalibrationError(f"{request.spec}: {name} has shape {image.shape}; pixels are (height, width, channels)")
    if image.shape[2] != channels:
        first = "; it looks channels-first, transpose it to (height, width, channels)"
        raise CalibrationError(
            f"{request.spec}: {name} has {image.shape[2]} channels (shape {image.shape}), "
            f"the model takes {channels}" + (first if image.shape[0] == channels else "")
        )


def check_size(pixels: Pixels, request: Request, name: str) -> None:
    """Raise CalibrationError when preprocessed pixels do not have the model's size."""
    if pixels.shape != request.pixel_shape:
        height, width, _ = request.pixel_shape
        raise CalibrationError(
            f"{request.spec}: {name} is {pixels.shape[0]} x {pixels.shape[1]} after [preprocess], "
            f"the model takes {height} x {width}",
            hint=f"set [preprocess] resize or crop to [{height}, {width}]",
        )


def floats_of(data: Array, request: Request, names: Sequence[str]) -> Floats:
    """Return ``data`` ``(n, *input_shape)`` as contiguous float32.

    Of samples whose named dimensions are longer, the centre is taken. Raises CalibrationError for a wrong shape or
    dtype. For NaN or infinity it names the first such sample.
    """
    data = _cut(data, request, names)
    if data.shape[1:] != request.input_shape:
        raise CalibrationError(
            f"{request.spec}: samples have shape {data.shape[1:]}, the model takes {request.input_shape}"
        )
    if data.dtype.kind != "f":
        pixels = "uint8 pixels need [preprocess]; otherwise " if data.dtype == np.uint8 else ""
        raise CalibrationError(
            f"{request.spec}: samples are {data.dtype}, the model takes float32", hint=f"{pixels}save them as float32"
        )
    with np.errstate(over="ignore"):  # an overflow gives infinity, which is reported below
        result = np.ascontiguousarray(data, dtype=np.float32)
    for name, row in zip(names, result, strict=True):
        if not np.isfinite(row).all():
            kind = "NaN" if np.isnan(row).any() else "infinite values"
            raise CalibrationError(
                f"{request.spec}: {name} contains {kind}", hint="remove such samples, or fix the code that made them"
            )
    return result


def _cut(data: Array, request: Request, names: Sequence[str]) -> Array:
    sizes = request.loaded.recipe.sizes
    if isinstance(sizes, NamedSizes) and data.ndim == 1 + len(request.input_shape):
        for name, axis in zip(sizes.names, sizes.axes, strict=True):
            data = centre(data, 1 + axis, name, request.input_shape[axis], request, names)
    return data


def centre(data: Array, axis: int, name: str, size: int, request: Request, names: Sequence[str]) -> Array:
    """Return the centre of samples that are longer than the typical ``size`` of a named dimension.

    Raises CalibrationError for shorter ones.
    """
    more = data.shape[axis] - size
    if more < 0:
        where = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        raise CalibrationError(
            f"{request.spec}: {where}: {name} is {data.shape[axis]}, less than the typical size, {size}",
            hint=f"set [sizes] typical to {name} = {data.shape[axis]} or less, or leave out or fill up shorter samples",
        )
    return data.take(np.arange(size) + more // 2, axis=axis) if more else data


def warn_of_raw_pixels(data: Floats, request: Request) -> None:
    """Warn of floats that [preprocess] would not make: they reach the model as they are, and are not normalized."""
    spec = request.preprocess
    if spec is None or not data.size:
        return
    low = min((0.0 - mean) / std for mean, std in zip(*_each(spec), strict=True))
    high = max((1.0 - mean) / std for mean, std in zip(*_each(spec), strict=True))
    found = float(data.min()), float(data.max())
    outside = found[1] > high + _SLACK * (high - low) or found[0] < low - _SLACK * (high - low)
    if outside or (low < 0 <= found[0] and found[1] > 0):
        request.progress.warn(
            f"{request.spec} has floats from {found[0]:.3g} to {found[1]:.3g}, and [preprocess] makes values from "
            f"{low:.3g} to {high:.3g}: floats are the model's own input and are not normalized; save pixels as uint8 "
            "(n, height, width, channels)"
        )


def _each(spec: PreprocessSpec) -> tuple[list[float], list[float]]:
    """Return mean and std, one value for each channel."""
    both = spec.mean, spec.std
    return tuple([*each] * (spec.channels // len(each)) for each in both)  # type: ignore[return-value]  # of two
