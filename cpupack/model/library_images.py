"""Compares ``[preprocess]`` of a transformers directory with what the library itself makes of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpupack.errors import ModelError
from cpupack.model.directories import directory_of, library_of, quiet
from cpupack.model.user_code import describe_failure
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.derived import images_of
from cpupack.recipe.image_directory import ImageSettings
from cpupack.recipe.json_objects import read_json
from cpupack.recipe.tables.signature import Preprocess
from cpupack.runtime.images.preprocess import normalize, to_pixels
from cpupack.runtime.images.spec import PreprocessSpec

_SIZES = ((300, 200), (200, 300), (640, 480), (97, 131))
"""Width and height of the pictures: lying, standing, larger and smaller than what models take."""
_LEVELS = 2.0
"""Of 255. Two libraries that resize in the same way differ by less; the means of two training sets by more."""


def check_images(loaded: LoadedRecipe, progress: Progress) -> None:
    """Say what was taken from a directory's preprocessor_config.json. Raises ModelError where it does not do the same.

    Recipes of other sources, and of models that read no images, are left alone.
    """
    recipe = loaded.recipe
    if not recipe.model.source.startswith("transformers:") or recipe.input:
        return
    directory = directory_of(loaded)
    settings = images_of(
        recipe.model_copy(update={"preprocess": None}), directory, read_json(directory / "config.json")
    )
    if settings is None:
        return
    table = recipe.preprocess
    if table is None:
        progress.warn(
            f"[preprocess] {settings.file} {settings.problem}, which [preprocess] cannot say: the wheel takes arrays"
        )
        return
    progress.note(f"[preprocess] from {settings.file}: {_in_words(table)}")
    own = _own(table, settings)
    if own or recipe.model.input_shape != (None if settings.shape is None else list(settings.shape)):
        if own:
            progress.note(f"[preprocess] {settings.file} has other values for {', '.join(own)}; the recipe's are taken")
        return
    _compare(loaded, settings, PreprocessSpec.from_dict(table.model_dump()), progress)


def _own(table: Preprocess, settings: ImageSettings) -> list[str]:
    """Return the keys that the recipe has otherwise than the directory."""
    if settings.problem is not None:
        return ["resize and crop"]
    return [name for name, value in settings.keys.items() if getattr(table, name) != value]


def _in_words(table: Preprocess) -> str:
    parts = [f"{name} {getattr(table, name)}" for name in ("resize", "crop") if getattr(table, name) is not None]
    mean, std = ([float(f"{each:.4g}") for each in values] for values in (table.mean, table.std))
    return ", ".join([*parts, table.interpolation, table.mode, f"mean {mean}", f"std {std}"])


def _compare(loaded: LoadedRecipe, settings: ImageSettings, spec: PreprocessSpec, progress: Progress) -> None:
    directory = directory_of(loaded)
    library = library_of("transformers")
    pictures = [_picture(*size, grey=spec.channels == 1) for size in _SIZES]
    try:
        with quiet():
            processor = library.AutoImageProcessor.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
            theirs = [np.asarray(processor(each, return_tensors="np")["pixel_values"][0]) for each in pictures]
    except Exception as error:  # noqa: BLE001 - the library raises any class; the file is taken as it was read
        progress.warn(
            f"[preprocess] transformers cannot read {directory / settings.file} ({describe_failure(error)}): the "
            "images of the wheel could not be compared with its own"
        )
        return
    for picture, expected in zip(pictures, theirs, strict=True):
        found = normalize(to_pixels(picture, spec)[None], spec)[0]
        if found.shape == expected.shape and (off := _levels(found, expected, spec)) <= _LEVELS:
            continue
        what = (
            f"differs by {off:.1f} of 255 levels"
            if found.shape == expected.shape
            else f"has the shape {expected.shape} there and {found.shape} here"
        )
        raise ModelError(
            f"[preprocess] {directory / settings.file} was read as {_in_words_of(spec)}, and a picture of "
            f"{picture.width} x {picture.height} {what} from what the library's {type(processor).__name__} makes of it",
            hint="say in [preprocess] how an image becomes the model's input; keys of the recipe win",
        )


def _levels(found: npt.NDArray[np.float32], expected: npt.NDArray[Any], spec: PreprocessSpec) -> float:
    """Return the root mean square of the difference in levels of 255."""
    scale = np.resize(np.asarray(spec.std, np.float64), spec.channels)[:, None, None] * 255
    return float(np.sqrt(np.square((found.astype(np.float64) - expected) * scale).mean()))


def _in_words_of(spec: PreprocessSpec) -> str:
    return (
        f"resize {spec.resize}, crop {spec.crop}, {spec.interpolation}, {spec.mode}, mean {spec.mean}, std {spec.std}"
    )


def _picture(width: int, height: int, *, grey: bool) -> Image.Image:
    """Return a smooth picture whose channels differ: no filter, and no shift by half a pixel, changes it much."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = [220 * across + 10, 200 * down + 30, 120 + 90 * np.sin(3 * (across + down))]
    pixels = np.stack(planes, axis=2).round().astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if grey else pixels)
