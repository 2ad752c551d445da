"""recipes/mtcnn_*.toml: the cascade, and the faces that it finds in INT8."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cpupack.model.vision import repair_torchvision_imports
from cpupack.runtime.tasks.boxes import iou
from helpers.lowered import needs_kernels
from helpers.recipe_models import RECIPES, quantized

NETWORKS = ("pnet", "rnet", "onet")
PHOTO = RECIPES / "photos" / "astronaut.jpg"
FOUND = (180.0, 59.7, 268.8, 173.3)
"""The only face that facenet-pytorch finds in the photo by its own cascade."""


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mtcnn_{name}", RECIPES / "mtcnn" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def faces() -> Iterator[Any]:
    yield _load("faces")
    del sys.modules["mtcnn_faces"]


@pytest.fixture(scope="module")
def fp32() -> dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    repair_torchvision_imports()
    pytest.importorskip("facenet_pytorch", reason="the trained weights are a package (extra: mtcnn)")
    networks = _load("networks")
    del sys.modules["mtcnn_networks"]

    def called(name: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        module = getattr(networks, name)()
        return lambda pixels: {key: value.numpy() for key, value in module(_normalized(pixels)).items()}

    with torch.no_grad():
        yield {name: torch.inference_mode()(called(name)) for name in NETWORKS}


def _normalized(pixels: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(pixels).permute(0, 3, 1, 2) - 127.5) / 128).contiguous()


def _photos() -> dict[str, Image.Image]:
    whole = Image.open(PHOTO)
    return {"whole": whole, "mirrored": ImageOps.mirror(whole), "small": whole.resize((340, 340))}


def test_parts_are_the_means_of_all_pixels_that_they_touch(faces: Any) -> None:
    """torch's adaptive pooling is the same mean. Here it is rounded to whole numbers."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    averaged = faces._Averaged.of(pixels)
    edges = np.array([[0, 0, 53, 37], [5, 3, 30, 36], [50, 30, 53, 31]])
    for edge, part in zip(edges.tolist(), averaged.parts(edges, 24, 24), strict=True):
        left, top, right, bottom = edge
        cut = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1).double()
        wanted = torch.nn.functional.adaptive_avg_pool2d(cut, (24, 24)).permute(1, 2, 0).numpy()
        assert np.abs(part - wanted).max() <= 0.5


def test_pieces_on_a_canvas_have_the_results_that_they_have_alone(faces: Any) -> None:
    """Sizes that share shelves, one that fills a canvas, and one that is a single cell."""
    random = np.random.default_rng(0)
    sizes = [(240, 320), (100, 90), (51, 31), (12, 12), (75, 200)]
    pieces = [(n, 0, 0, random.integers(0, 256, (*size, 3), dtype=np.uint8)) for n, size in enumerate(sizes)]

    def pnet(pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Sums of cells, at every second pixel."""
        cells = np.lib.stride_tricks.sliding_window_view(pixels.astype(np.int64), (12, 12), (1, 2))[:, ::2, ::2]
        sums = cells.sum((-1, -2)).transpose(0, 3, 1, 2)
        return {"faces": sums[:, :2], "boxes": np.concatenate([sums, sums[:, :1]], axis=1)}

    found = {number: (scores, moves) for number, _, _, scores, moves in faces._on_canvases(pnet, pieces)}
    assert len(found) == len(sizes)
    for number, _, _, pixels in pieces:
        alone = pnet(pixels[None])
        assert np.array_equal(found[number][0], alone["faces"][0, 1])
        assert np.array_equal(found[number][1], alone["boxes"][0])


def test_the_cascade_finds_what_facenet_pytorch_finds(faces: Any, fp32: dict[str, Any]) -> None:
    (face,) = faces.Faces(**fp32, merged=False).find(PHOTO)
    assert face.score > 0.99
    assert iou(np.array(face.box, np.float32), np.array([FOUND], np.float32))[0] > 0.97
    (merged,) = faces.Faces(**fp32).find(PHOTO)
    assert iou(np.array(merged.box, np.float32), np.array([FOUND], np.float32))[0] > 0.9
    left, right, nose, mouth_left, mouth_right = face.points
    assert left[0] < nose[0] < right[0]
    assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])


def test_boxes_of_one_face_become_their_mean_by_the_roots_of_their_odds(faces: Any) -> None:
    """The odds are 9 and 4, so the roots are 3 and 2. The third box is another face, without any doubt."""
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 15], [40, 40, 50, 50]])
    points = np.arange(30.0).reshape(3, 5, 2)
    chances = np.array([[0.1, 0.9], [0.2, 0.8], [0.0, 1.0]])
    new_boxes, new_points = faces._merged(boxes, points, chances, [0, 2])
    assert np.allclose(new_boxes[0], [0, 0, 10, (3 * 10 + 2 * 15) / 5])
    assert np.allclose(new_points[0], (3 * points[0] + 2 * points[1]) / 5)
    assert np.array_equal(new_boxes[2], boxes[2])


def test_an_image_without_faces_and_one_of_a_pixel_have_none(faces: Any, fp32: dict[str, Any]) -> None:
    cascade = faces.Faces(**fp32)
    assert cascade.find(Image.new("RGB", (60, 60), (90, 120, 30))) == []
    assert cascade.find(Image.new("RGB", (1, 1))) == []


@needs_kernels
def test_int8_finds_the_faces_of_fp32(faces: Any, fp32: dict[str, Any]) -> None:
    """The photo calibrated the networks, too."""

    def called(name: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        int8, _ = quantized(f"mtcnn_{name}", 128, None)
        names = {"pnet": (("boxes", 4), ("faces", 2)), "rnet": (("boxes", 4), ("faces", 2))}
        names["onet"] = (("boxes", 4), ("points", 10), ("faces", 2))

        def call(pixels: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                rows = int8.module(_normalized(pixels)).numpy()
            found, begin = {}, 0
            inner = (115, 155) if name == "pnet" else ()
            for key, channels in names[name]:
                size = channels * int(np.prod(inner))
                found[key] = rows[:, begin : begin + size].reshape(-1, channels, *inner)
                begin += size
            return found

        return call

    plain, int8 = faces.Faces(**fp32), faces.Faces(**{name: called(name) for name in NETWORKS})
    for name, photo in _photos().items():
        (wanted,), (found,) = plain.find(photo), int8.find(photo)
        overlap = iou(np.array(found.box, np.float32), np.array([wanted.box], np.float32))[0]
        assert overlap >= 0.9, name
        width = wanted.box[2] - wanted.box[0]
        assert np.abs(np.array(found.points) - np.array(wanted.points)).max() < 0.1 * width, name
