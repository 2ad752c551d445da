"""What each kind of task makes of a model's outputs: numbers worked out by hand, and places in the original image."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.errors import InputError, IntegrityError, RunnerError
from cpupack.runtime.images.preprocess import to_pixels, upright_size
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.tasks import boxes, decode, kinds, lettering
from cpupack.runtime.tasks.embedding import Embedding
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.scores import best_first, sigmoid
from cpupack.runtime.tasks.spec import SETTINGS, TaskSpec, default_kind

SQUARE = PreprocessSpec(resize=(8, 8))
CROPPED = PreprocessSpec(resize=8, crop=8)
PADDED = PreprocessSpec(resize=(8, 8), fit="pad")


def present(kind: str, output: Any, frame: Frame | None = None, labels: Any = None, **settings: Any) -> Any:
    outputs = output if isinstance(output, dict) else {"output": np.asarray(output, np.float32)}
    outputs = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    spec = TaskSpec.of(kind, **settings)
    return kinds.presenter(spec, kinds.Model(labels, (8, 8))).present(outputs, frame)


def test_multilabel_gives_the_labels_above_the_threshold_the_most_probable_first() -> None:
    found = present("multilabel", [0.0, -2.0, 3.0], labels=("a", "b", "c"))
    assert [(one.label, one.index) for one in found.labels] == [("c", 2), ("a", 0)]
    assert found.labels[0].probability == pytest.approx(1.0 / (1.0 + math.exp(-3.0)))
    assert found.to_dict()["labels"][1]["probability"] == 0.5
    assert "no label" in present("multilabel", [-9.0, -9.0]).text()
    same = present("multilabel", [0.5, 0.2], scores="probabilities")
    assert [one.label for one in same.labels] == ["0"]


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_regression_scales_and_names_its_values() -> None:
    found = present("regression", [1.5, 2.0], labels=("age", "height"), scale=[10, 1], offset=[1, 0], units=["y", "m"])
    assert found["age"] == 16.0
    assert found["height"] == 2.0
    assert "age     16 y" in found.text()
    with pytest.raises(KeyError, match="age, height"):
        found["weight"]
    assert present("regression", [2.5])["value"] == 2.5


def test_embeddings_have_length_1_and_compare_by_their_cosine() -> None:
    first, second = present("embedding", [3.0, 4.0]), present("embedding", [[[4.0]], [[3.0]]])
    np.testing.assert_allclose(first.vector, [0.6, 0.8], rtol=1e-6)
    assert first.cosine(second) == pytest.approx(0.96)  # 0.6 * 0.8 + 0.8 * 0.6
    assert present("embedding", [0.0, 0.0]).vector.tolist() == [0.0, 0.0]
    with pytest.raises(RunnerError, match="is not finite, so it has no direction"):
        present("embedding", [np.inf, 1.0])
    with pytest.raises(InputError, match="2 and 3 dimensions"):
        first.cosine(Embedding(np.zeros(3, np.float32)))


@pytest.mark.parametrize(
    ("size", "spec"),
    [((40, 20), CROPPED), ((20, 40), CROPPED), ((40, 20), SQUARE), ((5, 4), PreprocessSpec(crop=8)), ((1, 1), CROPPED),
     ((40, 20), PADDED), ((20, 40), PADDED), ((20, 40), dataclasses.replace(PADDED, place="start"))],
)  # fmt: skip
def test_a_frame_says_where_the_preprocessing_put_each_pixel(size: tuple[int, int], spec: PreprocessSpec) -> None:
    """A picture whose colours are its coordinates comes back from the preprocessing at the places that it says."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = (np.arange(width) + 0.5) / width * 200 + 50
    pixels[..., 1] = ((np.arange(height) + 0.5) / height * 200 + 50)[:, None]
    model_input = to_pixels(Image.fromarray(pixels), spec).astype(float)
    frame = Frame.of(width, height, spec)
    assert model_input.shape[:2] == (frame.input_height, frame.input_width)
    ys, xs = np.mgrid[0 : frame.input_height, 0 : frame.input_width] + 0.5
    places = frame.to_image(np.stack([xs, ys], axis=-1))
    inside = (places > 0).all(axis=-1) & (places < size).all(axis=-1)
    assert inside.any()
    found = (model_input[..., :2] - 50) / 200 * size
    tolerance = np.array([width, height]) / 8 + 1.0  # the resize blurs edges over one pixel of the input
    assert (np.abs(found - places)[inside] <= tolerance).all()
    assert not model_input[~inside].any()  # the border is black
    np.testing.assert_allclose(frame.to_input(places), np.stack([xs, ys], axis=-1), atol=1e-9)


