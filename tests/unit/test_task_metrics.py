"""Metrics of tasks by name, on outputs whose answer is worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import FloatModel
from cpupack.errors import RecipeError, VerificationError
from cpupack.runtime.signature import INPUT, OutputSpec, Signature
from cpupack.runtime.tasks.decode import Anchors
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.tasks import box_metrics
from cpupack.tasks.likeness import common_boxes, likeness, same_decisions
from cpupack.tasks.metrics import presenter_of, task_metric
from cpupack.tasks.precision import matches

SIZE = 10


def model(kind: str, outputs: dict[str, tuple[int, ...]], **settings: Any) -> FloatModel:
    signature = Signature(
        (TensorSpec(INPUT, (3, SIZE, SIZE)),), tuple(OutputSpec(name, shape) for name, shape in outputs.items())
    )
    return FloatModel(nn.Identity(), signature, "", False, None, 0, 0, 0, task=TaskSpec.of(kind, **settings))


DETECTOR = model("detection", {"boxes": (3, 4), "scores": (3, 2)}, scores="probabilities", nms_iou=1.0)


def boxes(*rows: tuple[float, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Return a detector's outputs on one image: (xmin, ymin, xmax, ymax, class, score)."""
    found = np.zeros((1, 3, 4), np.float32)
    scores = np.zeros((1, 3, 2), np.float32)
    for place, (*corners, index, score) in enumerate(rows):
        found[0, place] = corners
        scores[0, place, int(index)] = score
    return {"boxes": found, "scores": scores}


def test_map_is_the_mean_over_the_classes_and_the_ious() -> None:
    pytest.importorskip("pycocotools")
    targets = np.array([[[0, 0, 4, 4, 0], [5, 5, 9, 9, 1], [-1, -1, -1, -1, -1]]], np.float32)
    both = boxes((0, 0, 4, 4, 0, 0.9), (5, 5, 9, 9, 1, 0.8))
    of_one = boxes((0, 0, 4, 4, 0, 0.9))
    shifted = boxes((0, 0, 4, 3, 0, 0.9), (5, 5, 9, 9, 1, 0.8))  # its IoU of 0.75 is enough for 6 of the 10 bounds
    whole, half = (task_metric(name, DETECTOR, resampled=False) for name in ("map", "map50"))
    assert whole(both, targets) == pytest.approx(1.0)
    assert whole(of_one, targets) == pytest.approx(0.5)
    assert whole(shifted, targets) == pytest.approx((0.6 + 1.0) / 2)
    assert half(shifted, targets) == pytest.approx(1.0)
    assert whole(boxes(), targets) == 0.0
    with pytest.raises(VerificationError, match="the boxes have class 2, and the model has the classes 0 to 1"):
        whole(both, np.array([[[0, 0, 4, 4, 2]]], np.float32))
    with pytest.raises(VerificationError, match="have no boxes"):
        whole(both, np.full((1, 1, 5), -1.0))
    with pytest.raises(VerificationError, match=r"compares with boxes \(n, most, 5\)"):
        whole(both, np.zeros(1))


def test_boxes_of_a_class_that_cannot_be_found_are_refused() -> None:
    """They would be missed by FP32 and INT8 alike, and no word said."""
    pytest.importorskip("pycocotools")

    def target(index: int) -> np.ndarray[Any, Any]:
        return np.array([[[0, 0, 4, 4, index]]], np.float32)

    found = boxes((0, 0, 4, 4, 1, 0.9))
    first = model("detection", {"boxes": (3, 4), "scores": (3, 2)}, scores="probabilities", background=True)
    with pytest.raises(VerificationError, match="the boxes have class 0, which stands for nothing"):
        task_metric("map", first, resampled=False)(found, target(0))
    assert task_metric("map", first, resampled=False)(found, target(1)) == pytest.approx(1.0)
    anchors = Anchors(np.array([[0, 0, 4, 4]] * 3, np.float32), (1.0, 1.0, 1.0, 1.0), (3,), 10)
    for decoder, unknown in (("ssd", 0), ("ssd", 2), ("retinanet", 2)):
        of = dataclasses.replace(
            model("detection", {"boxes": (3, 4), "scores": (3, 2)}, decoder=decoder), anchors=anchors
        )
        with pytest.raises(VerificationError, match=f"the boxes have class {unknown}"):
            task_metric("map", of, resampled=False)(boxes(), target(unknown))


