"""The forms in which models give boxes, points and masks: all of one meaning make one result."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.artifacts import FloatModel, Samples
from cpupack.errors import ModelError
from cpupack.model.tasks import check_labels, names_of_heads, task_of, with_judged
from cpupack.recipe import Task
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.signature import INPUT, OutputSpec, Signature, worst_sqnr_db
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.answers import input_size
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.tasks.scores import told_by_data

SIZE = 64
RANDOM = np.random.default_rng(0)
BOXES = np.concatenate([RANDOM.uniform(0, 40, (30, 2)), RANDOM.uniform(41, 64, (30, 2))], axis=1).astype(np.float32)
SCORES = RANDOM.standard_normal((30, 6)).astype(np.float32)


def signature(**outputs: Any) -> Signature:
    specs = tuple(OutputSpec(name, tuple(value.shape)) for name, value in outputs.items())
    return Signature((TensorSpec(INPUT, (3, SIZE, SIZE)),), specs)


def found(settings: dict[str, Any], **outputs: Any) -> list[tuple[int, float, tuple[float, ...]]]:
    """Return class, score and box of all that is found, for a recipe's settings."""
    spec = task_of(Task.model_validate({"kind": "detection", **settings}), signature(**outputs))
    presenter = kinds.presenter(spec, kinds.Model(None, (SIZE, SIZE)))
    return [(one.index, one.score, one.box) for one in presenter.present(outputs, None).found]


def test_boxes_in_rows_in_columns_and_beside_their_scores_are_the_same() -> None:
    expected = found({}, boxes=BOXES, scores=SCORES)
    together = np.concatenate([BOXES, SCORES], axis=1)
    assert len(expected) > 5
    assert found({}, output=together) == expected
    assert found({"layout": "columns"}, output=np.ascontiguousarray(together.T)) == expected
    assert found({}, boxes=BOXES.T, scores=SCORES.T) == expected
    assert found({}, boxes=BOXES, scores=SCORES[:, 0]) == found({}, boxes=BOXES.T, scores=SCORES[None, :, 0])


def test_an_output_that_may_be_read_in_two_ways_must_be_said() -> None:
    """YOLOv8 gives (84, 8400). Read as 84 boxes, it is no error and all wrong."""
    together = np.concatenate([BOXES, SCORES], axis=1).T
    with pytest.raises(ModelError, match="30 boxes with 6 scores each, or 10 boxes with 26") as error:
        found({}, output=together)
    assert 'layout = "columns"' in str(error.value.hint)
    with pytest.raises(ModelError, match="the boxes are rows"):
        found({"layout": "columns"}, boxes=BOXES, scores=SCORES)
    with pytest.raises(ModelError, match="the boxes are rows"):
        found({"layout": "columns"}, output=np.zeros((4, 9), np.float32))


def test_a_score_of_any_object_multiplies_those_of_the_classes() -> None:
    objects = RANDOM.standard_normal((30, 1)).astype(np.float32)
    logistic = 1.0 / (1.0 + np.exp(-np.concatenate([objects, SCORES], axis=1).astype(np.float64)))
    product = (logistic[:, :1] * logistic[:, 1:]).astype(np.float32)
    expected = [row[:1] + row[2:] for row in found({"scores": "probabilities"}, boxes=BOXES, scores=product)]
    together = np.concatenate([BOXES, objects, SCORES], axis=1)
    forms: list[list[tuple[int, float, tuple[float, ...]]]] = [
        found({"objectness": True}, output=together),
        found({"objectness": True, "layout": "columns"}, output=together.T),
        found({}, boxes=BOXES, scores=SCORES, objectness=objects),
        found({}, boxes=BOXES, scores=SCORES, objectness=objects[:, 0]),
        found({}, boxes=BOXES.T, scores=SCORES.T, objectness=objects.T),
    ]
    for form in forms:
        assert [row[:1] + row[2:] for row in form] == expected
    for scores in ("logits", "probabilities"):
        given = objects if scores == "logits" else logistic[:, :1].astype(np.float32)
        alone = found({"objectness": True, "scores": scores}, boxes=BOXES, scores=given)
        assert alone == found({"scores": scores}, boxes=BOXES, scores=given)