def test_a_map_gets_the_size_of_the_image_and_what_the_crop_cut_off_has_no_class() -> None:
    scores = np.zeros((3, 8, 8), np.float32)
    scores[1, :, :4], scores[2, :, 4:] = 5.0, 5.0
    frame = Frame.of(40, 20, CROPPED)  # resized to 16 x 8, of which columns 4 to 12 are left: 10 to 30 of the image
    found = present("segmentation", scores, frame, labels=("none", "left", "right"))
    assert found.mask.shape == (20, 40)
    assert (found.mask[:, :10] == -1).all()
    assert (found.mask[:, 30:] == -1).all()
    assert (found.mask[:, 10:20] == 1).all()
    assert (found.mask[:, 20:30] == 2).all()
    assert [(one.label, one.share) for one in found.shares] == [("left", 0.5), ("right", 0.5)]
    with Image.open(io.BytesIO(base64.b64decode(found.to_dict()["mask_png"]))) as image:
        stored = np.asarray(image)
    assert stored[0].tolist() == [255] * 10 + [1] * 10 + [2] * 10 + [255] * 10
    drawn = found.draw(Image.new("RGB", (40, 20)))
    assert drawn.height > 20  # the legend
    assert np.asarray(drawn)[0, 0].tolist() == [0, 0, 0]
    assert np.asarray(drawn)[0, 12].any()


def test_one_class_against_the_rest_and_maps_of_classes_are_segmentations_too() -> None:
    logits = np.full((1, 8, 8), -4.0)
    logits[0, 0, 0] = 4.0
    assert present("segmentation", logits).mask.sum() == 1
    assert present("segmentation", np.full((8, 8), 300.0)).mask.max() == 300
    with Image.open(io.BytesIO(present("segmentation", np.full((8, 8), 300.0)).png())) as image:
        assert np.asarray(image).max() == 300
    assert present("segmentation", np.full((1, 8, 8), 0.4), scores="probabilities", threshold=0.3).mask.all()
    # Logits that the model limits to 10 are all -10 where nothing is: there is no class -10.
    assert not present("segmentation", np.full((8, 8), -10.0), labels=("rest", "thing")).mask.any()
    # Integers and truth values are classes, and -100 among them is none.
    maps: Any = kinds.presenter(TaskSpec.of("segmentation"), kinds.Model(("rest", "one", "two")))
    for frame in (None, Frame.whole(2, 2)):
        assert maps.present({"": np.array([[-100, 2], [0, 1]])}, frame).mask.tolist() == [[-1, 2], [0, 1]]
        assert maps.present({"": np.eye(2, dtype=bool)}, frame).mask.tolist() == [[1, 0], [0, 1]]


def test_a_scan_has_a_class_for_each_voxel() -> None:
    scores = np.zeros((3, 4, 5, 6), np.float32)
    scores[1, 1:], scores[2, :, 2] = 1.0, 2.0
    scan: Any = kinds.presenter(TaskSpec.of("segmentation", volume=True), kinds.Model(("none", "bone", "tumour")))
    found = scan.present({"": scores}, Frame.whole(6, 5))
    assert found.mask.shape == (4, 5, 6)
    assert found.mask[0, 0, 0] == 0
    assert found.mask[3, 0, 0] == 1
    assert (found.mask[:, 2] == 2).all()
    assert found.text().startswith("  6 x 5 x 4 voxels")
    told = found.to_dict()
    assert (told["width"], told["height"], told["depth"]) == (6, 5, 4)
    assert np.array_equal(np.load(io.BytesIO(base64.b64decode(told["mask_npy"]))), found.mask)
    chosen = scan.present({"": scores.argmax(axis=0).astype(np.int64)}, None)
    assert np.array_equal(chosen.mask, found.mask)
    one = kinds.presenter(TaskSpec.of("segmentation", volume=True), kinds.Model(None))
    assert one.present({"": scores[1:2] - 0.5}, None).mask.sum() == 3 * 30
    # argmax(1, keepdim=True) of an image is no scan of one slice
    kept: Any = kinds.presenter(TaskSpec.of("segmentation"), kinds.Model(None))
    assert kept.present({"": np.ones((1, 2, 2), np.int64)}, None).mask.tolist() == [[1, 1], [1, 1]]


