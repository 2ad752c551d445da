"""``[evaluation] targets``: what metrics of tasks compare with, for the images of a folder.

Boxes of a COCO file, masks in a folder, or the rows of a CSV file. Geometry is that of the model's input: resize and
crop are done to masks and boxes too.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cpupack.errors import CalibrationError
from cpupack.recipe.metrics import known_metric
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels, upright_size
from cpupack.runtime.tasks.frame import Frame
from cpupack.sources.classes import labels_of
from cpupack.sources.request import Array, Request

_UNKNOWN = 255
_PADDING = -1.0


def read_targets(spec: str, names: Sequence[str], root: Path, request: Request) -> Array:
    """Return the targets of images, ``names`` relative to ``root``, in their order.

    ``coco:`` gives float32 ``(n, most, 6)`` of xmin, ymin, xmax, ymax in pixels of the model's input, class and crowd,
    padded with -1; ``masks:`` uint8 ``(n, height, width)``; ``csv:`` float64 ``(n, columns)``. Raises CalibrationError
    for a file that is missing or damaged, an image that it does not have, and classes that the model does not have.
    """
    kind, _, rest = spec.partition(":")
    path = request.loaded.resolve(rest)
    readers = {"coco": _coco, "masks": _masks, "csv": _csv}
    return readers[kind](path, names, root, request)


def _error(request: Request, text: str, hint: str | None = None) -> CalibrationError:
    return CalibrationError(f"[evaluation] targets of {request.spec}: {text}", hint=hint)


def _coco(path: Path, names: Sequence[str], root: Path, request: Request) -> Array:
    assert request.preprocess is not None
    try:
        content = json.loads(path.read_bytes())
        images = {str(each["file_name"]): each["id"] for each in content["images"]}
        twice = _twice(str(each["file_name"]) for each in content["images"])
        one_id = _twice(each["id"] for each in content["images"])
        classes = _classes(content["categories"], request)
        boxes: dict[Any, list[list[float]]] = {number: [] for number in images.values()}
        for each in content["annotations"]:
            left, top, width, height = (float(number) for number in each["bbox"])
            _check_annotation(each, boxes, classes, path, request)
            index, crowd = classes[each["category_id"]], float(each.get("iscrowd", 0))
            boxes[each["image_id"]].append([left, top, left + width, top + height, index, crowd])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _error(
            request,
            f"{path} is no COCO file of boxes: {type(error).__name__}: {error}",
            "it needs images (id, file_name), annotations (image_id, category_id, bbox) and categories (id, name)",
        ) from error
    if twice is not None:
        raise _error(request, f"{path} has the image {twice} twice")
    if one_id is not None:
        both = [name for name, number in images.items() if number == one_id]
        raise _error(
            request,
            f"{path} has two images with the id {one_id}, {both[0]} and {both[1]}, and both would get all their boxes",
            "give each image an id of its own; files that were joined often have the same ids",
        )
    _check_short_names(path, names, images, request)
    found = []
    for name in names:
        key = name if name in images else Path(name).name
        if key not in images:
            raise _error(request, f"{path} has no image {name}", "images without objects must be listed too")
        these = np.array(boxes[images[key]], np.float64).reshape(-1, 6)
        width, height = upright_size(root / name)
        outside = (these[:, :4] < -1).any(axis=1) | (these[:, 2] > width + 1) | (these[:, 3] > height + 1)
        if outside.any():
            box = [round(float(each), 1) for each in these[outside][0][:4]]
            raise _error(
                request,
                f"{path}: the box {box} lies outside {name}, which has {width} x {height} pixels",
                "bbox is [x, y, width, height] in pixels of the image as it is seen, after its EXIF orientation",
            )
        frame = Frame.of(width, height, request.preprocess)
        these[:, :4] = frame.boxes_to_input(these[:, :4])
        found.append(these[(these[:, 2] > these[:, 0]) & (these[:, 3] > these[:, 1])])  # the crop left nothing
    result = np.full((len(names), max(1, *map(len, found)), 6), _PADDING, np.float32)
    for row, these in enumerate(found):
        result[row, : len(these)] = these
    return result


def _check_annotation(
    annotation: dict[str, Any], images: Container[Any], classes: Container[Any], path: Path, request: Request
) -> None:
    """Raise CalibrationError for a box of an image or a category that the file does not have, or of no size."""
    for key, known, what in (("image_id", images, "image"), ("category_id", classes, "category")):
        if annotation[key] not in known:
            raise _error(request, f"{path} has a box of the {what} {annotation[key]!r}, and no {what} with this id")
    bbox = annotation["bbox"]
    if not np.isfinite([float(each) for each in bbox]).all() or min(float(bbox[2]), float(bbox[3])) < 0:
        raise _error(
            request,
            f"{path}: the box {bbox} of the image {annotation['image_id']!r} has no width and height",
            "bbox is [x, y, width, height] in pixels, not two corners",
        )


def _twice(names: Iterable[Any]) -> Any:
    """Return the first name that appears twice, None without one."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _check_short_names(path: Path, names: Sequence[str], known: Container[str], request: Request) -> None:
    """Raise CalibrationError where a file names two images of different folders by one name without folders."""
    twice = _twice(Path(name).name for name in names if name not in known and Path(name).name in known)
    if twice is not None:
        both = [name for name in names if Path(name).name == twice]
        raise _error(
            request,
            f"{path} has {twice}, which may be {both[0]} or {both[1]}",
            "name the images with their folders, as below the source",
        )


