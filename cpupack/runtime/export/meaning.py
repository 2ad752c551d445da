"""What the numbers of an exported model mean: what the Python runner's ``predict`` makes of them, and C does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..tasks.spec import LAST, MASKS, TaskSpec

_CORNERS = {
    "xyxy": "two corners, x and y of each",
    "xywh": "x and y of the upper left corner, width, height",
    "cxcywh": "x and y of the centre, width, height",
}


def meaning_of(spec: TaskSpec, applied: str | None = None) -> list[str]:
    """Return what the README says of a task's outputs; nothing of those that ``predict`` gives as they are.

    ``applied`` is what the Python runner applies to the scores, and C does not.
    """
    makers = {
        "classification": _classification, "multilabel": _multilabel, "regression": _regression,
        "embedding": _embedding, "segmentation": _segmentation, "detection": _detection, "keypoints": _keypoints,
        "image": _image, MASKS: _masks,
    }  # fmt: skip
    make = makers.get(spec.kind)
    lines = [] if make is None else list(make(spec, applied))
    return ["", *lines] if lines else []


def _chance(spec: TaskSpec, applied: str | None, made_by: str) -> str:
    if applied in ("softmax", "sigmoid"):
        return f"after {applied} they are probabilities"
    return f"{made_by} makes probabilities of them" if spec.scores == "logits" else "they are probabilities already"


def _least(spec: TaskSpec) -> str:
    """Return the lowest score that counts, of each label where they differ."""
    each = ", ".join(f"{value:g}" for value in spec.thresholds)
    return f"{each} (a number for each label, in order)" if each else f"{spec.threshold:g}"


def _classification(spec: TaskSpec, applied: str | None) -> Iterator[str]:
    yield f"They are scores of the classes, of which the greatest is the best; {_chance(spec, applied, 'softmax')}."


def _multilabel(spec: TaskSpec, applied: str | None) -> Iterator[str]:
    yield f"They are scores of the labels; {_chance(spec, applied, 'sigmoid')}."
    yield f"A label counts from {_least(spec)} on."


def _regression(spec: TaskSpec, __: str | None) -> Iterator[str]:
    if spec.maps:
        yield "They are maps of numbers, one for each pixel. The Python runner's `predict` brings them to the size of"
        yield "the image."
    if spec.scale or spec.offset:
        yield f"A value is output x scale + offset, with {_scaled(spec.scale, spec.offset)}."
    if spec.units:
        yield f"The units are {', '.join(each or 'none' for each in spec.units)}."


def _embedding(_: TaskSpec, __: str | None) -> Iterator[str]:
    yield "They are a vector. The Python runner's `predict` divides it by its length."


def _segmentation(spec: TaskSpec, applied: str | None) -> Iterator[str]:
    yield "They are scores of each pixel, of which the greatest says the class. Of a single class,"
    yield f"{_chance(spec, applied, 'sigmoid')}, and a pixel counts from {spec.threshold:g} on."


def _masks(spec: TaskSpec, applied: str | None) -> Iterator[str]:
    yield f"They are scores of each pixel for each class by itself; {_chance(spec, applied, 'sigmoid')}."
    yield f"A pixel is of a class from {_least(spec)} on, so it may have several classes, or none."


def _detection(spec: TaskSpec, applied: str | None) -> Iterator[str]:
    if spec.decoder:
        yield "They are no boxes yet: the Python runner's `predict` computes boxes from them with anchors that are in"
        yield "the wheel, and C does not."
        return
    shape, _, normalized = spec.box_format.partition("_")
    yield f"A box has four numbers: {_CORNERS[shape]}, " + (
        "as shares of the width and height of the model's input." if normalized else "in pixels of the model's input."
    )
    if spec.angle:
        where = "behind them" if spec.angle == "fifth" else "the last number of its row"
        yield f"Its angle is {where}: radians, from x towards y."
    softmaxed = spec.background and spec.scores == "logits"
    yield f"Its scores are those of the classes; {_chance(spec, applied, 'softmax' if softmaxed else 'sigmoid')}."
    if spec.objectness:
        yield "The score of each class is to be multiplied by that of any object at all (objectness)."
    if spec.background:
        yield f"The {'last' if spec.background == LAST else 'first'} class stands for nothing."
    others = "" if spec.class_agnostic else " of its class"
    yield f"A box counts from {_least(spec)} on, and is dropped for a better one{others} where they overlap by more"
    yield f"than {spec.nms_iou:g} (intersection over union). At most {spec.max_detections} are kept."
    yield "Where `labels` is an output, it has the class of each box, and the score is that of this class."


def _keypoints(spec: TaskSpec, __: str | None) -> Iterator[str]:
    where = "in pixels of the model's input" if spec.coordinates == "pixels" else "as shares of its width and height"
    yield f"They are x and y of each point {where},"
    yield "or a map for each, whose greatest value is there. Two outputs have scores of places across and down, and the"
    yield "greatest is there."


def _image(spec: TaskSpec, __: str | None) -> Iterator[str]:
    if spec.scale or spec.offset:
        yield f"A pixel is 255 x (output x scale + offset), clipped to 0..255, with {_scaled(spec.scale, spec.offset)}."
    else:
        yield "A pixel is 255 x output, clipped to 0..255."


def _scaled(scale: Sequence[float], offset: Sequence[float]) -> str:
    parts = [
        f"{name} {', '.join(f'{each:g}' for each in values)}"
        for name, values in (("scale", scale or (1.0,)), ("offset", offset or (0.0,)))
    ]
    return " and ".join(parts)
