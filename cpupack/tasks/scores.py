"""Whether a model's scores are what ``[task] scores`` says: logits, or probabilities already."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.artifacts import FloatModel, Samples
from cpupack.model.user_code import running_on
from cpupack.runtime.tasks import detection
from cpupack.runtime.tasks.base import in_rows
from cpupack.runtime.tasks.segmentation import holds_scores
from cpupack.runtime.tasks.spec import CLASSIFICATION, MASKS, TaskSpec

LOOKED_AT = 64
"""Samples whose outputs are enough to tell."""
_ROUNDING = 1e-3
_TOLD_BY = 8
"""Samples that tell scores from classes."""


def doubt_of(spec: TaskSpec, outputs: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """Return why FP32's outputs ``(n, ...)`` are no scores of the kind that the task says, None where they may be.

    With the wrong one ``predict`` gives probabilities that are none: twice through a sigmoid, 0 becomes 0.5, and every
    label counts.
    """
    if (overlap := _overlaps(spec, outputs)) is not None:
        return overlap
    scores = _scores(spec, outputs)
    if scores is not None and (chosen := _holds_class(spec, outputs, scores)) is not None:
        return chosen
    if scores is None or not scores.size or not np.isfinite(scores).all():
        return None
    least, most = float(scores.min()), float(scores.max())
    within = least >= -_ROUNDING and most <= 1 + _ROUNDING
    seen = f"FP32's scores are from {least:.3g} to {most:.3g} on {len(scores)} samples"
    if spec.scores == "probabilities":
        return None if within else f'[task] scores = "probabilities", but {seen}: leave it out if they are logits'
    if not within or most == least:
        return None
    softmax = spec.kind == CLASSIFICATION or bool(spec.background)
    if softmax and np.abs(scores.sum(axis=-1) - 1).max() > _ROUNDING:
        return None
    return (
        f"{seen}{' and add up to 1' * softmax}. predict takes a {'softmax' if softmax else 'sigmoid'} of them: if they "
        f'are probabilities already, set [task] kind = "{spec.kind}" and scores = "probabilities"'
    )


def told_by_data(model: FloatModel, samples: Samples) -> FloatModel:
    """Return the model with what its outputs on some samples say of its task.

    A map ``(height, width)`` of a segmentation may hold classes, or the scores of one class. Scores that are all whole
    on one image, as limited logits may be, look like classes there; so the data of the build decide for all images.
    """
    task, outputs = model.task, model.signature.outputs
    if task is None or task.kind != "segmentation" or len(outputs[0].result_shape) != 2:
        return model
    if outputs[0].dtype != "float32":  # classes, by an argmax or a comparison
        return model
    rows = samples.spread(_TOLD_BY).tensor(slice(None))
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"), running_on(samples.origin):
        (maps,) = model.signature.unpack(model.fast_module()(model.fast_batch(rows)).numpy()).values()
    if not holds_scores(maps):
        return model
    return dataclasses.replace(model, task=dataclasses.replace(task, squeezed=True))


def _scores(spec: TaskSpec, outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    """Return the scores ``(n, ...)`` that a softmax or sigmoid is taken of, None for kinds that take none."""
    if spec.kind == "detection" and not spec.decoder:
        count = len(next(iter(outputs.values())))
        rows = [detection.parts({name: each[row] for name, each in outputs.items()}, spec) for row in range(count)]
        return np.stack([_of_boxes(scores, objects) for _, scores, objects in rows])
    if spec.kind == "multilabel":
        return in_rows(outputs)
    if spec.kind == CLASSIFICATION:
        (scores,) = outputs.values()
        return scores
    if spec.kind == MASKS:
        (maps,) = outputs.values()
        return maps
    if spec.kind == "segmentation":
        (maps,) = outputs.values()
        one = maps.shape[1] == 1 if maps.ndim >= 4 else spec.squeezed or holds_scores(maps)
        return maps if one else None
    return None


def _overlaps(spec: TaskSpec, outputs: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """Return why the maps of a segmentation look like masks of each class by itself: sigmoids, of which several may be
    high at one pixel.
    """
    maps = next(iter(outputs.values()))
    if spec.kind != "segmentation" or maps.dtype.kind != "f" or maps.ndim < 4 or maps.shape[1] < 2 or not maps.size:
        return None
    least, most = float(maps.min()), float(maps.max())
    if not (least >= -_ROUNDING and most <= 1 + _ROUNDING and most > least):
        return None
    if np.abs(maps.sum(axis=1) - 1).max() <= _ROUNDING:
        return None
    return (
        f"FP32's scores of the classes are from {least:.3g} to {most:.3g} and do not add up to 1 at a pixel, as of a "
        "sigmoid for each class, and predict takes the best class: if classes may overlap, set [task] kind = "
        f'"{MASKS}" and scores = "probabilities"'
    )


def _holds_class(spec: TaskSpec, outputs: Mapping[str, npt.NDArray[Any]], scores: npt.NDArray[Any]) -> str | None:
    """Return why rows of six numbers are no boxes with two scores: the last one is a class, as of YOLO's own end."""
    if spec.kind != "detection" or len(outputs) > 1 or spec.objectness or scores.shape[-1] != 2:
        return None
    last = scores[..., 1]
    if not np.isfinite(last).all() or (last != np.rint(last)).any() or last.min() == last.max():
        return None
    return (
        f"the last of the six numbers of each box is whole on {len(scores)} samples, so it looks like a class, and is "
        'read as the score of a second one: return {"boxes": y[..., :4], "scores": y[..., 4], "labels": y[..., 5]} '
        "from forward"
    )


def _of_boxes(scores: npt.NDArray[Any], objects: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """Return the scores of classes and of any object side by side. A model of one class may have the latter alone: the
    score of its class is then infinite as a logit.
    """
    if objects is None:
        return scores
    return np.concatenate([scores, objects], axis=1) if np.isfinite(scores).all() else objects
