"""One sample of several inputs, from what ``predict`` is given: files, arrays and numbers by the names of inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import array_in, load_npy, of_tensor, why_unread
from .errors import InputError
from .files import UNREADABLE
from .images.paths import check_path, path_errors
from .rows import array_of, by_name, pack
from .signature import Array, Floats, Signature
from .tensor_spec import TensorSpec

_UNREADABLE: tuple[type[Exception], ...] = (*UNREADABLE, AttributeError)

ARCHIVE = ".npz"
"""The ending of files that hold all inputs of a sample by name."""


def parsed_values(signature: Signature, texts: Sequence[str]) -> dict[str, Any]:
    """Return the inputs of one sample by name from texts ``NAME=VALUE`` of a command line.

    A value is a file, or a number, ``true``, ``false`` or a list in JSON. Raises InputError.
    """
    specs = {each.name: each for each in signature.inputs}
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not value:
            raise InputError(f"--input {text}: must be NAME=VALUE with a name of {', '.join(specs)}")
        found = by_name(signature, (found,), {name: value}) if found else by_name(signature, (), {name: value})
        spec = specs[name]
        if spec.preprocess is None and not value.endswith(".npy"):
            try:
                found[name] = json.loads(value)
            except ValueError:
                one = "true, false" if spec.dtype == "bool" else "a number"
                raise InputError(
                    f"--input {text}: {name} is {spec.dtype} {spec.shape}; give an .npy file, {one}, or a list in "
                    "brackets"
                ) from None
        else:
            check_path(value)
    return found


def check_files(signature: Signature, names: Sequence[str]) -> None:
    """Raise InputError for files of a command line that are one input of a model that needs several."""
    needed = [each.name for each in signature.inputs if each.default is None]
    alone = next((each for each in names if not each.endswith(ARCHIVE)), None)
    if len(needed) > 1 and alone is not None:
        told = " ".join(f"--input {each}=..." for each in needed)
        raise InputError(f"{alone} is one input, and the model needs {len(needed)}: {told}, or an .npz file of all")


def load_row(signature: Signature, item: Any, *, check_finite: bool) -> Floats:
    """Return the row ``(values,)`` of one sample.

    ``item`` is a dict by the names of the inputs, an ``.npz`` file of such arrays, or the only input that has no
    default. A value is what ``load_value`` takes. Raises InputError that names the input.
    """
    if isinstance(item, str | os.PathLike) and str(item).endswith(ARCHIVE):
        item = read_archive(Path(item))
    needed = [each.name for each in signature.inputs if each.default is None]
    if not isinstance(item, Mapping) and len(needed) == 1:
        item = {needed[0]: item}
    elif not isinstance(item, Mapping):
        names = ", ".join(each.name for each in signature.inputs)
        raise InputError(f"got {type(item).__name__}; expected a dict of the inputs ({names}), or an .npz file of them")
    specs = {each.name: each for each in signature.inputs}
    given = by_name(signature, (), item)
    batches = {name: load_value(specs[name], value)[None] for name, value in given.items()}
    return np.asarray(pack(signature, batches, check_finite=check_finite, of_one=True)[0])


def read_archive(path: Path) -> dict[str, Array]:
    """Return the arrays of an ``.npz`` file. Raises InputError naming the file."""
    with path_errors(str(path)), path.open("rb") as file:
        try:
            found = np.load(file, allow_pickle=False)
            return {name: array_in(found, name) for name in found.files}
        except _UNREADABLE as error:
            raise InputError(f"{path} is not an .npz file of arrays: {why_unread(error)}") from error


def load_value(spec: TensorSpec, value: Any) -> Array:
    """Return one input of one sample as an array without the batch: uint8 pixels for an image that is a picture.

    ``value`` is an image (path, bytes, PIL image, uint8 pixels), an array, a tensor, a number, lists of numbers, or the
    path of an ``.npy`` file. Raises InputError that names the input.
    """
    try:
        if spec.pixel_shape is not None and not is_floats(value):
            tensor = of_tensor(value, "")
            return _pixels(spec, value if tensor is None else tensor)
        if isinstance(value, str | os.PathLike) or hasattr(value, "read"):
            return load_npy(Path(value) if isinstance(value, str | os.PathLike) else value)
    except InputError as error:
        raise InputError(f'input "{spec.name}": {error}') from error
    return array_of(spec, value)


def is_floats(value: Any) -> bool:
    """Return whether an image is given as the model's own floats: an array of them, or an ``.npy`` file."""
    if isinstance(value, str | os.PathLike):
        return str(value).endswith(".npy")
    dtype = getattr(value, "dtype", None)
    return dtype is not None and "float" in str(dtype)


def _pixels(spec: TensorSpec, value: Any) -> Array:
    from .images.fast import load_pixels  # here: it brings Pillow, which callers with arrays do not need

    assert spec.preprocess is not None
    pixels = load_pixels(value, spec.preprocess)
    if pixels.shape != spec.pixel_shape and not spec.names:
        raise InputError(
            f"image is {pixels.shape} (height, width, channels) after preprocessing; the model takes {spec.pixel_shape}"
        )
    return pixels