@pytest.mark.parametrize("seed", range(3))
def test_map_is_that_of_pycocotools(seed: int) -> None:
    """On random boxes with crowds, images without any, and a class that only one side has."""
    random = np.random.default_rng(seed)
    count, most = 12, 30
    low = random.uniform(0, 6, (count, most, 2)).round()
    found = np.concatenate([low, low + random.integers(1, 5, (count, most, 2))], axis=2).astype(np.float32)
    scores = random.uniform(0, 1, (count, most, 3)).round(2).astype(np.float32)  # some are equal
    targets = np.full((count, 9, 6), -1.0)
    for row in range(2, count):
        boxes_of = found[row, : 1 + row % 9, :4]
        targets[row, : len(boxes_of), :4] = boxes_of + random.uniform(0, 0.4, boxes_of.shape)
        targets[row, : len(boxes_of), 4] = random.integers(0, 2, len(boxes_of))
        targets[row, : len(boxes_of), 5] = random.random(len(boxes_of)) < 0.3
    of = model("detection", {"boxes": (most, 4), "scores": (most, 3)}, scores="probabilities", nms_iou=0.7)
    presenter: Any = presenter_of(of)
    outputs = {"boxes": found, "scores": scores}
    rows = random.integers(0, count, count)
    for chosen in (np.arange(count), rows):
        drawn = {name: each[chosen] for name, each in outputs.items()}
        expected = judged_by_pycocotools(presenter, drawn, targets[chosen])
        for name, value in zip(("map", "map50"), expected, strict=True):
            metric = task_metric(name, of, resampled=True)
            assert metric(drawn, targets[chosen]) == pytest.approx(value, abs=1e-12)
            measure = metric.measure(lambda each: {key: value[each] for key, value in outputs.items()}, targets)
            assert measure(chosen) == pytest.approx(value, abs=1e-12)


