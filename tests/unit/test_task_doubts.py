"""Places and pixels in other units than the task says: a build warns of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.tasks.doubts import doubt_of_places

WIDTH, HEIGHT = 320, 240
WHOLE = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
RANDOM = np.random.default_rng(0)
CENTERS = RANDOM.uniform(0.15, 0.85, (4, 10, 2))
SIZES = np.minimum(RANDOM.uniform(0.05, 0.6, (4, 10, 2)), 2 * np.minimum(CENTERS, 1 - CENTERS))
"""Objects that lie inside the input: 10 in each of 4 images, as shares of it."""
SURE = np.full((4, 10, 2), 3.0, np.float32)


def written(box_format: str) -> Any:
    name, _, normalized = box_format.partition("_")
    low = CENTERS - SIZES / 2
    parts = {"xyxy": (low, low + SIZES), "xywh": (low, SIZES), "cxcywh": (CENTERS, SIZES)}[name]
    return (np.concatenate(parts, axis=2) * (1 if normalized else WHOLE)).astype(np.float32)


def doubt(kind: str, outputs: Any, size: tuple[int, int] = (WIDTH, HEIGHT), **settings: Any) -> str:
    named = outputs if isinstance(outputs, dict) else {"output": outputs}
    presenter = kinds.presenter(TaskSpec.of(kind, **settings), kinds.Model(None, size))
    return doubt_of_places(presenter, named) or ""


FORMATS = ("xyxy", "xywh", "cxcywh", "xyxy_normalized", "xywh_normalized", "cxcywh_normalized")


@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("said", FORMATS)
def test_boxes_of_another_format_are_doubted(given: str, said: str) -> None:
    found = doubt("detection", {"boxes": written(given), "scores": SURE}, box_format=said)
    are, read = given.partition("_")[0], said.partition("_")[0]
    if given.endswith("normalized") != said.endswith("normalized"):
        assert f'set box_format = "{read}' in found
        assert "look like" in found
    elif are == read or {are, read} == {"xywh", "cxcywh"}:  # nothing tells a corner from a center
        assert found == ""
    elif read == "xyxy":
        assert "the second corner of most of FP32's boxes is before the first" in found
    else:
        assert 'may be two corners: set box_format = "xyxy' in found


def test_boxes_that_are_no_objects_say_nothing() -> None:
    boxes = {"boxes": written("cxcywh"), "scores": SURE - 5}
    assert doubt("detection", boxes) == ""
    assert "set box_format" in doubt("detection", boxes, threshold=0.1)
    few = {name: each[:1, :5] for name, each in (("boxes", written("cxcywh")), ("scores", SURE))}
    assert doubt("detection", few) == ""
    with_nothing = np.concatenate([SURE - 9, SURE[..., :1] + 9], axis=2)  # of DETR: the last class is nothing
    outputs = {"boxes": written("cxcywh"), "scores": with_nothing}
    assert doubt("detection", outputs, background="last") == ""
    assert "set box_format" in doubt("detection", outputs)


def test_angles_in_degrees_are_doubted() -> None:
    radians = RANDOM.uniform(-1.5, 1.5, (4, 10, 1))
    for angles, words in ((radians, ""), (np.rad2deg(radians), "return radians from forward (torch.deg2rad)")):
        boxes = np.concatenate([written("cxcywh"), angles], axis=2).astype(np.float32)
        found = doubt("detection", {"boxes": boxes, "scores": SURE}, box_format="cxcywh", angle="fifth")
        assert found.endswith(words)
        assert bool(found) == bool(words)
    shares = np.concatenate([written("cxcywh_normalized"), radians], axis=2).astype(np.float32)
    found = doubt("detection", {"boxes": shares, "scores": SURE}, box_format="cxcywh", angle="fifth")
    assert 'set box_format = "cxcywh_normalized"' in found


def test_points_of_another_unit_are_doubted() -> None:
    shares = CENTERS.astype(np.float32)
    pixels = shares * np.array([WIDTH, HEIGHT], np.float32)
    assert doubt("keypoints", pixels) == doubt("keypoints", shares, coordinates="normalized") == ""
    assert 'so they look like shares of the input: set coordinates = "normalized"' in doubt("keypoints", shares)
    assert 'look like pixels: set coordinates = "pixels"' in doubt("keypoints", pixels, coordinates="normalized")
    assert doubt("keypoints", shares, size=(8, 8)) == ""
    assert doubt("keypoints", np.zeros((4, 3, 60, 80), np.float32)) == ""  # heat maps
    assert doubt("keypoints", {"x": np.zeros((4, 3, 640)), "y": np.zeros((4, 3, 480))}) == ""


@pytest.mark.parametrize(
    ("scale", "offset", "advice"),
    [
        (2.0, -1.0, "scale = [0.5] and offset = [0.5] for outputs from -1 to 1"),
        (255.0, 0.0, "scale = [0.00392157] for outputs from 0 to 255"),
        (4.5, -2.1, "of outputs normalized as the input is, scale is std and offset is mean"),
    ],
)
def test_pixels_that_predict_would_clip_are_doubted(scale: float, offset: float, advice: str) -> None:
    shares = RANDOM.uniform(0, 1, (4, 3, 20, 20)).astype(np.float32)
    assert doubt("image", shares) == ""
    found = doubt("image", shares * scale + offset)
    assert "of them lie outside 0..1, where predict clips them" in found
    assert advice in found
    assert doubt("image", shares * scale + offset, scale=[1 / scale], offset=[-offset / scale]) == ""
    assert "correct [task] scale and offset" in doubt("image", shares * 5, scale=[2.0])
    assert doubt("image", 1.1 * shares - 0.05) == ""  # a few pixels beyond the ends are what sharp edges give
    assert doubt("segmentation", shares * 255) == ""