def test_an_image_of_one_pixel_has_a_map_of_one_pixel() -> None:
    scores = np.zeros((2, 8, 8), np.float32)
    scores[1] = 1.0
    assert present("segmentation", scores, Frame.of(1, 1, CROPPED)).mask.tolist() == [[1]]


def test_heat_maps_become_points_of_the_image() -> None:
    maps = np.zeros((2, 4, 4))
    maps[0, 1, 2], maps[0, 1, 3] = 0.9, 0.5  # leans a quarter of a pixel to the right
    maps[1, 0, 0] = 0.2
    found = present("keypoints", maps, Frame.of(80, 40, SQUARE), labels=("nose", "ear"), threshold=0.1)
    nose, ear = found.points
    # x: (2 + 0.5 + 0.25) * 2 input pixels * 10 of the image; y: (1 + 0.5) * 2 * 5
    assert (nose.label, nose.x, nose.y) == ("nose", pytest.approx(55.0), pytest.approx(15.0))
    assert (ear.x, ear.y, ear.score) == (pytest.approx(10.0), pytest.approx(5.0), pytest.approx(0.2))
    few = present("keypoints", maps, threshold=0.5, skeleton=[[0, 1]])
    assert [one.index for one in few.points] == [0]
    assert few.draw(Image.new("RGB", (8, 8))).size == (8, 8)  # a line to a point that is missing is not drawn
    assert found.draw(Image.new("RGB", (80, 40))).height > 40  # a legend says which colour is which point
    face = present("keypoints", np.zeros((68, 2)), labels=tuple(f"point {number}" for number in range(68)))
    assert face.draw(Image.new("RGB", (80, 40))).size == (80, 40)
    outside = present("keypoints", [[-5.0, 100.0]], Frame.of(80, 40, SQUARE)).points[0]
    assert (outside.x, outside.y) == (0.0, 40.0)


def test_a_point_is_found_by_its_name_and_by_its_place() -> None:
    found = present("keypoints", [[1, 2, 0.9], [3, 4, 0.1]], None, ("nose", "ear"), threshold=0.5)
    assert (found["nose"].x, found["nose"].y) == (1.0, 2.0)
    assert found[0] is found["nose"]
    assert len(found) == 1
    with pytest.raises(KeyError, match="no point 'ear' with a score of the threshold or more; there is nose"):
        found["ear"]


def test_scores_of_places_across_and_down_become_points() -> None:
    """Two places for each pixel of the input of 8 x 8, as SimCC has them."""
    across, down = np.zeros((2, 16)), np.zeros((2, 16))
    across[0, 7], down[0, 4] = 0.9, 0.6
    across[1, 0], down[1, 15] = 0.3, 0.8
    outputs = {"simcc_x": across, "simcc_y": down}
    assert kinds.misfit("keypoints", {name: each.shape for name, each in outputs.items()}) is None
    assert kinds.label_count(TaskSpec.of("keypoints"), {"x": (2, 16), "y": (2, 16)}) == 2
    nose, ear = present("keypoints", outputs, Frame.of(80, 40, SQUARE), labels=("nose", "ear")).points
    # x: 7 / 16 of the width of 80; y: 4 / 16 of the height of 40.
    assert (nose.label, nose.x, nose.y, nose.score) == ("nose", 35.0, 10.0, pytest.approx(0.6))
    assert (ear.x, ear.y, ear.score) == (0.0, 37.5, pytest.approx(0.3))
    assert [one.index for one in present("keypoints", outputs, threshold=0.5).points] == [0]
    assert "then down; the model has x (2, 16), y (3, 16)" in str(
        kinds.misfit("keypoints", {"x": (2, 16), "y": (3, 16)})
    )


def test_the_border_around_an_image_is_no_part_of_the_picture_that_a_model_makes() -> None:
    output = np.zeros((1, 16, 16))  # twice as large as the input; the photo of 80 x 40 has 8 x 4 pixels of it
    output[:, 4:12] = 1.0
    found = present("image", output, Frame.of(80, 40, PADDED)).pixels
    assert found.shape == (8, 16)
    assert (found == 255).all()
    at_the_top = PreprocessSpec(resize=(8, 8), fit="pad", place="start")
    assert (present("image", np.roll(output, -4, axis=1), Frame.of(80, 40, at_the_top)).pixels == 255).all()
    assert present("image", output, Frame.of(80, 40, CROPPED)).pixels.shape == (16, 16)
    assert present("image", output, Frame.of(800, 1, PADDED)).pixels.shape[1] == 16  # one row at least