def judged_by_pycocotools(presenter: Any, outputs: dict[str, Any], targets: Any) -> tuple[float, float]:
    coco = pytest.importorskip("pycocotools.coco")
    judge = pytest.importorskip("pycocotools.cocoeval")

    def boxed(row: int, box: Any, index: float) -> dict[str, Any]:
        left, top, right, bottom = map(float, box)
        size = [right - left, bottom - top]
        return {"image_id": row, "category_id": int(index), "bbox": [left, top, *size], "area": size[0] * size[1]}

    truth = coco.COCO()
    truths = [
        {**boxed(row, box[:4], box[4]), "iscrowd": int(box[5])}
        for row, boxes_of in enumerate(targets)
        for box in boxes_of
        if box[4] >= 0
    ]
    found = []
    for row in range(len(targets)):
        kept = presenter.with_threshold(0.01).kept({name: each[row] for name, each in outputs.items()})
        for box, score, index in zip(kept.boxes, kept.scores, kept.classes, strict=True):
            found.append({**boxed(row, box, index), "score": float(score)})
    truth.dataset = {
        "images": [{"id": row} for row in range(len(targets))],
        "annotations": [{**each, "id": number} for number, each in enumerate(truths, 1)],
        "categories": [{"id": each} for each in range(3)],
    }
    truth.createIndex()
    judged = judge.COCOeval(truth, truth.loadRes(found), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    return float(judged.stats[0]), float(judged.stats[1])


def test_intervals_of_a_map_match_the_boxes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 36 images with 512 boxes each, a thousand draws took an hour: each matched all boxes again."""
    pytest.importorskip("pycocotools")
    calls = []
    monkeypatch.setattr(box_metrics, "matches", lambda *given: calls.append(1) or matches(*given))
    targets = np.tile(np.array([[[0, 0, 4, 4, 0]]], np.float32), (4, 1, 1))
    outputs = {name: np.tile(each, (4, 1, 1)) for name, each in boxes((0, 0, 4, 4, 0, 0.9)).items()}
    targets[3, 0, 2:4] = 9  # the box that was found is not this one
    measure = task_metric("map", DETECTOR, resampled=True).measure(
        lambda rows: {name: each[rows] for name, each in outputs.items()}, targets
    )
    low, high = accuracy.bootstrap_interval(measure, 4)
    assert 0.0 < measure(np.array([3, 3, 3, 0])) <= low <= measure(np.array([0, 3, 3, 3])) < 0.3
    assert high == pytest.approx(1.0)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((0.1, 0.1, 0.4, 0.9), "all boxes are from 0 to 1"),
        ((6, 6, 3, 3), "has its second corner before the first"),  # a width and a height
        ((20, 20, 30, 30), r"the box \[20.0, 20.0, 30.0, 30.0\] lies outside the input"),
    ],
)
def test_boxes_that_are_no_corners_in_the_input(box: tuple[float, ...], words: str) -> None:
    """Both models would find none of them, and a gate on the drop would hold."""
    pytest.importorskip("pycocotools")
    with pytest.raises(VerificationError, match=words):
        task_metric("map", DETECTOR, resampled=False)(boxes((0, 0, 4, 4, 0, 0.9)), np.array([[[*box, 0]]], np.float32))


def turned_boxes(*rows: tuple[float, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Return a detector's outputs on one image: (x, y, width, height, angle, class, score)."""
    found, scores = np.zeros((1, 3, 5), np.float32), np.zeros((1, 3, 2), np.float32)
    for place, (*numbers, index, score) in enumerate(rows):
        found[0, place] = numbers
        scores[0, place, int(index)] = score
    return {"boxes": found, "scores": scores}


def test_turned_boxes_are_matched_by_what_they_overlap_themselves() -> None:
    settings: dict[str, Any] = {"scores": "probabilities", "box_format": "cxcywh", "angle": "fifth", "nms_iou": 1.0}
    of = model("detection", {"boxes": (3, 5), "scores": (3, 2)}, **settings)
    metric = task_metric("map50", of, resampled=False)
    bar = (5, 5, 8, 1, np.pi / 4)
    truth = np.array([[[*bar, 0], [3, 3, 2, 2, 0, 1], [0, 0, 0, 0, 0, -1]]])
    # The bar that is turned the other way has the same upright box, and a seventh or less in common. The second class
    # is found. The first one is found too, behind the wrong one: its precision is 1/2.
    wrong = (5, 5, 8, 1, -np.pi / 4)
    found = turned_boxes((*wrong, 0, 0.9), (*bar, 0, 0.8), (3, 3, 2, 2, 0, 1, 0.9))
    assert metric(found, truth) == pytest.approx((0.5 + 1) / 2)
    assert metric(turned_boxes((*bar, 0, 0.9), (3, 3, 2, 2, np.pi / 2, 1, 0.9)), truth) == pytest.approx(1.0)
    presenter: Any = presenter_of(of)
    assert common_boxes(presenter, turned_boxes((*bar, 0, 0.9)), turned_boxes((*wrong, 0, 0.9))) == 0
    assert common_boxes(presenter, turned_boxes((*bar, 0, 0.9)), turned_boxes((*bar, 0, 0.7))) == 1
    for bad, words in (
        (truth[..., :5], r"compares with boxes \(n, most, 6\): middle, width, height, angle in radians, class"),
        (np.array([[[5, 5, 8, 0, 0, 0]]]), r"the box \[5.0, 5.0, 8.0, 0.0\] has no width and height"),
        (np.array([[[5, 5, 8, 1, 45, 0]]]), "a box is turned by 45, which is more than a turn"),
        (np.array([[[5, 5, 8, 1, 0, 2]]]), "the boxes have class 2"),
    ):
        with pytest.raises(VerificationError, match=words):
            metric(found, bad)


def test_mean_iou_leaves_out_what_is_unknown() -> None:
    metric = task_metric("miou", model("segmentation", {"output": (2, 2, 2)}), resampled=False)
    scores = np.zeros((1, 2, 2, 2), np.float32)
    scores[0, 1] = [[1, 1], [-1, -1]]  # classes 1 1 / 0 0
    assert metric(scores, np.array([[[1, 1], [0, 0]]])) == 1.0
    # Class 0: 2 in common of 3. Class 1: 1 of 2.
    assert metric(scores, np.array([[[1, 0], [0, 0]]])) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metric(scores, np.array([[[1, 255], [0, 0]]])) == 1.0
    alone = task_metric("miou", model("segmentation", {"output": (1, 2)}), resampled=False)  # of one class, squeezed
    assert alone(np.array([[[0.3, -0.2]]], np.float32), np.array([[[0, 0]]])) == pytest.approx((1 / 2 + 0) / 2)
    classes = task_metric("miou", model("segmentation", {"output": (2, 2)}), resampled=False)  # -1 is no class
    assert classes(np.array([[[1, -1], [0, 0]]]), np.array([[[1, 0], [0, 0]]])) == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(VerificationError, match="the masks have class 128, and the model has the classes 0 to 1"):
        metric(scores, np.array([[[0, 128], [0, 255]]]))
    with pytest.raises(VerificationError, match="no pixel of the masks has a class"):
        metric(scores, np.full((1, 2, 2), 255))
    with pytest.raises(VerificationError, match="the masks have 0 and 255 alone, and 255 stands for unknown"):
        metric(scores, np.array([[[0, 255], [0, 255]]]))


def test_dice_is_twice_the_common_by_what_both_have() -> None:
    of = model("segmentation", {"output": (2, 1, 4)})
    scores = np.array([[[[0, 0, 0, 0]], [[1, 1, -1, -1]]]], np.float32)  # classes 1 1 0 0
    targets = np.array([[[1, 0, 0, 255]]])
    # Class 0: one common of 1 found and 2 true. Class 1: one of 2 and 1.
    assert task_metric("dice", of, resampled=False)(scores, targets) == pytest.approx((2 / 3 + 2 / 3) / 2)
    with pytest.raises(VerificationError, match="metric dice: the masks have class 2"):
        task_metric("dice", of, resampled=False)(scores, np.full((1, 1, 4), 2))


def test_masks_of_each_class_are_measured_by_themselves() -> None:
    of = model("masks", {"output": (2, 2, 2)})
    scores = np.array([[[[4, 4], [-4, -4]], [[4, -4], [4, -4]]]], np.float32)
    targets = np.array([[[[1, 1], [1, 1]], [[1, 0], [-1, 0]]]])
    assert task_metric("miou", of, resampled=False)(scores, targets) == pytest.approx((2 / 4 + 1 / 1) / 2)
    assert task_metric("dice", of, resampled=False)(scores, targets) == pytest.approx((4 / 6 + 1) / 2)
    whole = np.kron(targets, np.ones((5, 5), int))  # those of the input, 10 x 10
    assert 0.4 < task_metric("miou", of, resampled=False)(scores, whole) < 0.9
    for wrong, words in (
        (targets[:, :1], r"compares with masks \(n, 2, height, width\)"),
        (3 * targets, r"the masks have 3; a pixel is 0 or 1"),
        (np.full_like(targets, -1), "no pixel of the masks has a class"),
    ):
        with pytest.raises(VerificationError, match=words):
            task_metric("miou", of, resampled=False)(-9 + 0 * scores, wrong)
    presenter: Any = presenter_of(of)
    other = {"output": np.concatenate([scores[:, :1], -scores[:, 1:]], axis=1)}
    assert likeness(presenter, {"output": scores}, other) == ("mean IoU of the masks", pytest.approx((1 + 0) / 2))
    # Four of FP32's four and four: all of class 0 are the same, none of class 1; they are too few to part yes from no.
    assert same_decisions(presenter, {"output": scores}, other) == pytest.approx(4 / 8)


def test_the_iou_of_a_scan_counts_voxels() -> None:
    scores = np.zeros((1, 2, 2, 2, 2), np.float32)
    scores[0, 1, 0] = 1.0  # the first slice
    truth = np.zeros((1, 2, 2, 2), np.int64)
    truth[0, 0, 0] = 1  # one row of it
    of = model("segmentation", {"output": (2, 2, 2, 2)}, volume=True)
    metric = task_metric("miou", of, resampled=False)
    assert metric(scores, truth) == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert metric(scores.argmax(axis=1), truth) == pytest.approx((4 / 6 + 2 / 4) / 2)
    with pytest.raises(VerificationError, match=r"compares with classes \(n, depth, height, width\)"):
        metric(scores, truth[:, 0])
    with pytest.raises(VerificationError, match=r"compares with classes \(n, 2, 2, 2\)"):
        metric(scores, np.zeros((1, 2, 3, 2), np.int64))
    presenter = presenter_of(of)
    assert likeness(presenter, {"output": scores}, {"output": scores}) == ("mean IoU of the classes", 1.0)


def test_masks_of_a_scan_are_measured_by_voxels() -> None:
    scores = np.full((1, 2, 2, 2, 2), -4.0, np.float32)
    scores[0, 0, 0] = 4.0  # the first slice is of class 0, nothing of class 1
    truth = np.zeros((1, 2, 2, 2, 2), np.int64)
    truth[0, 0, 0, 0] = 1  # one row of it is
    of = model("masks", {"output": (2, 2, 2, 2)}, volume=True)
    assert task_metric("miou", of, resampled=False)(scores, truth) == pytest.approx(2 / 4)
    for wrong, words in (
        (truth[:, :, 0], r"compares with masks \(n, 2, depth, height, width\)"),
        (np.zeros((1, 2, 3, 2, 2)), r"compares with masks \(n, 2, 2, 2, 2\)"),
    ):
        with pytest.raises(VerificationError, match=words):
            task_metric("miou", of, resampled=False)(scores, wrong)
    found = {"output": scores}
    assert likeness(presenter_of(of), found, found) == ("mean IoU of the masks", 1.0)
    assert same_decisions(presenter_of(of), found, found) == 1.0


def test_decisions_count_from_the_threshold_of_each_label() -> None:
    of = model("multilabel", {"output": (2,)}, scores="probabilities", threshold=[0.2, 0.8])
    one, other = {"output": np.array([[0.3, 0.7]])}, {"output": np.array([[0.6, 0.9]])}
    assert same_decisions(presenter_of(of), one, other) == pytest.approx(1 / 2)  # the second label is a no of FP32
    truth = np.array([[1, 0]])
    assert task_metric("f1", of, resampled=False)(one["output"], truth) == 1.0
    assert task_metric("f1", of, resampled=False)(other["output"], truth) == pytest.approx(2 / 3)


def test_mean_absolute_error_is_in_the_units_of_the_values() -> None:
    metric = task_metric("mae", model("regression", {"output": (2,)}, scale=[10, 1], offset=[0, 5]), resampled=False)
    assert metric.goal == "min"
    assert metric(np.array([[1.0, 0.0]], np.float32), np.array([[12.0, 4.0]])) == pytest.approx((2 + 1) / 2)
    with pytest.raises(VerificationError, match="compares with 2 values for each sample"):
        metric(np.zeros((1, 2), np.float32), np.zeros((1, 3)))
    with pytest.raises(VerificationError, match="the targets of sample 1 are not all finite"):
        metric(np.zeros((2, 2), np.float32), np.array([[0, 0], [0, np.nan]]))


@pytest.mark.parametrize("form", ["pixels", "normalized", "maps"])
def test_the_distance_of_points_is_in_pixels_of_the_input(form: str) -> None:
    shapes = {"output": (2, 5, 5) if form == "maps" else (2, 2)}
    settings = {} if form == "maps" else {"coordinates": form}
    metric = task_metric("distance", model("keypoints", shapes, threshold=0.5, **settings), resampled=False)
    places = np.array([[[1.0, 1.0], [5.0, 3.0]]], np.float32)  # the middles of two pixels of a map of 5 x 5
    outputs = places / SIZE if form == "normalized" else places
    if form == "maps":
        outputs = np.zeros((1, 2, 5, 5), np.float32)
        outputs[0, 0, 0, 0] = outputs[0, 1, 1, 2] = 0.1  # below the threshold: it has a place all the same
    assert metric.goal == "min"
    assert metric(outputs, places) == pytest.approx(0.0, abs=1e-6)
    assert metric(outputs, places + np.array([[[3, 4], [0, 1]]])) == pytest.approx(3.0, abs=1e-6)
    assert metric(outputs, np.array([[[4, 5], [np.nan, np.nan]]])) == pytest.approx(5.0, abs=1e-6)
    for targets, words in (
        (np.full((1, 2, 2), np.nan), "no point of the targets is known"),
        (np.zeros((1, 3, 2)), r"compares with points \(n, 2, 2\)"),
        (np.full((1, 2, 2), 0.5), "all points are from 0 to 1"),
    ):
        with pytest.raises(VerificationError, match=words):
            metric(outputs, targets)


def test_errors_of_maps_count_the_pixels_whose_number_is_known() -> None:
    of = model("regression", {"depth": (2, 2)}, scale=[10.0], maps=True)
    mae, rmse = (task_metric(name, of, resampled=False) for name in ("mae", "rmse"))
    outputs = np.array([[[0.1, 0.2], [0.3, 0.4]]], np.float32)
    targets = np.array([[[1.0, 4.0], [np.nan, 0.0]]])  # errors of 0, 2 and 4
    assert mae(outputs, targets) == pytest.approx(2.0, abs=1e-6)
    assert mae(outputs, targets[:, None]) == pytest.approx(2.0, abs=1e-6)
    assert rmse(outputs, targets) == pytest.approx(np.sqrt(20 / 3))
    whole = np.full((1, SIZE, SIZE), np.nan)
    whole[0, 0, 0], whole[0, -1, -1] = 1.0, 3.0  # in the corners, where nothing is between two pixels of the output
    assert mae(outputs, whole) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(VerificationError, match="no pixel of the targets has a number"):
        mae(outputs, np.full((1, 2, 2), np.nan))
    with pytest.raises(VerificationError, match="the targets of sample 0 are not all finite"):
        mae(outputs, np.full((1, 2, 2), np.inf))
    for shape in ((1, 4), (1, 2, 3), (1, 3, 2, 2), (1, 1, 1)):
        with pytest.raises(VerificationError, match=r"compares with maps \(n, 1, 2, 2 or 10, 10\)"):
            mae(outputs, np.zeros(shape))
    rows = task_metric("rmse", model("regression", {"output": (2,)}), resampled=False)
    assert rows(np.float32([[1, 2], [3, 4]]), np.array([[1, 2], [3, 0]])) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "targets", "words"),
    [
        ("miou", [[[0.7, 0.0]]], "the masks have 0.7; a class is a whole number"),
        ("miou", [[[np.nan, 0.0]]], "the targets of sample 0 are not all finite"),
        ("miou", np.zeros((1, 0, 0)), r"the targets have shape \(1, 0, 0\)"),
        ("map", [[[0, 0, 4, 4, 0.5]]], "the classes of boxes have 0.5"),
        ("map", [[[0, 0, 4, 4, np.nan]]], "the targets of sample 0 are not all finite"),
        ("map", [[[0, 0, 4, 4, 0, 0.9]]], "the sixth number of a box says whether it is a crowd, 0 or 1"),
        ("mae", [["1", "2"]], "the targets are <U1, and it compares with numbers"),
        ("mae", np.zeros((1, 2), "M8[D]"), "the targets are datetime64.*compares with numbers"),
        ("f1", [["a", "b"]], "the targets are <U1"),
        ("recall@1", [np.nan], "the targets of sample 0 are not all finite"),
    ],
)
def test_targets_that_are_no_numbers_of_the_metric_are_refused(name: str, targets: Any, words: str) -> None:
    """Masks of 0.7 and boxes of class 0.5 counted as class 0, dates as numbers; the others were tracebacks."""
    pytest.importorskip("pycocotools")
    kinds = {"miou": "segmentation", "map": "detection", "mae": "regression", "f1": "multilabel"}
    of = DETECTOR if name == "map" else model(kinds.get(name, "embedding"), {"output": (2, 1, 2)[name != "miou" :]})
    outputs = boxes((0, 0, 4, 4, 0, 0.9)) if name == "map" else np.zeros((1, 2, 1, 2)[: 4 if name == "miou" else 2])
    with pytest.raises(VerificationError, match=words):
        task_metric(name, of, resampled=False)(outputs, np.asarray(targets))


