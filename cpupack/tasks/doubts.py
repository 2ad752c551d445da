"""Whether places and pixels are in the units that ``[task]`` says: FP32's own outputs tell, before anyone predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.runtime.tasks import detection
from cpupack.runtime.tasks.base import Presenter, only
from cpupack.runtime.tasks.detection import DetectionPresenter
from cpupack.runtime.tasks.image import ImagePresenter
from cpupack.runtime.tasks.keypoints import KeypointsPresenter
from cpupack.runtime.tasks.scores import probabilities, softmax
from cpupack.runtime.tasks.spec import LAST, TaskSpec

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_LEAST_SIDE = 16
"""Inputs that are smaller may have places that are pixels and no more than ``_SHARES``."""
_SHARES = 2.0
"""Shares of the input are seldom larger, also where an object reaches over an edge."""
_ENOUGH = 8
"""Boxes of objects that say what the four numbers of a box are."""
_BEYOND, _OFTEN = 0.05, 0.25
"""Boxes reach over an edge by more than this share of the input, and so many of them, where they are no such boxes."""
_TURN = 2 * math.pi
_TO_RADIANS = "return radians from forward (torch.deg2rad)"
_MARGIN, _CLIPPED = 0.02, 0.25
"""What counts as outside 0..1, and the share of pixels of which that is too much."""

_PICTURES, _PIXELS = 16, 2**20
"""Samples, and pixels of all of them, that are looked at."""


def doubt_of_places(presenter: Presenter | None, outputs: Mapping[str, Array]) -> str | None:
    """Return why FP32's outputs ``(n, ...)`` are no places or pixels as the task says, None where they may be.

    With the wrong unit ``predict`` finds nothing, or everything in a corner, without a word.
    """
    if isinstance(presenter, DetectionPresenter) and not presenter.spec.decoder:
        return _of_boxes(presenter, outputs)
    if isinstance(presenter, KeypointsPresenter) and len(outputs) == 1:
        return _of_points(presenter, np.asarray(only(outputs)))
    if isinstance(presenter, ImagePresenter):
        return _of_pixels(presenter, np.asarray(only(outputs)))
    return None


def _of_boxes(presenter: DetectionPresenter, outputs: Mapping[str, Array]) -> str | None:
    spec, size = presenter.spec, presenter.input_size
    boxes = _of_objects(spec, outputs)
    if len(boxes) < _ENOUGH or min(size) < _LEAST_SIDE:
        return None
    if spec.angle:
        boxes, angles = boxes[:, :4], np.abs(boxes[:, 4])
        if float(np.median(angles)) > _TURN:
            return f"[task] angle is in radians, and FP32's are up to {angles.max():.3g}: {_TO_RADIANS}"
    name, _, normalized = spec.box_format.partition("_")
    if (unit := _wrong_unit(boxes, is_shares=bool(normalized))) is not None:
        other = name if normalized else f"{name}_normalized"
        return f'[task] box_format = "{spec.box_format}", but {unit}: set box_format = "{other}"'
    suffix = f"_{normalized}" if normalized else ""
    is_corners = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if name == "xyxy":
        if is_corners.mean() >= 0.5:
            return None
        return (
            f'[task] box_format = "{spec.box_format}", but the second corner of most of FP32\'s boxes is before the '
            f'first: set box_format = "cxcywh{suffix}" (center and size) or "xywh{suffix}" (corner and size)'
        )
    whole = np.array((1.0, 1.0) if normalized else size)
    low = boxes[:, :2] - boxes[:, 2:] / 2 if name == "cxcywh" else boxes[:, :2]
    high = low + boxes[:, 2:]
    beyond = ((low < -_BEYOND * whole) | (high > (1 + _BEYOND) * whole)).any(axis=1)
    if is_corners.all() and beyond.mean() >= _OFTEN:
        return (
            f'[task] box_format = "{spec.box_format}", and read so, {beyond.mean():.0%} of FP32\'s boxes reach over an '
            f'edge of the input; the four numbers of all may be two corners: set box_format = "xyxy{suffix}"'
        )
    return None


def _of_objects(spec: TaskSpec, outputs: Mapping[str, Array]) -> Floats:
    """Return the numbers ``(n, 4)``, or with an angle ``(n, 5)``, of the boxes whose best score is the threshold or
    more."""
    found = []
    for row in range(len(next(iter(outputs.values())))):
        boxes, scores, objects = detection.parts({name: each[row] for name, each in outputs.items()}, spec)
        softmaxed = bool(spec.background) and spec.scores == "logits" and scores.shape[1] > 1
        chances = softmax(scores) if softmaxed else probabilities(scores, spec.scores)
        if spec.background and scores.shape[1] > 1:
            chances = chances[:, :-1] if spec.background == LAST else chances[:, 1:]
        best = chances.max(axis=1)
        if objects is not None:
            best = best * probabilities(objects, spec.scores)[:, 0]
        found.append(np.asarray(boxes, np.float64)[best >= max(spec.threshold, 0.05)])
    boxes = np.concatenate(found)
    return np.asarray(boxes[np.isfinite(boxes).all(axis=1)])


def _of_points(presenter: KeypointsPresenter, values: Array) -> str | None:
    if values.ndim != 3 or min(presenter.input_size) < _LEAST_SIDE:
        return None  # heat maps say where their points are
    places = values[..., :2].astype(np.float64).reshape(-1, 2)
    places = places[np.isfinite(places).all(axis=1)]
    is_shares = presenter.spec.coordinates == "normalized"
    if len(places) < _ENOUGH or (unit := _wrong_unit(places, is_shares=is_shares)) is None:
        return None
    other = "pixels" if is_shares else "normalized"
    return f'[task] coordinates = "{presenter.spec.coordinates}", but {unit}: set coordinates = "{other}"'


def _wrong_unit(places: Floats, *, is_shares: bool) -> str | None:
    """Return what places ``(n, ...)`` look like where that is not what they are taken for."""
    least, most = float(places.min()), float(places.max())
    if not is_shares and max(-least, most) <= _SHARES and most > least:
        return f"FP32's places are from {least:.3g} to {most:.3g}, so they look like shares of the input"
    if is_shares and float(np.median(places.max(axis=1))) > 2 * _SHARES:
        return f"FP32's places are from {least:.3g} to {most:.3g}, so they look like pixels"
    return None


def _of_pixels(presenter: ImagePresenter, values: Array) -> str | None:
    step = math.ceil(math.sqrt(values[:_PICTURES].size / _PIXELS))
    maps = (values[:, None] if values.ndim == 3 else values)[:_PICTURES, :, ::step, ::step]
    pixels = presenter.scaled(maps.astype(np.float64))
    pixels = pixels[np.isfinite(pixels)]
    if not pixels.size:
        return None
    outside = float(((pixels < -_MARGIN) | (pixels > 1 + _MARGIN)).mean())
    if outside < _CLIPPED:
        return None
    low, high = (float(each) for each in np.percentile(pixels, (1, 99)))
    advice = "set [task] scale and offset so that output x scale + offset is from 0 to 1"
    if presenter.spec.scale or presenter.spec.offset:
        advice = "correct [task] scale and offset"
    elif low >= -1 - _MARGIN and high <= 1 + _MARGIN:
        advice += ": scale = [0.5] and offset = [0.5] for outputs from -1 to 1"
    elif low >= -_MARGIN * 255 and high <= 255 * (1 + _MARGIN) and high > 1 + _MARGIN:
        advice += ": scale = [0.00392157] for outputs from 0 to 255"
    advice += "; of outputs normalized as the input is, scale is std and offset is mean of [preprocess]"
    return (
        f"FP32's pixels are from {low:.3g} to {high:.3g} (1 to 99 %), and {outside:.0%} of them lie outside 0..1, "
        f"where predict clips them: {advice}"
    )