def test_images_are_clipped_and_scaled_to_bytes() -> None:
    output = np.array([[[-1.0, 0.0], [0.5, 2.0]]])
    assert present("image", output).pixels.tolist() == [[0, 0], [128, 255]]
    assert present("image", output, scale=[0.5], offset=[0.5]).pixels.tolist() == [[0, 128], [191, 255]]
    assert present("image", np.zeros((3, 4, 6))).pixels.shape == (4, 6, 3)


def test_detections_are_clipped_sorted_and_inside_the_image() -> None:
    given = {
        "boxes": [[0, 0, 4, 4], [0, 0, 4, 4.1], [-9, 2, 20, 6], [9, 9, 12, 12]],
        "scores": [[0.9, 0.0], [0.8, 0.6], [0.0, 0.7], [0.9, 0.9]],
    }
    found = present("detection", given, Frame.of(80, 40, SQUARE), ("cat", "dog"), scores="probabilities")
    rows = [(one.label, round(one.score, 3), one.box) for one in found.found]
    # The second cat overlaps the first by 16 / 16.4. The last box lies outside the input: nothing is left of it.
    assert rows == [
        ("cat", 0.9, (0.0, 0.0, 40.0, 20.0)),
        ("dog", 0.7, (0.0, 10.0, 80.0, 30.0)),
        ("dog", 0.6, (0.0, 0.0, 40.0, pytest.approx(20.5))),
    ]
    assert (found.width, found.height) == (80, 40)
    assert found.draw(Image.new("RGB", (80, 40))).size == (80, 40)
    nothing = present("detection", given, scores="probabilities", threshold=0.95)
    assert len(nothing) == 0
    assert nothing.text() == "  nothing was found"
    assert nothing.to_dict()["detections"] == []
    assert nothing.draw(Image.new("RGB", (8, 8))).size == (8, 8)


def test_a_box_that_lies_in_the_border_around_an_image_is_none() -> None:
    letterbox = PreprocessSpec(resize=(8, 8), crop=None, fit="pad")  # an image of 80 x 40 has rows 2 to 6 of it
    given = {
        "boxes": [[0, 0, 4, 2.5], [0, 0, 4, 3], [0, 0, 4, 4], [4, 6, 8, 8]],
        "scores": [[0.9], [0.8], [0.7], [0.6]],
    }
    found = present("detection", given, Frame.of(80, 40, letterbox), scores="probabilities", nms_iou=1.0)
    # Of the first box a fifth is in the image, of the second a third, of the third half, of the last nothing.
    assert [one.box for one in found.found] == [(0.0, 0.0, 40.0, 10.0), (0.0, 0.0, 40.0, 20.0)]


def test_labels_are_drawn_in_letters_that_a_font_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with lettering.own_font_alone():  # it has the letters of ASCII alone
        drawn = [lettering.lettering(each, 2, "9%", 12).text for each in ("cat", "K\u00fcche", "\u043a\u043e\u0442")]
        assert drawn == ["cat  9%", "Kuche  9%", "class 2  9%"]
        assert lettering.lettering("a" * 99, 0, "", 12).text == "a" * 37 + "..."
        assert lettering.lettering("a\tb\x1b", 0, "", 12).text == "a b"
    monkeypatch.setattr(lettering, "_of_host", lambda size: ("none of them", "all letters"))
    monkeypatch.setattr(lettering, "_has", lambda font, text: font == "all letters" or text.isascii())
    found = lettering.lettering("\u043a\u043e\u0442", 2, "9%", 12)
    assert (found.text, found.font) == ("\u043a\u043e\u0442  9%", "all letters")
    assert lettering.lettering("cat", 0, "9%", 12).font != "all letters"


def test_a_box_whose_label_no_font_has_is_drawn_with_the_number_of_its_class() -> None:
    given = {"boxes": [[0, 0, 4, 4]], "scores": [[0.9]]}
    names = [("\u732b",), ("cat",), ("\u72ac",)]
    with lettering.own_font_alone():
        found = [present("detection", given, labels=each, scores="probabilities") for each in names]
        cat, other, dog = (np.asarray(each.draw(Image.new("RGB", (90, 60)))) for each in found)
    assert np.array_equal(cat, dog)  # "class 0", and not the sign for a letter that is missing
    assert not np.array_equal(cat, other)


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("xyxy", [2, 1, 6, 3]),
        ("xywh", [2, 1, 4, 2]),
        ("cxcywh", [4, 2, 4, 2]),
        ("xyxy_normalized", [0.25, 0.125, 0.75, 0.375]),
        ("xywh_normalized", [0.25, 0.125, 0.5, 0.25]),
        ("cxcywh_normalized", [0.5, 0.25, 0.5, 0.25]),
    ],
)
def test_every_box_format_says_the_same_box(name: str, box: list[float]) -> None:
    found = present("detection", [[*box, 9.0]], box_format=name)
    assert found[0].box == (2.0, 1.0, 6.0, 3.0)