def test_f1_counts_all_labels() -> None:
    metric = task_metric("f1", model("multilabel", {"output": (3,)}, scores="probabilities"), resampled=False)
    outputs = np.array([[0.9, 0.1, 0.9], [0.1, 0.9, 0.1]], np.float32)
    # 2 right; 3 found and 3 true.
    assert metric(outputs, np.array([[1, 1, 0], [0, 1, 0]])) == pytest.approx(2 * 2 / 6)
    assert metric(np.zeros((1, 3), np.float32), np.zeros((1, 3))) == 1.0
    with pytest.raises(VerificationError, match="the targets have -1; a label is 0 or 1"):
        metric(outputs, np.array([[1, -1, 0], [0, 1, 0]]))


def test_recall_looks_for_the_own_class_among_the_nearest_others() -> None:
    of = model("embedding", {"output": (2,)})
    vectors = np.array([[1, 0], [5, 1], [0, 1], [1, 9], [1, 1.2]], np.float32)
    classes = np.array([0, 0, 1, 1, 7])  # the last is alone in its class, and near to none of another's first
    assert task_metric("recall@1", of, resampled=False)(vectors, classes) == 1.0
    assert task_metric("recall@1", of, resampled=False)(vectors, np.array([0, 1, 0, 1, 7])) == 0.0
    assert task_metric("recall@4", of, resampled=False)(vectors, np.array([0, 1, 0, 1, 7])) == 1.0
    with pytest.raises(VerificationError, match="no class has two samples"):
        task_metric("recall@1", of, resampled=False)(vectors, np.arange(5))