def test_a_last_class_that_stands_for_nothing() -> None:
    """DETR's form: a softmax over all, the last class is none, a box has its best class, and nothing is suppressed."""
    chances = np.exp(SCORES.astype(np.float64))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[:, :5] *= chances[:, :5] == chances[:, :5].max(axis=1, keepdims=True)
    settings = {"nms_iou": 1.0, "threshold": 0.2}
    expected = found({**settings, "scores": "probabilities"}, boxes=BOXES, scores=chances[:, :5].astype(np.float32))
    given = found({**settings, "background": "last"}, boxes=BOXES, scores=SCORES)
    assert [each[0] for each in given] == [each[0] for each in expected]
    assert {each[0] for each in given} <= set(range(5))
    spec = task_of(Task(kind="detection", background="last"), signature(boxes=BOXES, scores=SCORES))
    outputs = {"boxes": BOXES.shape, "scores": SCORES.shape}
    check_labels(("a", "b", "c", "d", "e"), "the list", spec, outputs)
    with pytest.raises(ModelError, match="has 6 names"):
        check_labels(("a", "b", "c", "d", "e", "none"), "the list", spec, outputs)


def test_suppression_across_classes() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], np.float32)
    scores = np.array([[0.9, 0.6], [0.1, 0.8], [0.5, 0.7]], np.float32)
    settings = {"scores": "probabilities", "threshold": 0.3}
    apart = [(index, round(score, 1)) for index, score, _ in found(settings, boxes=boxes, scores=scores)]
    assert apart == [(0, 0.9), (1, 0.8), (1, 0.7), (0, 0.5)]
    together = found({**settings, "class_agnostic": True}, boxes=boxes, scores=scores)
    assert [(index, round(score, 1)) for index, score, _ in together] == [(0, 0.9), (1, 0.7)]


def test_ten_thousand_boxes_and_boxes_far_outside() -> None:
    corner = RANDOM.uniform(-1e6, 1e6, (10_000, 2))
    boxes = np.concatenate([corner, corner + RANDOM.uniform(0, 1e5, (10_000, 2))], axis=1).astype(np.float32)
    boxes[0] = [-np.inf, -np.inf, np.inf, np.inf]
    for agnostic in (False, True):
        many = found({"class_agnostic": agnostic}, boxes=boxes, scores=np.full((10_000, 3), 2.0, np.float32))
        assert many[0][2] == (0.0, 0.0, SIZE, SIZE)
        assert all(0.0 <= edge <= SIZE for _, _, box in many for edge in box)


def test_points_in_shares_of_the_input() -> None:
    points = np.array([[0.5, 0.25, 0.9], [1.0, 0.0, 0.8]], np.float32)
    frame = Frame(200, 100, 64, 64, 64, 64)
    for spec, given in (("normalized", points), ("pixels", points * [64, 64, 1])):
        presenter = kinds.presenter(TaskSpec.of("keypoints", coordinates=spec), kinds.Model(None, (64, 64)))
        assert [(one.x, one.y) for one in presenter.present({"": given}, frame).points] == [(100.0, 25.0), (200.0, 0.0)]


def test_scores_of_one_class_without_its_dimension_are_no_classes() -> None:
    """``squeeze(1)`` at the end of a model of one class: rounded, -3.2 would be class -3."""
    scores = np.array([[-3.2, 4.1], [0.4, -0.1]], np.float32)
    presenter = kinds.presenter(TaskSpec.of("segmentation"), kinds.Model(("rest", "road"), (2, 2)))
    for frame in (None, Frame.whole(2, 2)):
        for given in (scores, scores[None]):
            assert presenter.present({"": given}, frame).mask.tolist() == [[0, 1], [1, 0]]
        assert presenter.present({"": np.array([[3.0, 0.0], [1.0, 3.0]])}, frame).mask.tolist() == [[3, 0], [1, 3]]


def test_a_mask_of_limited_scores_is_no_class_though_all_of_it_is_whole() -> None:
    """Logits that are limited to 10 were class 10 where all of an image is the one class."""
    spec = TaskSpec.of("segmentation", squeezed=True)
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict())), (2, 2)) == spec
    presenter = kinds.presenter(spec, kinds.Model(("rest", "road"), (2, 2)))
    for value, found in ((10.0, 1), (0.0, 1), (-10.0, 0)):
        whole = presenter.present({"": np.full((2, 2), value, np.float32)}, Frame.whole(2, 2))
        assert whole.mask.tolist() == [[found] * 2] * 2
        assert [one.label for one in whole.shares] == ["road" if found else "rest"]


