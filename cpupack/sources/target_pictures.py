"""Targets that are pictures: ``images:DIR`` has the true one for each image of a folder, larger or clean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cpupack.recipe.files import picture_of
from cpupack.runtime.errors import InputError
from cpupack.runtime.images.preprocess import PreprocessSpec, to_pixels, upright_image, upright_size
from cpupack.runtime.tasks.frame import Frame
from cpupack.sources.request import Array, Floats, Request
from cpupack.sources.target_tables import error


def read_pictures(directory: Path, names: Sequence[str], root: Path, request: Request) -> Array:
    """Return the pictures of images, float32 ``(n, channels, height, width)`` from 0 to 1.

    A picture is as large as its image, or a whole number of times; all of the same number. It is resized and cropped as
    the image is, so many times as large. NaN is where a border was added to the image. Pixels that are left over, as
    of a picture of 321 for an image of 80, are cut off. Raises CalibrationError that names a file.
    """
    assert request.preprocess is not None
    if not directory.is_dir():
        raise error(request, f"{directory} is not a directory", "paths are relative to the recipe")
    found: list[Floats] = []
    first = 0
    for name in names:
        path = picture_of(directory, name)
        if path is None:
            raise error(
                request,
                f"{directory / name} does not exist",
                "each image needs a picture of the same name; its ending may be another",
            )
        try:
            picture = upright_image(path)
        except InputError as fault:
            raise error(request, f"{path}: {fault}") from fault
        times = _times(path, picture.size, root / name, request)
        first = first or times
        if times != first:
            raise error(request, f"{path} is {times} times as large as its image, and that of {names[0]} {first} times")
        found.append(_moved(picture, times, upright_size(root / name), request.preprocess))
    return np.stack(found)


def _times(path: Path, size: tuple[int, int], image: Path, request: Request) -> int:
    """Return how many times a picture is as large as its image."""
    small = upright_size(image)
    times = [large // each for large, each in zip(size, small, strict=True)]
    if (
        times[0] != times[1]
        or times[0] < 1
        or any(large - times[0] * each >= max(times[0], 1) for large, each in zip(size, small, strict=True))
    ):
        raise error(
            request,
            f"{path} has {size[0]} x {size[1]} pixels, and {image.name} has {small[0]} x {small[1]}",
            "a picture is as large as its image, or a whole number of times; others: a factory that yields "
            "(image, picture) pairs",
        )
    return times[0]


def _moved(picture: Image.Image, times: int, size: tuple[int, int], spec: PreprocessSpec) -> Floats:
    """Return a picture as the model's output is expected to have it.

    The crop is counted in pixels of the image, since half a pixel of it would be a whole one of the picture.
    """
    width, height = size
    frame = Frame.of(width, height, spec)
    resized = round(times * frame.resized_height), round(times * frame.resized_width)
    inner = PreprocessSpec(resize=resized, interpolation=spec.interpolation)
    pixels = to_pixels(picture.crop((0, 0, times * width, times * height)), inner).astype(np.float32) / 255
    rows, columns = times * frame.input_height, times * frame.input_width
    top, left = round(times * frame.top), round(times * frame.left)
    whole = np.full((rows, columns, pixels.shape[2]), np.nan, np.float32)
    seen = pixels[max(top, 0) : max(top, 0) + rows, max(left, 0) : max(left, 0) + columns]
    above, before = max(-top, 0), max(-left, 0)
    whole[above : above + len(seen), before : before + seen.shape[1]] = seen[: rows - above, : columns - before]
    return whole.transpose(2, 0, 1)
