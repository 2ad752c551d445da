"""``[evaluation] targets``: what metrics of tasks compare with, for the images of a folder.

Boxes of a COCO file, masks, maps of numbers or pictures in a folder, or the rows of a table. Geometry is that of the
model's input: resize and crop are done to masks, maps, pictures and boxes too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from cpupack.recipe.metrics import known_metric
from cpupack.runtime.images.preprocess import upright_size
from cpupack.runtime.tasks.frame import Frame
from cpupack.sources.classes import labels_of
from cpupack.sources.request import Array, Request
from cpupack.sources.target_maps import read_maps
from cpupack.sources.target_masks import read_masks
from cpupack.sources.target_pictures import read_pictures
from cpupack.sources.target_tables import check_short_names, error, read_table, twice_in

_PADDING = -1.0


def read_targets(spec: str, names: Sequence[str], root: Path, request: Request) -> Array:
    """Return the targets of images, ``names`` relative to ``root``, in their order.

    ``coco:`` gives float32 ``(n, most, 6)`` of xmin, ymin, xmax, ymax in pixels of the model's input, class and crowd,
    padded with -1; ``masks:`` uint8 ``(n, height, width)``, of kind masks int8 ``(n, classes, height, width)``;
    ``maps:`` float32 ``(n, maps, height, width)``; ``images:`` float32 ``(n, 3, height, width)`` of what the output
    should be; ``csv:`` and ``jsonl:`` float64 ``(n, columns)``, of points ``(n, points, 2)``, or texts ``(n,)`` of
    classes.

    Raises CalibrationError for a file that is missing or damaged, an image that it does not have, and classes that the
    model does not have.
    """
    kind, _, rest = spec.partition(":")
    path = request.loaded.resolve(rest)
    if kind in ("csv", "jsonl"):
        table = read_table(kind, path, names, request)
        metric = known_metric(str(request.loaded.recipe.evaluation.metric))
        of_points = metric is not None and metric.kind == "keypoints"
        return _moved_points(table, names, root, request) if of_points else table
    readers = {"coco": _coco, "masks": read_masks, "maps": read_maps, "images": read_pictures}
    return readers[kind](path, names, root, request)


def _coco(path: Path, names: Sequence[str], root: Path, request: Request) -> Array:
    assert request.preprocess is not None
    try:
        content = json.loads(path.read_bytes())
        _check_content(content, path, request)
        images = {str(each["file_name"]): each["id"] for each in content["images"]}
        twice = twice_in(str(each["file_name"]) for each in content["images"])
        one_id = twice_in(each["id"] for each in content["images"])
        classes = _classes(content["categories"], request)
        boxes: dict[Any, list[list[float]]] = {number: [] for number in images.values()}
        sizes = {str(each["file_name"]): (each.get("width"), each.get("height")) for each in content["images"]}
        for number, each in enumerate(content["annotations"]):
            if not isinstance(each, dict) or not each.get("bbox"):
                raise error(
                    request,
                    f"{path}: annotation {number} (counted from 0) has no bbox",
                    "leave out annotations without a box; bbox is [x, y, width, height]",
                )
            left, top, width, height = (float(number) for number in each["bbox"])
            _check_annotation(each, boxes, classes, path, request)
            index, crowd = classes[each["category_id"]], float(each.get("iscrowd") or 0)
            boxes[each["image_id"]].append([left, top, left + width, top + height, index, crowd])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise error(
            request,
            f"{path} is no COCO file of boxes: {type(fault).__name__}: {fault}",
            "it needs images (id, file_name), annotations (image_id, category_id, bbox) and categories (id, name)",
        ) from fault
    if twice is not None:
        raise error(request, f"{path} has the image {twice} twice")
    if one_id is not None:
        both = [name for name, number in images.items() if number == one_id]
        raise error(
            request,
            f"{path} has two images with the id {one_id}, {both[0]} and {both[1]}, and both would get all their boxes",
            "give each image an id of its own; files that were joined often have the same ids",
        )
    check_short_names(path, names, images, request)
    found = []
    for name in names:
        key = name if name in images else Path(name).name
        if key not in images:
            other = next((each for each in images if Path(each).name == Path(name).name), None)
            raise error(
                request,
                f"{path} has no image {name}" + (f", but {other}" if other else ""),
                "name the images as below the source, or set the source to a folder above"
                if other
                else "images without objects must be listed too",
            )
        these = np.array(boxes[images[key]], np.float64).reshape(-1, 6)
        width, height = upright_size(root / name)
        known = all(isinstance(each, int | float) and each > 0 for each in sizes[key])  # some tools write 0
        if known and sorted(sizes[key]) != sorted((width, height)):  # EXIF may turn an image
            raise error(
                request,
                f"{path} says that {name} has {sizes[key][0]} x {sizes[key][1]} pixels, and it has {width} x {height}",
                "its boxes are those of images of another size: use these, or write the boxes anew",
            )
        outside = (these[:, :4] < -1).any(axis=1) | (these[:, 2] > width + 1) | (these[:, 3] > height + 1)
        if outside.any():
            box = [round(float(each), 1) for each in these[outside][0][:4]]
            raise error(
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


def _check_content(content: Any, path: Path, request: Request) -> None:
    """Raise CalibrationError for JSON that lacks a table of a COCO file, such as a list of what a detector found."""
    lacking = [
        each for each in ("images", "annotations", "categories") if not isinstance(content, dict) or each not in content
    ]
    if lacking:
        what = "a list" if isinstance(content, list) else f"without {', '.join(lacking)}"
        raise error(
            request,
            f"{path} is no COCO file of boxes, but {what}",
            "it needs images (id, file_name), annotations (image_id, category_id, bbox) and categories (id, name)"
            + (
                "; a list is what COCO's results are, which say what was found and not what is true"
                * (what == "a list")
            ),
        )


def _check_annotation(
    annotation: dict[str, Any], images: Collection[Any], classes: Collection[Any], path: Path, request: Request
) -> None:
    """Raise CalibrationError for a box of an image or a category that the file does not have, or of no size."""
    for key, known, what in (("image_id", images, "image"), ("category_id", classes, "category")):
        if annotation[key] not in known:
            alike = [each for each in known if str(each) == str(annotation[key])]
            raise error(
                request,
                f"{path} has a box of the {what} {annotation[key]!r}, and no {what} with this id",
                f"there is {alike[0]!r}: write ids as numbers in both places, or as texts" if alike else None,
            )
    bbox = annotation["bbox"]
    if not np.isfinite([float(each) for each in bbox]).all() or min(float(bbox[2]), float(bbox[3])) < 0:
        raise error(
            request,
            f"{path}: the box {bbox} of the image {annotation['image_id']!r} has no width and height",
            "bbox is [x, y, width, height] in pixels, not two corners",
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
            raise error(
                request,
                f'the category "{each["name"]}" is none of the labels'
                + (f'; did you mean "{near[0]}"?' if near else ""),
                "name the categories as [model] labels does",
            )
        if labels.count(each["name"]) > 1:
            raise error(
                request,
                f'the category "{each["name"]}" is the name of {labels.count(each["name"])} labels',
                "give each of [model] labels a name of its own",
            )
        found[each["id"]] = labels.index(each["name"])
    return found


def _moved_points(table: Array, names: Sequence[str], root: Path, request: Request) -> Array:
    """Return the points of images ``(n, points, 2)`` in pixels of the model's input, NaN for what it does not see."""
    assert request.preprocess is not None
    points = table.reshape(len(table), -1, 2)
    known = ~np.isnan(points).any(axis=2)
    moved = np.full(points.shape, np.nan)
    for row, name in enumerate(names):
        frame = Frame.of(*upright_size(root / name), request.preprocess)
        places = frame.to_input(points[row])
        inside = ((places >= 0) & (places <= (frame.input_width, frame.input_height))).all(axis=1)
        moved[row, inside] = places[inside]
    if (lost := int((known & np.isnan(moved).any(axis=2)).sum())) > 0:
        request.progress.warn(
            f"{request.spec}: {lost} of {int(known.sum())} points of the targets lie outside what the model sees of "
            "their images, and count for nothing"
        )
    return moved