def test_the_data_of_a_build_tell_scores_from_classes() -> None:
    images = np.zeros((4, 4, 4, 3), np.uint8)
    images[:3] += 200

    def squeezed(net: nn.Module, outputs: OutputSpec) -> bool:
        signature = Signature((TensorSpec(INPUT, (3, 4, 4)),), (outputs,))
        of = FloatModel(net, signature, "", False, None, 0, 0, 0, task=TaskSpec.of("segmentation"))
        told = told_by_data(of, Samples(images, "photos", tuple("abcd"), PreprocessSpec()))
        assert told.task is not None
        return told.task.squeezed

    half = Mean(lambda x: (40 * x - 20).clamp(-10, 10) + (x == 0) * 0.5)
    assert squeezed(half, OutputSpec("output", (4, 4)))
    assert not squeezed(Mean(lambda x: (x > 0.5).float() * 3), OutputSpec("output", (4, 4)))
    assert not squeezed(Mean(lambda x: (x > 0.5) * 100.0 - 100), OutputSpec("output", (4, 4), whole="int64"))
    assert not squeezed(Mean(lambda x: torch.stack([x, 1 - x], 1)), OutputSpec("output", (2, 4, 4)))
    assert not squeezed(Mean(lambda x: torch.stack([x, 1 - x], 1)), OutputSpec("output", (2, 4, 4), "argmax", 1))