def test_a_sample_that_is_drawn_twice_does_not_find_itself() -> None:
    metric = task_metric("recall@1", model("embedding", {"output": (2,)}), resampled=True)
    vectors = np.array([[1, 0], [5, 1], [0, 1], [1, 9]], np.float32)
    measure = metric.measure(lambda rows: vectors[rows], np.array([0, 1, 0, 1]))
    assert measure(np.array([0, 0, 2, 2])) == 0.0


def test_draws_without_anything_to_measure_have_no_number() -> None:
    """A gate with ``confident`` must not fail because some draw has no box."""
    metric = task_metric("miou", model("segmentation", {"output": (2, 1, 1)}), resampled=True)
    scores, masks = np.zeros((4, 2, 1, 1), np.float32), np.array([0, 0, 1, 255]).reshape(4, 1, 1)
    measure = metric.measure(lambda rows: scores[rows], masks)
    assert np.isnan(measure(np.array([3, 3, 3, 3])))
    rows = np.array([0, 2, 2, 3])
    assert measure(rows) == metric(scores[rows], masks[rows]) > 0.0
    assert accuracy.bootstrap_interval(lambda rows: 1.0 if (rows < 3).any() else np.nan, 4) == (1.0, 1.0)
    with pytest.raises(ValueError, match="cannot be measured on most draws of 4 samples"):
        accuracy.bootstrap_interval(lambda _rows: np.nan, 4)