def test_background_takes_a_softmax_and_its_class_is_never_found() -> None:
    found = present("detection", [[0, 0, 4, 4, 5.0, 0.0], [4, 4, 8, 8, 0.0, 5.0]], background=True)
    assert [one.index for one in found.found] == [1]
    assert found[0].score == pytest.approx(1.0 / (1.0 + math.exp(-5.0)))


def test_a_box_of_detr_has_its_best_class_alone() -> None:
    """As DETR's own postprocessing: a second class of the same box was an object of its own."""
    given = {"boxes": [[0, 0, 4, 4], [2, 2, 6, 6]], "scores": [[2.0, 1.9, -9.0], [-9.0, 3.0, 5.0]]}
    found = present("detection", given, background="last", nms_iou=1.0, threshold=0.1)
    assert [(one.index, one.box) for one in found.found] == [(0, (0.0, 0.0, 4.0, 4.0)), (1, (2.0, 2.0, 6.0, 6.0))]


def slow_nms(found: Any, scores: Any, most_iou: float) -> list[int]:
    """Suppression from its definition, in plain Python."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept: list[int] = []
    for i in order:
        x0, y0, x1, y1 = (float(each) for each in found[i])
        for j in kept:
            a0, b0, a1, b1 = (float(each) for each in found[j])
            common = max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
            union = (x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - common
            if union > 0 and common / union > most_iou:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_suppression_follows_its_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    corner = generator.uniform(0, 60, (120, 2))
    found = np.concatenate([corner, corner + generator.uniform(0, 30, (120, 2))], axis=1).astype(np.float32)
    scores = generator.permutation(120).astype(np.float32)
    classes = generator.integers(0, 3, 120)
    assert boxes.nms(found, scores, 0.4).tolist() == slow_nms(found, scores, 0.4)
    kept = boxes.nms_by_class(found, scores, classes, 0.4)
    each = [np.flatnonzero(classes == index) for index in range(3)]
    expected = {int(rows[i]) for rows in each for i in slow_nms(found[rows], scores[rows], 0.4)}
    assert set(kept.tolist()) == expected
    assert (np.diff(scores[kept]) < 0).all()


def test_boxes_without_area_and_no_boxes_are_no_trouble() -> None:
    points = np.ones((3, 4), np.float32)
    assert boxes.nms(points, np.array([3.0, 2.0, 1.0]), 0.5).tolist() == [0, 1, 2]
    assert boxes.nms_by_class(np.empty((0, 4), np.float32), np.empty(0), np.empty(0), 0.5).size == 0


def test_anchors_are_read_back_from_their_file(tmp_path: Path) -> None:
    anchors = decode.Anchors(np.arange(8, dtype=np.float32).reshape(2, 4), (10.0, 10.0, 5.0, 5.0), (1, 1), 300)
    np.savez(tmp_path / "task.npz", **anchors.arrays())
    found = decode.read_anchors(tmp_path / "task.npz")
    np.testing.assert_array_equal(found.boxes, anchors.boxes)
    assert (found.weights, found.levels, found.top_k) == (anchors.weights, anchors.levels, anchors.top_k)
    (tmp_path / "task.npz").write_bytes(b"no archive")
    with pytest.raises(IntegrityError, match="detector's constants"):
        decode.read_anchors(tmp_path / "task.npz")


def test_nan_is_an_error_that_names_the_output() -> None:
    with pytest.raises(RunnerError, match="'scores' has NaN"):
        kinds.require_numbers({"boxes": np.zeros((2, 4), np.float32), "scores": np.full(2, np.nan, np.float32)})


FITS: dict[str, list[tuple[int, ...]]] = {
    "classification": [(5,)],
    "multilabel": [(5,)],
    "regression": [(5,), (), (5, 4), (2, 5, 4)],
    "embedding": [(5,), (5, 1, 1)],
    "segmentation": [(3, 4, 4), (1, 4, 4), (4, 4), (3, 2, 4, 4)],
    "masks": [(3, 4, 4), (1, 4, 4)],
    "detection": [(9, 5)],
    "keypoints": [(5, 4, 4), (5, 2), (5, 3)],
    "image": [(3, 4, 4), (1, 4, 4), (4, 4)],
    "tokens": [(8, 5)],
    "fill": [(8, 30)],
    "answer": [],  # it has two outputs: test_text_results.py
    "raw": [(2, 3, 4, 5)],
}
MISFITS: dict[str, list[tuple[int, ...]]] = {
    "classification": [(5, 4), (1,)],
    "multilabel": [(5, 4)],
    "regression": [(2, 3, 5, 4)],
    "embedding": [(5, 4), (1,)],
    "segmentation": [(5,)],
    "masks": [(4, 4), (3, 2, 2, 4, 4)],
    "detection": [(9, 4), (9,)],
    "keypoints": [(5,), (5, 4)],
    "image": [(4, 4, 4), (5,)],
    "tokens": [(5,), (8, 1)],
    "fill": [(5,)],
    "answer": [(5,)],
}


def test_each_kind_says_which_shape_it_needs() -> None:
    assert set(FITS) == set(SETTINGS)
    for kind, shapes in FITS.items():
        for shape in shapes:
            assert kinds.misfit(kind, {"output": shape}) is None, (kind, shape)
    for kind, shapes in MISFITS.items():
        for shape in shapes:
            problem = kinds.misfit(kind, {"output": shape})
            assert problem is not None, (kind, shape)
            assert problem.startswith("needs "), problem
            assert str(shape) in problem
    assert "output.reshape(-1, 68, 2)" in str(kinds.misfit("keypoints", {"output": (136,)}))
    assert kinds.misfit("detection", {"boxes": (9, 4), "scores": (9, 3)}) is None
    assert "the model has boxes (9, 4), scores (8, 3)" in str(
        kinds.misfit("detection", {"boxes": (9, 4), "scores": (8, 3)})
    )


def test_settings_survive_the_manifest() -> None:
    for kind in SETTINGS:
        spec = TaskSpec.of(kind)
        assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict())), (3,)) == spec
    spec = TaskSpec.of("keypoints", skeleton=[[0, 1], [1, 2]])
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict())), (3,)) == spec
    assert default_kind({"output": (1,)}) == "raw"
    assert default_kind({"output": (3,)}) == TaskSpec.from_dict(None, (3,)).kind == "classification"
    assert TaskSpec.from_dict(None, (3, 4)).kind == "raw"
    with pytest.raises(IntegrityError, match="task section is damaged: kind is 'magic'"):
        TaskSpec.from_dict({"kind": "magic"}, (3,))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_an_image_is_that_of_the_image_as_it_is_seen(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.new("RGB", (30, 20)).save(out, "JPEG", exif=exif)
    assert upright_size(out.getvalue()) == ((30, 20) if orientation <= 4 else (20, 30))
    with pytest.raises(InputError, match="damaged image"):
        upright_size(b"\xff\xd8\xff" + b"no jpeg")


def test_a_name_that_no_output_has_is_answered_with_the_names() -> None:
    found = kinds.presenter(TaskSpec.of("raw"), kinds.Model(None)).present({"a": np.zeros(2), "b.x": np.zeros(3)}, None)
    with pytest.raises(KeyError, match=r"no output 'c'; there is a, b\.x"):
        found["c"]
    assert found.get("c") is None
    assert "c" not in found


@pytest.mark.parametrize("width", [1, 3, 20, 21, 1000])
def test_the_best_are_those_of_a_stable_sort_also_among_equal_scores(width: int) -> None:
    generator = np.random.default_rng(width)
    for values in (4, 10**6):  # few values: many are equal
        scores = generator.integers(-values, values, width).astype(np.float32)
        scores[generator.random(width) < 0.02] = -np.inf
        for count in (1, 5, 17, 2000):
            wanted = np.argsort(-scores, kind="stable")[:count]
            np.testing.assert_array_equal(best_first(scores, count), wanted)


def test_the_best_of_scores_without_enough_numbers_are_those_of_a_stable_sort() -> None:
    scores = np.full(100, np.nan, np.float32)
    scores[[7, 3]] = 1.0, 2.0
    assert best_first(scores, 5)[:2].tolist() == [3, 7]
