"""The OpenAPI document says what ``/predict`` answers for each kind of task, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from cpupack.runtime.serve.predict_route import _written
from cpupack.runtime.serve.result_schemas import predictions
from cpupack.runtime.tasks import spec
from cpupack.runtime.tasks.answer import Answer
from cpupack.runtime.tasks.classification import Prediction
from cpupack.runtime.tasks.detection import Detection, Detections
from cpupack.runtime.tasks.embedding import Embedding
from cpupack.runtime.tasks.fill import Filled, Guess
from cpupack.runtime.tasks.image import Picture
from cpupack.runtime.tasks.keypoints import Keypoint, Keypoints
from cpupack.runtime.tasks.maps import result_of
from cpupack.runtime.tasks.masks import Masks
from cpupack.runtime.tasks.multilabel import Multilabel
from cpupack.runtime.tasks.regression import Regression, Value
from cpupack.runtime.tasks.segmentation import ClassShare, Segmentation
from cpupack.runtime.tasks.tokens import Labelled, Span

ONE = Prediction("cat", 1, 0.75)
SPAN = Span("PER", 0.75, 0, 8, "Anna Lee")
RESULTS: dict[str, Any] = {
    "multilabel": Multilabel((ONE,), np.array([0.1, 0.75]), 0.5),
    "regression": Regression((Value("age", 41.5, "years"),)),
    "embedding": Embedding(np.array([0.6, 0.8], np.float32)),
    "segmentation": Segmentation(np.zeros((2, 3), np.int16), (ClassShare("sky", 0, 1.0),)),
    "masks": Masks(np.ones((1, 2, 3), np.bool_), (ClassShare("sky", 0, 1.0),), ("sky",)),
    "detection": Detections((Detection("cat", 1, 0.75, 1.0, 2.0, 3.0, 4.0),), 8, 9),
    "keypoints": Keypoints((Keypoint("nose", 0, 1.5, 2.5, 0.75),), 8, 9),
    "image": Picture(np.zeros((2, 3, 3), np.uint8)),
    "tokens": Labelled((SPAN,), (SPAN,)),
    "answer": Answer("Rio", 0.5, 18, 21, 0.25),
    "fill": Filled(((Guess("cat", 4, 0.5),),)),
}
TIMING = {"queue": 0.1, "prepare": 0.2, "compute": 0.3, "batch": 1}


def check(
    kind: str,
    answer: dict[str, Any],
    *,
    takes_text: bool = False,
    outputs: tuple[str, ...] = ("output",),
    **settings: Any,
) -> None:
    task = spec.TaskSpec.of(kind, **settings)
    schema = predictions(task, takes_text=takes_text, outputs=list(outputs))
    whole = {"model": "m", "version": "1", "timing_ms": TIMING, **answer}
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(whole)))


def test_every_kind_is_tried() -> None:
    assert {*RESULTS, spec.CLASSIFICATION, spec.RAW} == set(spec.SETTINGS)


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_has_the_form_that_is_told(kind: str) -> None:
    found = RESULTS[kind].to_dict()
    check(kind, {"task": kind, "predictions": [found, found]})
    check(kind, {"task": kind, "predictions": [{**found, "tokens": 5, "truncated": False}]}, takes_text=True)
    for name in found:
        with pytest.raises(jsonschema.ValidationError):
            check(kind, {"task": kind, "predictions": [{**found, name: None}]})
    with pytest.raises(jsonschema.ValidationError):
        check(kind, {"task": kind, "predictions": [{**found, "more": 1}]})


def test_classes_and_outputs_have_the_form_that_is_told() -> None:
    top = {"top": [{"label": "cat", "index": 1, "probability": 0.5}]}
    check("classification", {"task": "classification", "predictions": [top]})
    one = {"shape": [2], "data": [1.5, None]}
    check("raw", {"outputs": [one]})
    check("raw", {"outputs": [{"a": one, "b": one}]}, outputs=("a", "b"))
    with pytest.raises(jsonschema.ValidationError):
        check("raw", {"outputs": [{"a": one}]}, outputs=("a", "b"))


def test_scans_and_maps_of_numbers_have_forms_of_their_own() -> None:
    scan = Segmentation(np.zeros((4, 2, 3), np.int32), (ClassShare("sky", 0, 1.0),)).to_dict()
    check("segmentation", {"task": "segmentation", "predictions": [scan]}, volume=True)
    maps = result_of(np.zeros((1, 2, 3), np.float32), ("depth",), ("m",)).to_dict()
    check("regression", {"task": "regression", "predictions": [maps]}, maps=True)
    for kind, found in (("segmentation", scan), ("regression", maps)):
        with pytest.raises(jsonschema.ValidationError):
            check(kind, {"task": kind, "predictions": [found]})


def test_an_infinite_value_is_null() -> None:
    """The logarithm of 0 made an error of the server out of an answer."""
    found = Regression((Value("age", float("-inf"), ""), Value("height", 2.0, "m"))).to_dict()
    (told,) = json.loads(_written({"predictions": [found]}))["predictions"]
    assert [one["value"] for one in told["values"]] == [None, 2.0]
    check("regression", {"task": "regression", "predictions": [told]})