def _classes(categories: list[dict[str, Any]], request: Request) -> dict[Any, int]:
    """Return the class of each category: that of its name in the labels, else its id."""
    labels = labels_of(request)
    if labels is None:
        return {each["id"]: int(each["id"]) for each in categories}
    found = {}
    for each in categories:
        if each["name"] not in labels:
            near = get_close_matches(str(each["name"]), labels, n=1)
            raise _error(
                request,
                f'the category "{each["name"]}" is none of the labels'
                + (f'; did you mean "{near[0]}"?' if near else ""),
                "name the categories as [model] labels does",
            )
        found[each["id"]] = labels.index(each["name"])
    return found


def _masks(directory: Path, names: Sequence[str], root: Path, request: Request) -> Array:
    assert request.preprocess is not None
    if not directory.is_dir():
        raise _error(request, f"{directory} is not a directory", "paths are relative to the recipe")
    spec = dataclasses.replace(
        request.preprocess, interpolation="nearest", mode="L", mean=(0.0,), std=(1.0,), pad_value=(0,)
    )
    seen: set[int] = set()
    found = [_mask(directory / Path(name).with_suffix(".png"), root / name, spec, request, seen) for name in names]
    if seen == {0, _UNKNOWN}:
        raise _error(
            request,
            f"the masks in {directory} have 0 and {_UNKNOWN} alone, and {_UNKNOWN} stands for unknown",
            "save the class as 1",
        )
    return np.stack(found)


def _mask(path: Path, image: Path, spec: PreprocessSpec, request: Request, classes: set[int]) -> Array:
    """Return one mask as the model's input has it, and add those of the file to ``classes``."""
    if not path.is_file():
        raise _error(request, f"{path} does not exist", "each image needs a PNG of the same name, with a class a pixel")
    try:
        with Image.open(path) as opened:
            mode, size, values = opened.mode, opened.size, np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise _error(request, f"{path} cannot be read: {error}") from error
    if values.ndim != 2 or values.dtype == np.bool_ or values.max(initial=0) > _UNKNOWN:
        raise _error(
            request,
            f"{path} has the mode {mode} and values up to {values.max(initial=0)}; a mask has one channel of 0 to 254",
            "save classes as an 8-bit grey or palette PNG; 255 stands for unknown",
        )
    if size != (seen := upright_size(image)):
        raise _error(request, f"{path} has {size[0]} x {size[1]} pixels, and {image.name} has {seen[0]} x {seen[1]}")
    classes.update(np.unique(values).tolist())
    # One more for each class: what a border adds is 0, and so is what stands for unknown.
    moved = (values.astype(np.int64) + 1).astype(np.uint8)
    found: Array = to_pixels(decode_image(Image.fromarray(moved)), spec)[..., 0]
    return (found.astype(np.int64) - 1).astype(np.uint8)


def _csv(path: Path, names: Sequence[str], root: Path, request: Request) -> Array:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines, numbers = [], []
            for line in reader:
                if any(each.strip() for each in line):
                    lines.append(line)
                    numbers.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _error(request, f"{path} cannot be read: {error}") from error
    if len(lines) < 2 or len(lines[0]) < 2:
        raise _error(
            request,
            f"{path} needs a header and rows, with commas between the columns",
            "the columns are the file, then a value for each output",
        )
    columns = [each.strip() for each in lines[0][1:]]
    order = _order(columns, path, request)
    rows: dict[str, list[float]] = {}
    for number, line in zip(numbers[1:], lines[1:], strict=True):
        if len(line) - 1 != len(columns):
            raise _error(request, f"{path}, row {number}: {len(line) - 1} numbers for {len(columns)} columns")
        values = [_number(each) for each in line[1:]]
        if (wrong := next((at for at, each in enumerate(values) if not np.isfinite(each)), None)) is not None:
            raise _error(
                request,
                f'{path}, row {number}: "{line[1 + wrong]}" in the column {columns[wrong]} is no finite number',
                "leave out images whose values nobody knows",
            )
        if line[0].strip() in rows:
            raise _error(request, f"{path}, row {number}: {line[0].strip()} has a row before")
        rows[line[0].strip()] = [values[each] for each in order]
    _check_short_names(path, names, rows, request)
    for name in names:
        if name not in rows and Path(name).name not in rows:
            raise _error(request, f"{path} has no row for {name}")
    return np.array([rows.get(name, rows.get(Path(name).name)) for name in names], np.float64)


def _order(columns: list[str], path: Path, request: Request) -> list[int]:
    """Return the columns in the order of the labels, whose names they have.

    What a metric of the user's own compares with may be something else, such as x and y of each point: columns of which
    none is a label keep their order.
    """
    labels = labels_of(request)
    own = known_metric(str(request.loaded.recipe.evaluation.metric)) is None
    if labels is None or (own and not set(labels) & set(columns)):
        return list(range(len(columns)))
    if sorted(labels) != sorted(columns):
        raise _error(request, f"{path} has the columns {', '.join(columns)}, and the labels are {', '.join(labels)}")
    return [columns.index(label) for label in labels]


def _number(cell: str) -> float:
    """Return the number in a cell, NaN where there is none."""
    try:
        return float(cell)
    except ValueError:
        return float("nan")