class Mean(nn.Module):
    """A function of the mean of the colours of each pixel."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x.mean(1))


def test_outputs_of_other_names_are_told_how_to_fit() -> None:
    with pytest.raises(ModelError, match="needs two outputs") as caught:
        task_of(Task(kind="detection"), signature(output_0=SCORES, output_1=BOXES, features=np.zeros((7, 5, 3))))
    for words in (
        '"output_1" with rename = "boxes"',
        '"output_0" with rename = "scores"',
        '"features" with drop = true',
    ):
        assert words in (caught.value.hint or "")
    with pytest.raises(ModelError) as caught:
        task_of(Task(kind="keypoints"), signature(maps=np.zeros((5, 16, 16)), more=np.zeros(9)))
    assert caught.value.hint == '[[output]] tables: name = "more" with drop = true'


def test_no_advice_leaves_out_what_is_wanted() -> None:
    """Without the class of each box, all would have class 0; values of another head would be missing."""

    def hint(kind: str, *specs: OutputSpec) -> str:
        with pytest.raises(ModelError) as caught:
            task_of(Task.model_validate({"kind": kind}), Signature((TensorSpec(INPUT, (3, SIZE, SIZE)),), specs))
        return caught.value.hint or ""

    chosen = OutputSpec("boxes", (8, 4)), OutputSpec("labels", (8,), whole="int64"), OutputSpec("scores", (8,))
    others = OutputSpec("xyxy", (8, 4)), OutputSpec("best", (8,)), OutputSpec("cls", (8,), whole="int64")
    assert hint("detection", *others) == (
        '[[output]] tables: name = "xyxy" with rename = "boxes"; name = "best" with rename = "scores"; '
        'name = "cls" with rename = "labels"'
    )
    unlike = OutputSpec("labels", (8, 1), whole="int64")
    assert hint("detection", chosen[0], unlike, chosen[2]).startswith('"labels" may be the class of each box, and is')
    all_scores = OutputSpec("logits", (8, 3))
    assert hint("detection", *chosen[:2], all_scores) == (
        '[[output]] tables: name = "logits" with rename = "scores"; name = "labels" with drop = true'
    )
    age, maps = OutputSpec("age", (1,)), OutputSpec("maps", (4, 8, 8))
    two = hint("regression", age, OutputSpec("size", (2,)), maps)
    assert two == 'leave out what is no row of values, [[output]] tables: name = "maps" with drop = true'
    mask, features = OutputSpec("mask", (8, 8), whole="bool"), OutputSpec("features", (9,))
    assert hint("segmentation", mask, features) == '[[output]] tables: name = "features" with drop = true'
    points = hint("keypoints", OutputSpec("output", (5, 2), whole="int64"))
    assert points == 'set kind = "raw", which gives it as it is; or return it as floats: output.float()'


def test_a_detector_may_choose_the_class_of_each_box() -> None:
    """It was refused: most detectors that people write end in ``scores.max(-1)``."""
    best, labels = SCORES.max(axis=1), SCORES.argmax(axis=1)
    whole = task_of(Task(kind="detection", threshold=0.6), chosen_by(best, labels))
    presenter = kinds.presenter(whole, kinds.Model(("a", "b"), (SIZE, SIZE)))
    result = presenter.present({"boxes": BOXES, "scores": best, "labels": labels}, None)
    alone = np.where(labels[:, None] == np.arange(6), SCORES, np.float32(-50))
    assert [(one.index, one.score, one.box) for one in result.found] == found(
        {"threshold": 0.6}, boxes=BOXES, scores=alone
    )
    assert {one.label for one in result.found} >= {"a", "b", "2"}  # a class without a name keeps its number
    nothing = presenter.present({"boxes": BOXES, "scores": best, "labels": np.where(labels > 0, -1, labels)}, None)
    assert {one.index for one in nothing.found} == {0}
    with pytest.raises(ModelError, match='background = "last" is about the scores of all classes'):
        task_of(Task(kind="detection", background="last"), chosen_by(best, labels))


def chosen_by(best: Any, labels: Any) -> Signature:
    specs = OutputSpec("boxes", BOXES.shape), OutputSpec("scores", best.shape)
    return Signature((TensorSpec(INPUT, (3, SIZE, SIZE)),), (*specs, OutputSpec("labels", labels.shape, whole="int64")))


def test_the_class_of_what_is_no_object_is_not_compared() -> None:
    """Of nothing it is chance, and its SQNR would fail every gate."""
    of = with_judged(chosen_by(SCORES[:, 0], SCORES[:, 0]), TaskSpec.of("detection"))
    rows = np.concatenate([BOXES.reshape(1, -1), SCORES[None, :, 0], np.zeros((1, 30), np.float32)], axis=1)
    other = np.concatenate([rows[:, :-30], np.ones((1, 30), np.float32)], axis=1)
    expected, actual = of.compared(rows, other)
    assert list(expected) == list(actual) == ["boxes", "scores"]
    assert worst_sqnr_db(of, rows, other) > 100
    assert Signature.from_dicts(**of.to_dicts()) == of  # the wheel's own verify compares so, too


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_the_values_of_several_heads_are_one_result(kind: str) -> None:
    heads = Signature(
        (TensorSpec(INPUT, (3, SIZE, SIZE)),),
        (OutputSpec("age", (1,)), OutputSpec("height", ()), OutputSpec("angles", (2,))),
    )
    shapes = {each.name: each.result_shape for each in heads.outputs}
    outputs = {"age": np.float32([1]), "height": np.float32(2), "angles": np.float32([3, -4])}
    spec = task_of(Task.model_validate({"kind": kind}), heads)
    names = names_of_heads(spec, shapes)
    assert names == ("age", "height", "angles 0", "angles 1")
    result = kinds.presenter(spec, kinds.Model(names)).present(outputs, None)
    if kind == "regression":
        assert [(each.name, each.value) for each in result.values] == list(zip(names, [1, 2, 3, -4], strict=True))
        scaled = task_of(Task(kind="regression", scale=[1.0, 1.0, 2.0, 1.0]), heads)
        assert kinds.presenter(scaled, kinds.Model(names)).present(outputs, None)["angles 0"] == 6
        with pytest.raises(ModelError, match="scale has 3 entries for 4 values"):
            task_of(Task(kind="regression", scale=[1.0] * 3), heads)
    else:
        assert [each.label for each in result.labels] == ["angles 0", "height", "age"]
    check_labels(("a", "b", "c", "d"), "the list", spec, shapes)
    with pytest.raises(ModelError, match="2 names"):
        check_labels(("a", "b"), "the list", spec, shapes)


@pytest.mark.parametrize(
    ("settings", "outputs", "words"),
    [
        ({"kind": "multilabel"}, {"output": np.zeros(4)}, "has 3 entries for 4 labels"),
        ({"kind": "masks"}, {"output": np.zeros((2, 8, 8))}, "has 3 entries for 2 labels"),
        ({"kind": "detection"}, {"boxes": np.zeros((9, 4)), "scores": np.zeros((9, 2))}, "has 3 entries for 2 labels"),
        ({"kind": "multilabel"}, {"a": np.zeros(2), "b": np.zeros(2)}, "has 3 entries for 4 labels"),
    ],
)
def test_a_list_of_thresholds_has_one_for_each_label(
    settings: dict[str, Any], outputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=rf"\[task\] threshold {words}"):
        task_of(Task.model_validate({**settings, "threshold": [0.1, 0.2, 0.3]}), signature(**outputs))


def test_thresholds_of_classes_that_the_model_chooses_are_one_number() -> None:
    outputs = {"boxes": np.zeros((9, 4)), "scores": np.zeros(9), "labels": np.zeros(9)}
    specs = tuple(
        OutputSpec(name, value.shape, **({"whole": "int64"} if name == "labels" else {}))
        for name, value in outputs.items()
    )
    of = Signature((TensorSpec(INPUT, (3, SIZE, SIZE)),), specs)
    with pytest.raises(ModelError, match="the model chooses the class of each box itself: set one number"):
        task_of(Task.model_validate({"kind": "detection", "threshold": [0.1, 0.2]}), of)


def test_boxes_with_five_numbers_have_an_angle() -> None:
    boxes, scores = np.zeros((9, 5)), np.zeros((9, 2))
    spec = task_of(Task(kind="detection", angle="fifth"), signature(boxes=boxes, scores=scores))
    assert (spec.angle, spec.box_format) == ("fifth", "cxcywh")
    whole = task_of(Task(kind="detection", angle="last", layout="columns"), signature(output=np.zeros((7, 99))))
    assert kinds.label_count(whole, {"output": (7, 99)}) == 2
    for settings, outputs, words in (
        ({}, {"boxes": boxes, "scores": scores}, 'has five numbers for each box: set "fifth"'),
        ({"angle": "fifth"}, {"boxes": boxes[:, :4], "scores": scores}, "has 4 numbers for each box"),
        ({"angle": "fifth", "box_format": "xyxy"}, {"boxes": boxes, "scores": scores}, 'set box_format = "cxcywh"'),
    ):
        with pytest.raises(ModelError, match=rf"\[task\] angle .*{words}"):
            task_of(Task.model_validate({"kind": "detection", **settings}), signature(**outputs))


def test_masks_of_four_dimensions_are_of_a_scan() -> None:
    spec = task_of(Task(kind="masks"), signature(output=np.zeros((2, 4, 8, 8))))
    assert spec.volume
    assert not task_of(Task(kind="masks"), signature(output=np.zeros((2, 8, 8)))).volume


@pytest.mark.parametrize("kind", ["regression", "multilabel", "keypoints", "masks"])
def test_results_that_are_told_apart_by_their_names_have_no_name_twice(kind: str) -> None:
    shape = {"keypoints": (3, 2), "masks": (3, 8, 8)}.get(kind, (3,))
    with pytest.raises(ModelError, match='the list has "age" 2 times'):
        check_labels(("age", "height", "age"), "the list", TaskSpec.of(kind), {"output": shape})
    check_labels(("crane", "cat", "crane"), "the list", TaskSpec.of("classification"), {"output": (3,)})  # of ImageNet


def test_a_regression_may_have_a_number_for_each_pixel() -> None:
    """A depth was refused, or was an image whose numbers were cut to 0..255."""
    image = (TensorSpec(INPUT, (3, SIZE, SIZE)),)
    one = Signature(image, (OutputSpec("depth", (1, 8, 8)),))
    spec = task_of(Task(kind="regression", units=["m"], scale=[80.0]), one)
    assert spec.maps
    check_labels(("depth",), "the list", spec, {"depth": (1, 8, 8)})
    with pytest.raises(ModelError, match="units has 2 entries for 1 values"):
        task_of(Task(kind="regression", units=["m", "m"]), one)
    shapes = {"depth": (8, 8), "normal": (3, 8, 8)}
    several = task_of(
        Task(kind="regression"), Signature(image, tuple(OutputSpec(name, shape) for name, shape in shapes.items()))
    )
    names = names_of_heads(several, shapes)
    assert names == ("depth", "normal 0", "normal 1", "normal 2")
    found = kinds.presenter(several, kinds.Model(names)).present(
        {name: np.full(shape, len(name), np.float32) for name, shape in shapes.items()}, None
    )
    assert (found["depth"].max(), found["normal 2"].max()) == (5, 6)
    assert not task_of(Task(kind="regression"), Signature(image, (OutputSpec("age", (8,)),))).maps


def test_boxes_lie_in_the_frames_of_a_video_and_in_no_table() -> None:
    """A video of (channels, frames, height, width) was taken for no image: boxes were clipped to one pixel."""
    outputs = (OutputSpec("boxes", (9, 4)), OutputSpec("scores", (9, 2)))
    video = Signature((TensorSpec("x", (3, 8, 48, 64)),), outputs)
    assert input_size(video) == (64, 48)
    assert task_of(Task(kind="detection"), video).kind == "detection"
    for kind, specs in (("detection", outputs), ("keypoints", (OutputSpec("output", (9, 2)),))):
        for shape in ((1, 800), (16,), ()):
            with pytest.raises(ModelError, match="in pixels of an image, and the model takes x float32"):
                task_of(Task.model_validate({"kind": kind}), Signature((TensorSpec("x", shape),), specs))


def test_what_is_applied_to_boxes_says_nothing_of_the_scores() -> None:
    """DETR's boxes before their sigmoid: logits beside them were taken for probabilities."""

    def scores(kind: str = "detection", given: str | None = None, **applied: str) -> str:
        shapes = {name: (8, 4) if name == "boxes" else (8, 3) if name == "scores" else (8,) for name in applied}
        specs = tuple(OutputSpec(name, shapes[name], apply or None) for name, apply in applied.items())
        of = Signature((TensorSpec(INPUT, (3, SIZE, SIZE)),), specs)
        return task_of(Task.model_validate({"kind": kind} | ({"scores": given} if given else {})), of).scores

    assert scores(boxes="sigmoid", scores="") == "logits"
    assert scores(boxes="sigmoid", scores="", given="logits") == "logits"
    assert scores(boxes="sigmoid", scores="sigmoid") == "probabilities"
    assert scores(boxes="", scores="sigmoid", objectness="sigmoid") == "probabilities"
    assert scores(boxes="", scores="sigmoid", objectness="", given="probabilities") == "probabilities"
    with pytest.raises(ModelError, match='applies sigmoid to "scores" and nothing to "objectness"'):
        scores(boxes="", scores="sigmoid", objectness="")
    with pytest.raises(ModelError, match="applies softmax, which makes probabilities"):
        scores(boxes="", scores="softmax", given="logits")


