"""Scores that are probabilities where the task says logits, and the other way round: a build warns of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cpupack.runtime.tasks.scores import sigmoid, softmax
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.tasks.scores import doubt_of

LOGITS = 4 * np.random.default_rng(0).standard_normal((8, 6, 3)).astype(np.float32)
SURE, SHARES = sigmoid(LOGITS), softmax(LOGITS)
BOXES = np.ones((8, 6, 4), np.float32)


def boxed(scores: Any) -> Any:
    return np.concatenate([BOXES, scores], axis=2)


def doubt(kind: str, *outputs: Any, **settings: Any) -> str:
    names = ("boxes", "scores", "objectness") if len(outputs) > 1 else ("output",)
    found = dict(zip(names, map(np.asarray, outputs), strict=False))
    return doubt_of(TaskSpec.of(kind, **settings), found) or ""


@pytest.mark.parametrize(
    ("kind", "logits", "probabilities", "settings"),
    [
        ("classification", LOGITS[:, 0], SHARES[:, 0], {}),
        ("multilabel", LOGITS[:, 0], SURE[:, 0], {}),
        ("segmentation", LOGITS[:, None], SURE[:, None], {}),
        ("segmentation", LOGITS, SURE, {}),
        ("detection", boxed(LOGITS), boxed(SURE), {}),
        ("detection", boxed(LOGITS), boxed(SURE), {"objectness": True}),
        ("detection", boxed(LOGITS[..., :1]), boxed(SURE[..., :1]), {"objectness": True}),
        ("detection", boxed(LOGITS), boxed(SHARES), {"background": "last"}),
    ],
)
def test_each_kind_doubts_scores_that_the_task_calls_by_the_wrong_name(
    kind: str, logits: Any, probabilities: Any, settings: dict[str, Any]
) -> None:
    assert doubt(kind, logits, **settings) == ""
    assert doubt(kind, probabilities, scores="probabilities", **settings) == ""
    assert "if they are probabilities already, set [task]" in doubt(kind, probabilities, **settings)
    assert "leave it out if they are logits" in doubt(kind, logits, scores="probabilities", **settings)


def test_what_says_nothing_of_its_scores_is_not_doubted() -> None:
    assert doubt("classification", SURE[:, 0]) == ""  # logits from 0 to 1 that are no softmax
    shares = softmax(LOGITS.reshape(8, 6, 3, 1), axis=1)
    assert (
        doubt("segmentation", shares) == doubt("segmentation", LOGITS[..., None]) == ""
    )  # the best class needs neither
    assert "if classes may overlap, set [task] kind = " in doubt("segmentation", SURE[..., None])
    assert "leave it out if they are logits" in doubt("masks", LOGITS[..., None], scores="probabilities")
    assert doubt("masks", SURE[..., None], scores="probabilities") == doubt("masks", LOGITS[..., None]) == ""
    assert "if they are probabilities already" in doubt("masks", SURE[..., None])
    assert doubt("segmentation", np.ones((8, 6, 3))) == ""  # a map of classes
    assert doubt("multilabel", np.zeros((8, 3))) == ""
    assert doubt("regression", SURE[:, 0]) == doubt("raw", SURE) == ""
    assert "predict takes a sigmoid of them" in doubt("detection", BOXES, SURE)
