"""``[task] kind = "masks"``: a mask for each class by itself, which may overlap."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.draw import colour_of
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.spec import TaskSpec

LABELS = ("cloud", "shadow", "snow")


def present(output: Any, frame: Frame | None = None, labels: Any = LABELS, **settings: Any) -> Any:
    presenter = kinds.presenter(TaskSpec.of("masks", **settings), kinds.Model(labels, (4, 4)))
    return presenter.present({"output": np.asarray(output, np.float32)}, frame)


def corners() -> np.ndarray[Any, Any]:
    """Logits of 4 x 4 pixels: clouds in the upper half, shadows in the left one, no snow."""
    scores = np.full((3, 4, 4), -5.0)
    scores[0, :2], scores[1, :, :2] = 5.0, 5.0
    return scores


def test_a_pixel_may_have_several_classes_or_none() -> None:
    found = present(corners())
    assert found.masks.dtype == np.bool_
    assert [(one.label, one.index, one.share) for one in found.found] == [("cloud", 0, 0.5), ("shadow", 1, 0.5)]
    assert found["cloud"].tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    assert found["shadow"].tolist() == [[True, True, False, False]] * 4
    assert not found["snow"].any()
    with pytest.raises(KeyError, match="no mask 'sun'; there is cloud, shadow, snow"):
        found["sun"]
    assert present(corners(), labels=None)["class 1"].sum() == 8
    assert present([[[0.4, 0.6]]], labels=None, scores="probabilities", threshold=0.6).masks.tolist() == [
        [[False, True]]
    ]


def test_masks_have_the_size_of_the_image_and_the_crop_has_none() -> None:
    spec = PreprocessSpec(resize=4, crop=4)
    found = present(corners(), Frame.of(16, 8, spec))  # resized to 8 x 4: columns 4 to 12 of 16 are seen
    assert found.masks.shape == (3, 8, 16)
    assert found["cloud"][:4, 4:12].all()
    assert found["cloud"].sum() == 4 * 8
    assert found["shadow"][:, 4:8].all()
    assert found["shadow"].sum() == 8 * 4
    assert [one.share for one in found.found] == [0.5, 0.5]  # of what was seen


def test_masks_are_written_as_pictures_and_drawn_in_mixed_colours() -> None:
    found = present(corners())
    told = found.to_dict()
    assert (told["width"], told["height"]) == (4, 4)
    assert [(one["label"], one["index"], one["share"]) for one in told["masks"]] == [
        ("cloud", 0, 0.5), ("shadow", 1, 0.5),
    ]  # fmt: skip
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["masks"][1]["mask_png"]))))
    assert mask.tolist() == [[255, 255, 0, 0]] * 4
    assert found.text() == "  4 x 4 pixels\n   50.00%  cloud\n   50.00%  shadow"
    assert present(np.full((3, 4, 4), -9.0)).text() == "  4 x 4 pixels\n  no class has a pixel"
    drawn = np.asarray(found.draw(Image.new("RGB", (4, 4), (100, 100, 100))))

    def mixed(*indices: int) -> list[int]:
        colour = np.mean([colour_of(each) for each in indices], axis=0)
        return [int(each) for each in (100 * 0.45 + 0.55 * colour).round()]

    assert drawn[0, 0].tolist() == mixed(0, 1)
    assert drawn[0, 3].tolist() == mixed(0)
    assert drawn[3, 0].tolist() == mixed(1)
    assert drawn[3, 3].tolist() == [100, 100, 100]


def test_only_scores_of_classes_fit() -> None:
    assert kinds.misfit("masks", {"output": (3, 4, 4)}) is None
    for outputs in ({"output": (4, 4)}, {"output": (3, 2, 2, 4, 4)}, {"a": (3, 4, 4), "b": (1,)}):
        assert "needs one output of shape (classes, height, width)" in (kinds.misfit("masks", outputs) or "")
    assert kinds.label_count(TaskSpec.of("masks"), {"output": (1, 4, 4)}) == 1
