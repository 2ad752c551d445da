"""``images:DIR``: all images below a directory, decoded by the runner's own preprocessing."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.runtime.errors import InputError
from cpupack.runtime.images.formats import suffixes
from cpupack.runtime.images.paths import check_regular
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels
from cpupack.runtime.names import printable
from cpupack.sources.classes import class_indices
from cpupack.sources.named import only_image, rows_of_pixels
from cpupack.sources.request import Pixels, Request, check_size, workers
from cpupack.sources.targets import read_targets

_LISTED = 5
_PICTURES = frozenset(
    {".heic", ".heif", ".hif", ".avif", ".jxl", ".svg", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
)
"""Endings of pictures. Which of them are left out depends on the Pillow that is installed."""


def read(directory: str, request: Request) -> Samples:
    """Return ``request.samples`` images, chosen by the seed, in the order of their sorted paths.

    A corrupt image is an error that names the file. With ``skip_corrupt`` a warning and ``Samples.skipped`` name it,
    and the next image in the random order takes its place.
    """
    if request.takes_rows:
        image = only_image(request)
        return rows_of_pixels(read(directory, replace(request, inputs=(image,))), image, request)
    root = request.loaded.resolve(directory)
    if request.preprocess is None:
        raise CalibrationError(f"{request.spec}: images need [preprocess] in the recipe")
    if not root.is_dir():
        raise CalibrationError(f"{request.spec}: {root} is not a directory", hint="paths are relative to the recipe")
    try:
        files, left_out = _image_files(root)
    except OSError as error:  # else the images of a folder would be missed without a word
        raise CalibrationError(f"{request.spec}: {error.filename} cannot be read: {error.strerror or error}") from error
    if not files:
        raise CalibrationError(f"{request.spec}: {root} holds no images", hint=_what_is_there(root))
    _tell_left_out(left_out, request)
    truth = request.loaded.recipe.evaluation.targets if request.targets else None
    wanted_classes = truth is None and (request.labelled or request.targets)
    classes = _classes_if_any(root, files, request) if wanted_classes else None
    order = np.random.default_rng(request.seed).permutation(len(files))
    wanted = len(files) if request.samples is None else min(request.samples, len(files))
    request.check_memory(wanted)
    decoded, skipped = _decode_until(wanted, [files[index] for index in order], root, request)
    if not decoded:
        raise CalibrationError(f"{request.spec}: none of the {len(files)} images below {root} can be decoded")
    request.warn_if_few(len(decoded))
    chosen = sorted(decoded)
    classes_of = None
    if classes is not None:
        classes_of = np.array([classes[_class_of(name)] for name in chosen], np.int64)
    return Samples(
        data=np.stack([decoded[name] for name in chosen]),
        origin=request.spec,
        names=tuple(chosen),
        preprocess=request.preprocess,
        labels=classes_of if request.labelled else None,
        targets=_targets(truth, chosen, root, request, classes_of),
        class_names=tuple(sorted(classes, key=classes.__getitem__)) if classes is not None else (),
        skipped=tuple(sorted(skipped)),
    )


def _targets(
    truth: str | None, names: list[str], root: Path, request: Request, classes: npt.NDArray[np.int64] | None
) -> npt.NDArray[Any] | None:
    """Return what a metric compares with: what the recipe names, else the classes of the folders."""
    if truth is not None:
        return read_targets(truth, names, root, request)
    return classes if request.targets else None


def _image_files(root: Path) -> tuple[list[str], Counter[str]]:
    """Return the files below ``root`` that have an ending of images, as sorted relative POSIX paths.

    Hidden files and directories are left out. The counter has the endings of all other files. Raises OSError for a
    directory that cannot be read.
    """
    wanted = suffixes()
    found, seen, left_out = [], set(), Counter[str]()
    # Class folders are often links. A link to a parent directory must not be followed forever.
    for directory, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        relative = Path(directory).relative_to(root)
        for name in names:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in wanted:
                found.append((relative / name).as_posix())
            else:
                left_out[suffix] += 1
    return sorted(found), left_out


def _refuse(error: OSError) -> NoReturn:
    raise error


def _tell_left_out(left_out: Counter[str], request: Request) -> None:
    """Say which files of a directory are not read: pictures that Pillow does not read would be missed."""
    pictures = {suffix: count for suffix, count in left_out.items() if suffix in _PICTURES}
    if pictures:
        request.progress.warn(
            f"{request.spec}: {_counted(pictures)} left out, which Pillow does not read; convert them to JPEG or PNG"
        )
    others = {suffix or "without an ending": count for suffix, count in left_out.items() if suffix not in _PICTURES}
    if others:
        request.progress.note(f"{request.spec}: left out, as no images by their endings: {_counted(others)}")


def _counted(kinds: dict[str, int]) -> str:
    named = [f"{count:,} {suffix}" for suffix, count in sorted(kinds.items(), key=lambda each: -each[1])]
    return ", ".join(named[:_LISTED]) + (" and others" if len(named) > _LISTED else "")


def _what_is_there(root: Path) -> str:
    others = sorted(path.name for path in root.iterdir())
    if not others:
        return "the directory is empty; put images into it"
    listed = ", ".join(others[:_LISTED]) + (" ..." if len(others) > _LISTED else "")
    pictures = any(path.suffix.lower() in _PICTURES for path in root.rglob("*"))
    convert = "; convert its pictures to JPEG or PNG" if pictures else ""
    return f"nothing in it has an extension that Pillow opens; it holds {listed}{convert}"


def _classes_if_any(root: Path, files: list[str], request: Request) -> dict[str, int] | None:
    """Return the class of each folder, or None if some image has no class and classes are not required."""
    if request.required or request.targets:
        return _classes(root, files, request)
    if any("/" not in name for name in files):
        return None
    try:
        return _classes(root, files, request)
    except CalibrationError as error:
        request.progress.warn(f"accuracy is not measured: {error.message}")
        return None


def _classes(root: Path, files: list[str], request: Request) -> dict[str, int]:
    loose = [name for name in files if "/" not in name]
    if loose:
        raise CalibrationError(
            f"{request.spec}: {len(loose)} images are directly in {root} ({loose[0]}, ...) and have no class",
            hint="put the images of each class into a folder of its own",
        )
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    odd = next((name for name in folders if printable(name) != name or len(name.splitlines()) != 1), None)
    if odd is not None:
        raise CalibrationError(
            f"{request.spec}: the class folder {odd!r} has a name that is no line of text in UTF-8",
            hint="rename the folder: its name is the label",
        )
    empty = sorted(set(folders) - {_class_of(name) for name in files})
    if empty:
        request.progress.warn(f"{request.spec}: class folders without images: {', '.join(empty[:_LISTED])}")
    return class_indices(folders, request)


def _class_of(name: str) -> str:
    return name.partition("/")[0]


def _decode_until(wanted: int, files: list[str], root: Path, request: Request) -> tuple[dict[str, Pixels], list[str]]:
    """Decode files in the given order until ``wanted`` are good. Return the good images and the bad names."""
    decoded: dict[str, Pixels] = {}
    skipped: list[str] = []
    start = 0
    assert request.preprocess is not None
    decode = partial(_pixels, root, request.preprocess)
    with workers() as pool:
        while len(decoded) < wanted and start < len(files):
            part = files[start : start + wanted - len(decoded)]
            start += len(part)
            bad: list[tuple[str, str]] = []
            for name, result in zip(part, pool.map(decode, part), strict=True):
                if isinstance(result, str):
                    bad.append((name, result))
                else:
                    check_size(result, request, name)
                    decoded[name] = result
                request.progress.step(len(decoded), wanted, "images")
            _report(bad, len(part), request)
            skipped += [name for name, _ in bad]
    return decoded, skipped


def _pixels(root: Path, spec: PreprocessSpec, name: str) -> Pixels | str:
    """Return the preprocessed image, or what is wrong with it."""
    path = root / name
    try:
        check_regular(str(path))
        return to_pixels(decode_image(path), spec)
    except InputError as error:
        text = str(error)
        return text if str(path) in text else f"{path}: {text}"


def _report(bad: list[tuple[str, str]], count: int, request: Request) -> None:
    if not bad:
        return
    listed = [reason for _, reason in sorted(bad)[:_LISTED]]
    if request.skip_corrupt:
        for reason in listed:
            request.progress.warn(f"skipped: {reason}")
        if len(bad) > _LISTED:
            request.progress.warn(f"skipped {len(bad) - _LISTED} more images that cannot be decoded")
        return
    more = f"\n  and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    raise CalibrationError(
        f"{request.spec}: {len(bad)} of {count} images cannot be used:\n  " + "\n  ".join(listed) + more,
        hint="remove or repair them, or set skip_corrupt = true in the table of the source",
    )
