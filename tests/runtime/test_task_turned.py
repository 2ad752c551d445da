"""Boxes with an angle: their overlaps, what is kept of them, and where they lie in the image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.export.meaning import meaning_of
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.serve.result_schemas import predictions
from cpupack.runtime.tasks import kinds, turned
from cpupack.runtime.tasks.boxes import iou, nms
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.spec import TaskSpec

SPEC = {"scores": "probabilities", "box_format": "cxcywh", "angle": "fifth"}


def present(
    outputs: dict[str, Any], frame: Frame | None = None, size: tuple[int, int] = (8, 8), **settings: Any
) -> Any:
    spec = TaskSpec.of("detection", **{**SPEC, **settings})
    presenter = kinds.presenter(spec, kinds.Model(("ship", "plane"), size))
    return presenter.present({name: np.asarray(each, np.float32) for name, each in outputs.items()}, frame)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 2, 2, 0), (0, 0, 2, 2, 0), 1.0),
        ((0, 0, 4, 2, 0.7), (0, 0, 4, 2, 0.7), 1.0),
        ((0, 0, 4, 2, 0.7), (0, 0, 4, 2, 0.7 + math.pi), 1.0),
        ((0, 0, 4, 2, 0.7), (0, 0, 2, 4, 0.7 + math.pi / 2), 1.0),
        ((0, 0, 2, 2, 0), (1, 0, 2, 2, 0), 2 / 6),
        ((0, 0, 2, 2, 0.3), (9, 9, 2, 2, 0.3), 0.0),
        ((0, 0, 2, 2, 0), (2, 0, 2, 2, 0), 0.0),  # they touch
        ((0, 0, 4, 4, 0), (0, 0, 2, 2, 0.4), 4 / 16),  # one in the other
        # Two unit squares, one turned by an eighth: an octagon of 2 (sqrt(2) - 1) is common.
        ((5, 5, 1, 1, 0), (5, 5, 1, 1, math.pi / 4), 2 * (2**0.5 - 1) / (2 - 2 * (2**0.5 - 1))),
        # A cross of two bars 4 x 1: 1 is common, of 7.
        ((0, 0, 4, 1, 0.2), (0, 0, 4, 1, 0.2 + math.pi / 2), 1 / 7),
        ((0, 0, 0, 2, 0.1), (0, 0, 2, 2, 0.1), 0.0),
        ((0, 0, 2, 2, 0.1), (0, 0, 2, 0, 0.1), 0.0),
    ],
)
def test_overlaps_are_those_of_geometry(one: Any, other: Any, expected: float) -> None:
    for first, second in ((one, other), (other, one)):
        (found,) = iou(np.array(first, np.float32), np.array([second], np.float32))
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_are_the_shares_of_points(seed: int) -> None:
    random = np.random.default_rng(seed)
    boxes = np.column_stack(
        [random.uniform(4.5, 5.5, (12, 2)), random.uniform(2, 6, (12, 2)), random.uniform(-4, 4, 12)]
    ).astype(np.float32)
    grid = (np.stack(np.meshgrid(*(np.arange(700),) * 2), -1).reshape(-1, 2) + 0.5) / 70  # 70 x 70 points a unit
    inside = []
    for x, y, width, height, angle in boxes.tolist():
        away = (grid - [x, y]) @ np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        inside.append((np.abs(away) <= [width / 2, height / 2]).all(axis=1))
    for row, box in enumerate(boxes):
        counted = [(inside[row] & other).sum() / (inside[row] | other).sum() for other in inside]
        # A border may be wrong by half the distance of two points, 1/140: of a square of 2 by 8/140 of an area of 4.
        assert np.abs(iou(box, boxes) - counted).max() < 0.02


def test_turned_boxes_are_upright_ones_where_nothing_is_turned() -> None:
    random = np.random.default_rng(0)
    middles, sides = random.uniform(0, 20, (40, 2)), random.uniform(1, 9, (40, 2))
    flat = np.column_stack([middles, sides, np.zeros(40)]).astype(np.float32)
    upright = np.column_stack([middles - sides / 2, middles + sides / 2]).astype(np.float32)
    for row in range(40):
        assert np.allclose(iou(flat[row], flat), iou(upright[row], upright), atol=1e-5)
    scores = random.uniform(0, 1, 40)
    assert nms(flat, scores, 0.3).tolist() == nms(upright, scores, 0.3).tolist()


def test_a_turned_box_drops_what_it_overlaps_and_not_what_its_upright_box_does() -> None:
    bar, beside = [4, 4, 8, 1, math.pi / 4], [5.5, 2.5, 1, 1, 0]  # beside the diagonal, in the upright box around it
    same = [4, 4, 8, 1, math.pi / 4 + math.pi]
    outputs = {"boxes": [bar, beside, same], "scores": [[0.9, 0], [0.8, 0], [0.7, 0]]}
    found = present(outputs, nms_iou=0.1)
    assert [round(one.score, 1) for one in found.found] == [0.9, 0.8]
    assert found[0].angle == pytest.approx(math.pi / 4)
    assert found[1].corners == ((5.0, 2.0), (6.0, 2.0), (6.0, 3.0), (5.0, 3.0))
    assert found[1].box == (5.0, 2.0, 6.0, 3.0)
    assert found.text().splitlines()[0].endswith("turned by 45 degrees")


def test_a_turned_box_gets_to_the_place_and_the_size_of_the_image() -> None:
    letterbox = PreprocessSpec(resize=(8, 8), crop=None, fit="pad")  # of 80 x 40: rows 2 to 6
    outputs = {"boxes": [[4, 4, 2, 1, math.pi / 2], [4, 0.5, 2, 1, 0.1]], "scores": [[0.9, 0], [0.8, 0]]}
    found = present(outputs, Frame.of(80, 40, letterbox))
    (one,) = found.found  # the other one is in the border
    assert np.allclose(one.corners, [(45, 10), (45, 30), (35, 30), (35, 10)])
    assert one.angle == pytest.approx(math.pi / 2)
    assert one.box == pytest.approx((35, 10, 45, 30))
    drawn = np.asarray(found.draw(Image.new("RGB", (80, 40))))
    assert drawn[20, 45].any()
    assert drawn[28, 34:36].any()
    assert not drawn[28, 37:43].any()  # below the label, between two sides


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("angle", ["fifth", "last"])
def test_the_angle_is_behind_the_numbers_or_behind_the_scores(layout: str, angle: str) -> None:
    scores = [0.1, 0.9]
    row = [4, 4, 4, 2, 0.5, *scores] if angle == "fifth" else [4, 4, 4, 2, *scores, 0.5]
    whole = np.array([row] * 9)
    found = present({"output": whole if layout == "rows" else whole.T}, layout=layout, angle=angle)
    (one,) = found.found
    assert (one.label, round(one.score, 2)) == ("plane", 0.9)
    assert one.angle == pytest.approx(0.5)
    spec = TaskSpec.of("detection", **{**SPEC, "layout": layout, "angle": angle})
    assert kinds.label_count(spec, {"output": whole.shape if layout == "rows" else whole.T.shape}) == 2
    assert TaskSpec.from_dict(spec.to_dict(), (9, 7)) == spec


def test_shares_of_the_input_and_nothing_at_all() -> None:
    one = {"boxes": [[0.5, 0.5, 0.5, 0.25, 0.0]], "scores": [[0.9, 0]]}
    found = present(one, size=(80, 40), box_format="cxcywh_normalized")
    assert found[0].box == pytest.approx((20, 15, 60, 25))
    nothing = present(one, threshold=0.95)
    assert nothing.text() == "  nothing was found"
    assert nothing.draw(Image.new("RGB", (8, 8))).size == (8, 8)
    chosen = {**one, "scores": [0.9], "labels": [1]}
    assert present(chosen, threshold=0.95).found == ()
    assert present(chosen)[0].label == "plane"


def test_the_answer_and_c_say_that_a_box_is_turned() -> None:
    spec = TaskSpec.of("detection", **SPEC)
    told = present({"boxes": [[4, 4, 4, 2, 0.5]], "scores": [[0.9, 0]]}).to_dict()["detections"][0]
    answer = predictions(spec, takes_text=False, outputs=["boxes", "scores"])
    schema = answer["properties"]["predictions"]["items"]["properties"]["detections"]["items"]
    assert set(told) == set(schema["required"])
    assert "Its angle is behind them: radians" in "\n".join(meaning_of(spec))


def test_corners_begin_at_the_upper_left_one() -> None:
    (corners,) = turned.corners_of(np.array([[2, 1, 4, 2, 0]]))
    assert corners.tolist() == [[0, 0], [4, 0], [4, 2], [0, 2]]
    assert turned.angle_of(corners) == 0.0