def test_a_metric_of_another_kind_is_an_error_of_the_recipe() -> None:
    with pytest.raises(
        RecipeError, match=r'metric = "miou" is for .* "segmentation" or "masks", and the model.s is "detection"'
    ):
        task_metric("miou", DETECTOR, resampled=False)


def test_boxes_in_common_have_the_same_class_and_place() -> None:
    presenter: Any = presenter_of(DETECTOR)
    one = boxes((0, 0, 4, 4, 0, 0.9), (5, 5, 9, 9, 1, 0.8))
    assert common_boxes(presenter, one, one) == 1.0
    assert common_boxes(presenter, one, boxes((0, 0, 4, 4, 0, 0.9), (5, 5, 9, 9, 0, 0.8))) == 0.5  # another class
    assert common_boxes(presenter, one, boxes((0, 0, 4, 1, 0, 0.9))) == 0.0
    assert common_boxes(presenter, boxes(), boxes()) is None


def test_maps_are_alike_without_labels() -> None:
    of = model("segmentation", {"output": (2, 1, 2)})
    scores = {"output": np.array([[[[0, 0]], [[1, -1]]]], np.float32)}
    other = {"output": np.array([[[[0, 0]], [[1, 1]]]], np.float32)}
    found = likeness(presenter_of(of), scores, other)
    assert found == ("mean IoU of the classes", pytest.approx((0.0 + 0.5) / 2))  # class 0 is gone, class 1 is twice


