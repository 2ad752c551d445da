"""A threshold for each label: of several labels at once, of masks that overlap, and of boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cpupack.runtime.export.meaning import meaning_of
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.spec import TaskSpec

LABELS = ("cat", "dog", "owl")
EACH = [0.5, 0.9, 0.2]


def present(kind: str, frame: Frame | None, outputs: dict[str, Any], **settings: Any) -> Any:
    spec = TaskSpec.of(kind, scores="probabilities", **settings)
    assert TaskSpec.from_dict(spec.to_dict(), (3,)) == spec  # as a wheel's manifest has it
    presenter = kinds.presenter(spec, kinds.Model(LABELS, (8, 8)))
    return presenter.present({name: np.asarray(each, np.float32) for name, each in outputs.items()}, frame)


def test_a_label_counts_from_its_own_threshold_on() -> None:
    found = present("multilabel", None, {"output": [0.4, 0.8, 0.3]}, threshold=EACH)
    assert [one.label for one in found.labels] == ["owl"]
    assert found.threshold == tuple(EACH)
    assert found.to_dict()["threshold"] == EACH
    nothing = present("multilabel", None, {"output": [0.4, 0.8, 0.1]}, threshold=EACH)
    assert nothing.text() == "  no label has its threshold's probability or more"
    one = present("multilabel", None, {"output": [0.4, 0.8, 0.3]}, threshold=0.35)
    assert [each.label for each in one.labels] == ["dog", "cat"]
    assert one.to_dict()["threshold"] == 0.35


@pytest.mark.parametrize("frame", [None, Frame.whole(2, 1), Frame(4, 2, 2, 1, 2, 1)], ids=["none", "own", "twice"])
def test_each_mask_has_a_threshold_of_its_own(frame: Frame | None) -> None:
    scores = [[[0.6, 0.6]], [[0.6, 0.6]], [[0.1, 0.1]]]  # the same everywhere: no size changes them
    found = present("masks", frame, {"output": scores}, threshold=EACH)
    assert [one.label for one in found.found] == ["cat"]
    assert found["cat"].all()
    lower = present("masks", frame, {"output": scores}, threshold=[0.7, 0.6 - 1e-6, 0.05])
    assert [one.label for one in lower.found] == ["dog", "owl"]


def test_each_class_of_boxes_has_a_threshold_of_its_own_before_suppression() -> None:
    boxes = [[0, 0, 4, 4], [4, 4, 8, 8], [0, 4, 4, 8], [0, 0, 4, 4]]
    scores = [[0.6, 0, 0], [0, 0.85, 0], [0, 0, 0.25], [0, 0.95, 0]]
    found = present("detection", None, {"boxes": boxes, "scores": scores}, threshold=EACH)
    assert [(one.label, one.box) for one in found.found] == [
        ("dog", (0, 0, 4, 4)),
        ("cat", (0, 0, 4, 4)),
        ("owl", (0, 4, 4, 8)),
    ]
    # Across classes a box below its class's threshold drops none: the dog of 0.85 is no dog, so the cat stays.
    below = {"boxes": [[0, 0, 4, 4]] * 2, "scores": [[0, 0.85, 0], [0.6, 0, 0]]}
    assert [one.label for one in present("detection", None, below, threshold=EACH, class_agnostic=True).found] == [
        "cat"
    ]


def test_a_scan_has_masks_of_voxels() -> None:
    scores = np.zeros((2, 2, 3, 4), np.float32)  # classes, depth, height, width
    scores[0, 0], scores[1, :, 0] = 1.0, 1.0
    spec = TaskSpec.of("masks", scores="probabilities", volume=True)
    found: Any = kinds.presenter(spec, kinds.Model(("bone", "fat"))).present({"output": scores}, Frame.whole(9, 9))
    assert found.masks.shape == (2, 2, 3, 4)
    assert [(one.label, one.share) for one in found.found] == [("bone", 12 / 24), ("fat", 8 / 24)]
    assert found.text().splitlines()[0] == "  4 x 3 x 2 voxels"
    told = found.to_dict()
    assert (told["width"], told["height"], told["depth"]) == (4, 3, 2)
    assert set(told["masks"][0]) == {"label", "index", "share", "mask_npy"}


def test_what_c_is_told_of_thresholds() -> None:
    said = "\n".join(meaning_of(TaskSpec.of("multilabel", threshold=EACH)))
    assert "A label counts from 0.5, 0.9, 0.2 (a number for each label, in order) on." in said
    assert "from 0.3 on" in "\n".join(meaning_of(TaskSpec.of("detection")))
