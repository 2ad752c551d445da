"""The JSON Schemas of what ``/predict`` answers: a result of each kind of task, as its ``to_dict`` has it."""

from __future__ import annotations

from typing import Any

from ..tasks.spec import ANSWER, CLASSIFICATION, FILL, MASKS, TOKENS, TaskSpec

_TEXT, _NUMBER, _WHOLE, _TRUTH = ({"type": name} for name in ("string", "number", "integer", "boolean"))
_NUMBER_OR_NULL = {"type": ["number", "null"]}
"""What a model may give as infinity, which JSON does not have."""
_PNG = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}


def fields(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def list_of(items: dict[str, Any], count: int | None = None) -> dict[str, Any]:
    """Return the schema of a list, of ``count`` entries if it is given."""
    bounds = {} if count is None else {"minItems": count, "maxItems": count}
    return {"type": "array", "items": items, **bounds}


_PREDICTION = fields(label=_TEXT, index=_WHOLE, probability=_NUMBER)
_SPAN = fields(label=_TEXT, score=_NUMBER, start=_WHOLE, end=_WHOLE, text=_TEXT, second=_TRUTH)
_NPY = {"type": "string", "contentEncoding": "base64"}
_THRESHOLD = {"anyOf": [_NUMBER, list_of(_NUMBER)]}
"""That of all labels, or one for each."""
MAPS, VOLUME, MASKS_OF_SCAN = "regression of maps", "segmentation of a scan", "masks of a scan"
TURNED = "detection of turned boxes"
_SIZE = {"width": _WHOLE, "height": _WHOLE}
_RESULTS = {
    CLASSIFICATION: fields(top=list_of(_PREDICTION)),
    "multilabel": fields(labels=list_of(_PREDICTION), threshold=_THRESHOLD, probabilities=list_of(_NUMBER)),
    "regression": fields(values=list_of(fields(name=_TEXT, value=_NUMBER_OR_NULL, unit=_TEXT))),
    VOLUME: fields(
        **_SIZE,
        depth=_WHOLE,
        classes=list_of(fields(label=_TEXT, index=_WHOLE, share=_NUMBER)),
        mask_npy=_NPY,
    ),
    MAPS: fields(
        **_SIZE,
        maps=list_of(fields(name=_TEXT, unit=_TEXT, min=_NUMBER, max=_NUMBER, mean=_NUMBER)),
        values_npy=_NPY,
    ),
    "embedding": fields(embedding=list_of(_NUMBER)),
    "segmentation": fields(**_SIZE, classes=list_of(fields(label=_TEXT, index=_WHOLE, share=_NUMBER)), mask_png=_PNG),
    MASKS: fields(**_SIZE, masks=list_of(fields(label=_TEXT, index=_WHOLE, share=_NUMBER, mask_png=_PNG))),
    MASKS_OF_SCAN: fields(
        **_SIZE,
        depth=_WHOLE,
        masks=list_of(fields(label=_TEXT, index=_WHOLE, share=_NUMBER, mask_npy=_NPY)),
    ),
    "detection": fields(
        **_SIZE,
        detections=list_of(fields(label=_TEXT, index=_WHOLE, score=_NUMBER, box=list_of(_NUMBER, 4))),
    ),
    TURNED: fields(
        **_SIZE,
        detections=list_of(
            fields(
                label=_TEXT,
                index=_WHOLE,
                score=_NUMBER,
                box=list_of(_NUMBER, 4),
                corners=list_of(list_of(_NUMBER, 2), 4),
                angle=_NUMBER,
            )
        ),
    ),
    "keypoints": fields(
        **_SIZE, points=list_of(fields(label=_TEXT, index=_WHOLE, x=_NUMBER, y=_NUMBER, score=_NUMBER_OR_NULL))
    ),
    "image": fields(**_SIZE, png=_PNG),
    TOKENS: fields(entities=list_of(_SPAN), words=list_of(_SPAN)),
    ANSWER: fields(answer=_TEXT, score=_NUMBER, start=_WHOLE, end=_WHOLE, none=_NUMBER),
    FILL: fields(gaps=list_of(list_of(fields(token=_TEXT, id=_WHOLE, score=_NUMBER)))),
}
_OF_TEXT = {"tokens": _WHOLE, "truncated": _TRUTH}
"""Beside the result of a text, not of token ids that a client sends."""


def predictions(task: TaskSpec, *, takes_text: bool, outputs: list[str]) -> dict[str, Any]:
    """Return the schema of an answer of ``/predict``: results of the task, or ``outputs`` by name for ``raw``."""
    kind = task.kind
    timing = fields(queue=_NUMBER, prepare=_NUMBER, compute=_NUMBER, batch=_WHOLE)
    told: dict[str, Any] = {"model": _TEXT, "version": _TEXT}
    if kind in _RESULTS:
        of_scan = MASKS_OF_SCAN if kind == MASKS else VOLUME
        one = _RESULTS[MAPS if task.maps else of_scan if task.volume else TURNED if task.angle else kind]
        one = {**one, "properties": one["properties"] | (_OF_TEXT if takes_text else {}), "additionalProperties": False}
        told |= {"task": {"const": kind}, "predictions": list_of(one)}
    else:
        output = fields(shape=list_of(_WHOLE), data={"type": "array"})
        told |= {"outputs": list_of(output if len(outputs) == 1 else fields(**dict.fromkeys(outputs, output)))}
    return fields(**told, timing_ms=timing)