def test_decisions_count_those_of_each_side_alike() -> None:
    """Of 100 values 20 are yes in FP32; INT8 loses 5 of these, and says yes to 8 of the others."""
    expected = np.r_[np.full(20, 0.9), np.full(80, 0.1)].astype(np.float32)[:, None]
    found = expected.copy()
    found[:5], found[20:28] = 0.4, 0.6
    shares = (15 / 20 + 72 / 80) / 2
    raw = presenter_of(model("raw", {"speech": (1,), "state": (4,)}))
    state = np.full((100, 4), -0.5, np.float32)
    assert same_decisions(raw, {"speech": expected, "state": state}, {"speech": found, "state": -state}) == (
        pytest.approx(shares)
    )
    assert same_decisions(raw, {"state": state}, {"state": state}) is None  # not from 0 to 1
    few = expected[1:], found[1:]  # 19 are too few to count as much as 80
    assert same_decisions(raw, {"y": few[0]}, {"y": few[1]}) == pytest.approx(1 - 12 / 99)
    labels = presenter_of(model("multilabel", {"y": (1,)}, scores="logits", threshold=0.5))
    logits = [np.log(each / (1 - each)) for each in (expected, found)]
    assert same_decisions(labels, {"y": logits[0]}, {"y": logits[1]}) == pytest.approx(shares)
    assert same_decisions(None, {"y": expected}, {"y": found}) is None  # of classes
