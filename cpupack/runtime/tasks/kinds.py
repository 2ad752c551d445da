"""Every kind of task by name: which outputs it needs, how many labels, and what presents its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RunnerError
from ..text.tokenizer import Tokenizer
from . import (
    answer,
    detection,
    embedding,
    fill,
    image,
    keypoints,
    masks,
    multilabel,
    raw,
    regression,
    segmentation,
    tokens,
)
from .base import Labels, Outputs, Presenter, Shapes, in_words, only
from .decode import Anchors
from .maps import are_maps, map_count
from .spec import ANSWER, CLASSIFICATION, FILL, MASKS, RAW, SETTINGS, TOKENS, TaskSpec


@dataclass(frozen=True)
class Model:
    """What presenters must know of the model. ``input_size`` is width and height, or (1, 1) for no images.

    ``tokenizer`` is that of a model that takes text. A build, which reads no results of text, has none. ``bgr`` says
    that the model's image has its channels in OpenCV's order.
    """

    labels: Labels
    input_size: tuple[int, int] = (1, 1)
    anchors: Anchors | None = None
    tokenizer: Tokenizer | None = None
    bgr: bool = False

    @property
    def pads_left(self) -> bool:
        """Whether padding is before the tokens of a text."""
        return self.tokenizer is not None and self.tokenizer.spec.side == "left"


def _fill(model: Model) -> Presenter:
    tokenizer = model.tokenizer
    mask = None if tokenizer is None else tokenizer.spec.mask_id
    decode: Any = str if tokenizer is None else tokenizer.decode
    return fill.FillPresenter(-1 if mask is None else mask, decode, model.pads_left)


_PRESENTERS: Mapping[str, Callable[[TaskSpec, Model], Presenter]] = {
    "multilabel": lambda spec, model: multilabel.MultilabelPresenter(spec, model.labels),
    "regression": lambda spec, model: regression.RegressionPresenter(spec, model.labels, model.input_size),
    "embedding": lambda spec, model: embedding.EmbeddingPresenter(),
    "segmentation": lambda spec, model: segmentation.SegmentationPresenter(spec, model.labels),
    MASKS: lambda spec, model: masks.MasksPresenter(spec, model.labels),
    "detection": lambda spec, model: detection.DetectionPresenter(spec, model.labels, model.input_size, model.anchors),
    "keypoints": lambda spec, model: keypoints.KeypointsPresenter(spec, model.labels, model.input_size),
    "image": lambda spec, model: image.ImagePresenter(spec, model.bgr),
    TOKENS: lambda spec, model: tokens.TokensPresenter(spec, model.labels, model.pads_left),
    ANSWER: lambda spec, model: answer.AnswerPresenter(model.pads_left),
    FILL: lambda spec, model: _fill(model),
    RAW: lambda spec, model: raw.RawPresenter(),
}
_MISFITS: Mapping[str, Callable[[Shapes], str | None]] = {
    "multilabel": multilabel.misfit,
    "regression": regression.misfit,
    "embedding": embedding.misfit,
    "segmentation": segmentation.misfit,
    MASKS: masks.misfit,
    "detection": detection.misfit,
    "keypoints": keypoints.misfit,
    "image": image.misfit,
    TOKENS: tokens.misfit,
    ANSWER: answer.misfit,
    FILL: fill.misfit,
}
_WITHOUT_LABELS = ("embedding", "image", ANSWER, FILL, RAW)
_LISTS = ("units", "scale", "offset")
ROWS = ("regression", "multilabel")
"""Kinds whose values may come from several heads of a model, an output each."""


def presenter(spec: TaskSpec, model: Model) -> Presenter:
    """Return what makes results of a kind's outputs. Classification has none: ``classification.top`` needs a number."""
    return _PRESENTERS[spec.kind](spec, model)


def misfit(kind: str, outputs: Shapes) -> str | None:
    """Return which outputs a kind needs and which the model has, None where they fit."""
    if kind == CLASSIFICATION:
        shape: tuple[int, ...] = only(outputs) if len(outputs) == 1 else ()
        if len(shape) == 1 and shape[0] > 1:
            return None
        yes_or_no = '. A yes or no is of kind "multilabel" with one label' if shape == (1,) else ""
        return f"needs one output of shape (classes,), two or more; the model has {in_words(outputs)}{yes_or_no}"
    check = _MISFITS.get(kind)
    return None if check is None else check(outputs)


def label_count(spec: TaskSpec, outputs: Shapes) -> int | None:
    """Return how many labels a task takes for these outputs, which fit it.

    0 means any number, None that labels have no meaning.
    """
    if spec.kind in _WITHOUT_LABELS:
        return None
    if spec.kind == "segmentation":
        return segmentation.label_count(outputs, spec)
    if spec.kind == "detection":
        return detection.label_count(outputs, spec)
    if spec.kind == "regression" and are_maps(outputs):
        return map_count(outputs)
    if spec.kind in ROWS:
        return sum(math.prod(shape) for shape in outputs.values())
    if spec.kind == "keypoints":
        return keypoints.point_count(outputs)
    shape = only(outputs)
    if spec.kind == TOKENS:
        return int(shape[1])
    return int(shape[0]) if shape else 1


def wrong_setting(spec: TaskSpec, outputs: Shapes) -> tuple[str, str] | None:
    """Return the setting whose length or numbers do not fit the outputs, and what it must have; None if all fit."""
    values = (label_count(spec, outputs) or 0) if spec.kind == "regression" else 0
    if spec.kind == "image":
        shape = only(outputs)
        values = 1 if len(shape) == 2 else shape[0]
    for name in _LISTS if name_has_lists(spec.kind) else ():
        entries = getattr(spec, name)
        if entries and len(entries) not in {values, 1 if spec.kind == "image" else values}:
            return name, f"has {len(entries)} entries for {values} values"
    if spec.kind == "detection" and (wrong := detection.wrong_angle(spec, outputs)) is not None:
        return "angle", wrong
    labels = (label_count(spec, outputs) or 0) if spec.thresholds else 0
    if len(spec.thresholds) != labels:
        return "threshold", (
            f"has {len(spec.thresholds)} entries for {labels} labels"
            if labels
            else "is a list, and the model chooses the class of each box itself: set one number"
        )
    points = (label_count(spec, outputs) or 0) if spec.kind == "keypoints" else 0
    if bad := [pair for pair in spec.skeleton if not all(0 <= each < points for each in pair)]:
        return "skeleton", f"joins the points {list(bad[0])}; there are {points}, from 0 to {points - 1}"
    return None


def name_has_lists(kind: str) -> bool:
    """Return whether a kind has settings with one entry for each value."""
    return bool(set(_LISTS) & set(SETTINGS[kind]))


def require_numbers(outputs: Outputs) -> None:
    """Raise RunnerError that names the output if one has NaN: no class, box or point can be read from it."""
    for name, value in outputs.items():
        if value.size and np.isnan(value.min()):
            raise RunnerError(f"the model's output {name!r} has NaN, so nothing can be read from it")
