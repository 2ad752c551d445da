"""The README of an export says what its numbers mean, since C makes no results of them."""

from __future__ import annotations

from typing import Any

import pytest

from cpupack.runtime.export.meaning import meaning_of
from cpupack.runtime.tasks.spec import SETTINGS, TaskSpec


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("classification", {}, "the greatest is the best; softmax makes probabilities of them"),
        ("classification", {"scores": "probabilities"}, "they are probabilities already"),
        ("multilabel", {"threshold": 0.25}, "A label counts from 0.25 on"),
        ("regression", {"scale": [2.0, 3.0], "units": ["cm", ""]}, "scale 2, 3 and offset 0. The units are cm, none."),
        ("embedding", {}, "divides it by its length"),
        ("segmentation", {}, "a pixel counts from 0.5 on"),
        ("detection", {"decoder": "ssd"}, "They are no boxes yet"),
        ("detection", {}, "two corners, x and y of each, in pixels of the model's input. Its scores"),
        ("detection", {}, "sigmoid makes probabilities of them. A box counts from 0.3 on"),
        ("detection", {"box_format": "cxcywh_normalized"}, "centre, width, height, as shares of the width and height"),
        (
            "detection",
            {"background": "last"},
            "softmax makes probabilities of them. The last class stands for nothing.",
        ),
        ("detection", {"objectness": True, "class_agnostic": True}, "(objectness). A box counts from 0.3 on, and is"),
        ("keypoints", {"coordinates": "normalized"}, "as shares of its width and height"),
        ("image", {}, "A pixel is 255 x output, clipped to 0..255."),
        ("image", {"scale": [0.5], "offset": [0.5]}, "with scale 0.5 and offset 0.5."),
    ],
)
def test_what_predict_makes_of_the_outputs_is_said(kind: str, settings: dict[str, Any], words: str) -> None:
    lines = meaning_of(TaskSpec.of(kind, **settings))
    assert lines[0] == ""
    assert words in " ".join(lines)
    assert all(len(line) <= 120 for line in lines)


def test_every_kind_is_known() -> None:
    as_they_are = {kind for kind in SETTINGS if not meaning_of(TaskSpec.of(kind))}
    assert as_they_are == {"raw", "tokens", "answer", "fill", "regression"}


def test_scores_to_which_the_runner_applies_something_are_no_probabilities_in_c() -> None:
    lines = meaning_of(TaskSpec.of("multilabel", scores="probabilities"), "sigmoid")
    assert "scores of the labels; after sigmoid they are probabilities. A label" in " ".join(lines)
