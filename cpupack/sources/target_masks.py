"""Targets that are masks: ``masks:DIR`` has a PNG of classes for each image, or one of each class by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels, upright_size
from cpupack.runtime.tasks.spec import MASKS
from cpupack.sources.classes import labels_of
from cpupack.sources.request import Array, Request
from cpupack.sources.target_tables import error

_UNKNOWN = 255


def read_masks(directory: Path, names: Sequence[str], root: Path, request: Request) -> Array:
    """Return the masks of images, uint8 ``(n, height, width)`` of the model's input: classes, 255 where none is known.

    With ``[task] kind = "masks"`` a folder of each label has the pixels of its class: int8 ``(n, classes, height,
    width)`` of 0 and 1, -1 in a border. Raises CalibrationError that names a file.
    """
    assert request.preprocess is not None
    if not directory.is_dir():
        raise error(request, f"{directory} is not a directory", "paths are relative to the recipe")
    spec = dataclasses.replace(
        request.preprocess, interpolation="nearest", mode="L", mean=(0.0,), std=(1.0,), pad_value=(0,)
    )
    task = request.loaded.recipe.task
    if task is not None and task.kind == MASKS:
        return _of_each_class(directory, names, root, spec, request)
    seen: set[int] = set()
    found = []
    for name in names:
        values = _read(directory / Path(name).with_suffix(".png"), root / name, request)
        seen.update(np.unique(values).tolist())
        found.append((_moved(values, spec) - 1).astype(np.uint8))
    if seen == {0, _UNKNOWN}:
        raise error(
            request,
            f"the masks in {directory} have 0 and {_UNKNOWN} alone, and {_UNKNOWN} stands for unknown",
            "save the class as 1",
        )
    return np.stack(found)


def _of_each_class(directory: Path, names: Sequence[str], root: Path, spec: PreprocessSpec, request: Request) -> Array:
    labels = labels_of(request)
    if labels is None:
        raise error(
            request,
            "nothing says which classes there are",
            "name them in [model] labels; the masks of a class are in a folder of its name",
        )
    if lacking := [label for label in labels if not (directory / label).is_dir()]:
        raise error(
            request,
            f"{directory} has no folder {lacking[0]}",
            'of kind "masks" each label has a folder, with a PNG for each image: 0 where the class is not',
        )
    found = []
    for name in names:
        paths = [directory / label / Path(name).with_suffix(".png") for label in labels]
        masks = [_read(path, root / name, request) for path in paths]
        found.append([_moved((each > 0).astype(np.uint8), spec) - 1 for each in masks])
    return np.array(found, np.int8)


def _read(path: Path, image: Path, request: Request) -> Array:
    """Return the values of one mask, uint8 ``(height, width)`` of its image."""
    if not path.is_file():
        raise error(request, f"{path} does not exist", "each image needs a PNG of the same name, with a class a pixel")
    try:
        with Image.open(path) as opened:
            mode, size, values = opened.mode, opened.size, np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as fault:
        raise error(request, f"{path} cannot be read: {fault}") from fault
    task = request.loaded.recipe.task
    if values.dtype == np.bool_ and values.ndim == 2 and task is not None and task.kind == MASKS:
        values = values.astype(np.uint8)
    if values.ndim != 2 or values.dtype == np.bool_ or values.max(initial=0) > _UNKNOWN:
        raise error(
            request,
            f"{path} has the mode {mode} and values up to {values.max(initial=0)}; a mask has one channel of 0 to 254",
            "save classes as an 8-bit grey or palette PNG; 255 stands for unknown",
        )
    if size != (seen := upright_size(image)):
        raise error(request, f"{path} has {size[0]} x {size[1]} pixels, and {image.name} has {seen[0]} x {seen[1]}")
    return values


def _moved(values: Array, spec: PreprocessSpec) -> Array:
    """Return a mask as the model's input has it, int64, with one more for each class: 0 is a border or unknown."""
    more = (values.astype(np.int64) + 1).astype(np.uint8)
    return to_pixels(decode_image(Image.fromarray(more)), spec)[..., 0].astype(np.int64)