def test_numbers_of_classes_are_no_scores() -> None:
    """Class 2 of a box would be a logit of 2, and labels of tokens one row of scores."""
    image = (TensorSpec(INPUT, (3, SIZE, SIZE)),)
    for kind, specs in (
        ("detection", (OutputSpec("boxes", (8, 4)), OutputSpec("scores", (8, 3), "argmax", 2))),
        ("multilabel", (OutputSpec("output", (5, 2), "argmax", 2),)),
        ("regression", (OutputSpec("output", (5,), "argmax", 1),)),
    ):
        words = f'kind = "{kind}" is of scores or other floats, and .* "{specs[-1].name}"'
        with pytest.raises(ModelError, match=words):
            task_of(Task.model_validate({"kind": kind}), Signature(image, specs))
    maps = Signature(image, (OutputSpec("output", (5, 8, 8), "argmax", 1),))
    assert task_of(Task(kind="segmentation"), maps).kind == "segmentation"
    own = Signature(image, (OutputSpec("output", (8, 8), whole="int64"),))  # forward ends in an argmax
    assert task_of(Task(kind="segmentation"), own).kind == "segmentation"
    with pytest.raises(ModelError, match='the output "output" is bool'):
        task_of(Task(kind="segmentation"), Signature(image, (OutputSpec("output", (2, 8, 8), whole="bool"),)))
    assert task_of(None, Signature(image, (OutputSpec("output", (5, 2), "argmax", 2),))).kind == "raw"
    assert task_of(None, Signature(image, (OutputSpec("output", (5, 2), "argmax", 1),))).kind == "raw"
    assert task_of(None, Signature(image, (OutputSpec("output", (5,), "softmax"),))).scores == "probabilities"


def test_of_outputs_with_equal_shapes_the_names_tell_the_boxes() -> None:
    """DETR with three classes gives (n, 4) twice."""
    with pytest.raises(ModelError) as caught:
        task_of(Task(kind="detection"), signature(pred_logits=BOXES, pred_boxes=BOXES))
    assert 'name = "pred_boxes" with rename = "boxes"; name = "pred_logits" with rename = "scores"' in (
        caught.value.hint or ""
    )
