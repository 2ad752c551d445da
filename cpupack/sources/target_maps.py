"""Targets that are maps of numbers: ``maps:DIR`` has an ``.npy`` file for each image of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cpupack.runtime.files import UNREADABLE
from cpupack.runtime.images.preprocess import PreprocessSpec, upright_size
from cpupack.runtime.tasks.frame import Frame
from cpupack.sources.request import Array, Floats, Request
from cpupack.sources.target_tables import error


def read_maps(directory: Path, names: Sequence[str], root: Path, request: Request) -> Array:
    """Return the maps of images, float32 ``(n, maps, height, width)`` of the model's input; NaN where none is known.

    A file has ``(height, width)`` or ``(maps, height, width)`` of its image. Raises CalibrationError that names it.
    """
    assert request.preprocess is not None
    if not directory.is_dir():
        raise error(request, f"{directory} is not a directory", "paths are relative to the recipe")
    found: list[Floats] = []
    for name in names:
        path = directory / Path(name).with_suffix(".npy")
        found.append(_moved(_read(path, root / name, request), root / name, request.preprocess))
        if len(found[-1]) != len(found[0]):
            raise error(request, f"{path} has {len(found[-1])} maps, and that of {names[0]} {len(found[0])}")
    return np.stack(found)


def _read(path: Path, image: Path, request: Request) -> Floats:
    """Return the maps of a file, ``(maps, height, width)``."""
    if not path.is_file():
        raise error(request, f"{path} does not exist", "each image needs an .npy file of the same name")
    try:
        values = np.load(path, allow_pickle=False)
    except UNREADABLE as fault:
        raise error(request, f"{path} cannot be read: {fault}", "save it with np.save(path, values)") from fault
    if not isinstance(values, np.ndarray) or values.ndim not in (2, 3) or values.dtype.kind not in "biuf":
        told = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "several arrays"
        raise error(request, f"{path} has {told}; a map has numbers (height, width) or (maps, height, width)")
    width, height = upright_size(image)
    if values.shape[-2:] != (height, width):
        raise error(
            request,
            f"{path} has maps of {values.shape[-1]} x {values.shape[-2]} numbers, and {image.name} has {width} x "
            f"{height} pixels",
        )
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        found = np.asarray(values, np.float32).reshape(-1, height, width)
    if np.isinf(found).any():
        raise error(request, f"{path} has infinite numbers", "save NaN where nobody knows the number")
    return found


def _moved(maps: Floats, image: Path, spec: PreprocessSpec) -> Floats:
    """Return maps of an image as the model's input has it: the number of the nearest pixel, NaN in a border."""
    frame = Frame.of(*upright_size(image), spec)
    across = np.stack([np.arange(frame.input_width) + 0.5, np.zeros(frame.input_width)], axis=1)
    down = np.stack([np.zeros(frame.input_height), np.arange(frame.input_height) + 0.5], axis=1)
    columns = np.floor(frame.to_image(across)[:, 0]).astype(int)
    rows = np.floor(frame.to_image(down)[:, 1]).astype(int)
    known = ((rows >= 0) & (rows < frame.height))[:, None] & ((columns >= 0) & (columns < frame.width))
    picked = maps[:, rows.clip(0, frame.height - 1)[:, None], columns.clip(0, frame.width - 1)]
    return np.where(known, picked, np.float32(np.nan))
