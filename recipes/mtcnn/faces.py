"""Finds faces in photographs with the three wheels of MTCNN. It needs these, numpy and Pillow.

    python faces.py group.jpg --save found.png

or in a program of your own, which may have this file beside it:

    faces = Faces.of_wheels()
    for face in faces.find("group.jpg"):
        print(face.score, face.box, face.points)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Network = Callable[[Pixels], Mapping[str, npt.NDArray[Any]]]
"""Takes uint8 ``(n, height, width, 3)``, and returns outputs by name, as a wheel's runner does."""

CANVAS = (240, 320)
"""Height and width of P-Net's input, as in recipes/mtcnn_pnet.toml."""
CELL, STEP = 12, 2
"""P-Net looks at so many pixels for one result, and moves by so many."""
SHRINK = 0.709
"""From one size of the image to the next: half of the area, as in the paper."""
ONE_FACE = 0.6
"""Boxes lie on one face where they have so much of their union in common."""
LEAST_DOUBT = 1e-7
"""The probability of no face counts so much at least: float32 rounds what is less to 0."""


@dataclass(frozen=True)
class Face:
    """One face. ``box`` is (xmin, ymin, xmax, ymax) in pixels, ``score`` 0..1.

    ``points`` are left eye, right eye, nose, and the left and right end of the mouth, (x, y) each, as one sees them.
    """

    score: float
    box: tuple[float, float, float, float]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Faces:
    """The cascade. P-Net proposes boxes at many sizes, R-Net and O-Net refuse most of them and move the others.

    Faces smaller than ``smallest`` pixels are not looked for: twice as large is four times as fast. ``thresholds`` are
    the least scores of the three networks.

    Many boxes lie on one face with nearly equal scores. With ``merged``, a face is the mean of those of O-Net, the good
    ones first. Without it, only the best one counts, as in the paper: then a change of one level in the pixels moves
    boxes by up to 15 %, and so does INT8.
    """

    pnet: Network
    rnet: Network
    onet: Network
    smallest: float = 20.0
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    merged: bool = True

    @classmethod
    def of_wheels(cls, **settings: Any) -> Faces:
        """Return the cascade of the installed wheels."""
        import mtcnn_onet_int8
        import mtcnn_pnet_int8
        import mtcnn_rnet_int8

        return cls(mtcnn_pnet_int8.Runner(), mtcnn_rnet_int8.Runner(), mtcnn_onet_int8.Runner(), **settings)

    def find(self, photo: str | Path | Image.Image) -> list[Face]:
        """Return the faces of a photograph, the best first."""
        opened = photo if isinstance(photo, Image.Image) else Image.open(photo)
        image = _Averaged.of(np.asarray(ImageOps.exif_transpose(opened).convert("RGB")))
        boxes = _squares(self._proposals(image))
        for network, size, least in ((self.rnet, 24, self.thresholds[1]), (self.onet, 48, self.thresholds[2])):
            boxes, crops = image.crops(boxes, size)
            if not len(boxes):
                return []
            found = network(crops)
            scores = found["faces"][:, 1].astype(np.float64)
            kept = scores > least
            boxes, scores, moves = boxes[kept], scores[kept], found["boxes"][kept]
            if network is self.rnet:
                best = _without_overlaps(boxes, scores, 0.7)
                boxes = _squares(_moved(boxes[best], moves[best], 1.0))
        points = _points(boxes, found["points"][kept])
        boxes = _moved(boxes, moves, 1.0)
        best = _without_overlaps(boxes, scores, 0.7, of_smaller=True)
        if self.merged:
            boxes, points = _merged(boxes, points, found["faces"][kept].astype(np.float64), best)
        return [Face(float(scores[n]), tuple(boxes[n].tolist()), tuple(map(tuple, points[n].tolist()))) for n in best]

    def _proposals(self, image: _Averaged) -> Floats:
        """Return P-Net's boxes."""
        pieces, scales = [], []
        scale = CELL / self.smallest
        while min(image.height, image.width) * scale >= CELL:
            height, width = int(image.height * scale + 1), int(image.width * scale + 1)
            small = image.parts(np.array([[0, 0, image.width, image.height]]), height, width)[0]
            for top, left in _tiles(height, width):
                pieces.append((len(scales), top, left, small[top : top + CANVAS[0], left : left + CANVAS[1]]))
            scales.append(scale)
            scale *= SHRINK
        found: list[list[Floats]] = [[np.empty((0, 9))] for _ in scales]
        for number, row, column, faces, moves in _on_canvases(self.pnet, pieces):
            y, x = np.nonzero(faces >= self.thresholds[0])
            corner = np.stack([column + STEP * x, row + STEP * y], axis=1)
            first, last = np.floor((corner + 1) / scales[number]), np.floor((corner + CELL) / scales[number])
            found[number].append(np.concatenate([first, last, faces[y, x, None], moves[:, y, x].T], axis=1))
        kept = []
        for each in map(np.concatenate, found):
            kept.append(each[_without_overlaps(each[:, :4], each[:, 4], 0.5)])
        rows = np.concatenate(kept) if kept else np.empty((0, 9))
        rows = rows[_without_overlaps(rows[:, :4], rows[:, 4], 0.7)]
        return _moved(rows[:, :4], rows[:, 5:], 0.0)


@dataclass(frozen=True)
class _Averaged:
    """An image from which parts are taken in other sizes: each pixel is the mean of all pixels that it touches.

    The networks were trained on such images: with another filter, boxes move by some per cent. ``sums`` is int64
    ``(height + 1, width + 1, 3)``: of all pixels above and left of each corner.
    """

    sums: npt.NDArray[np.int64]

    @classmethod
    def of(cls, pixels: Pixels) -> _Averaged:
        sums = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1, 3), np.int64)
        sums[1:, 1:] = pixels.cumsum(0, np.int64).cumsum(1)
        return cls(sums)

    @property
    def height(self) -> int:
        return self.sums.shape[0] - 1

    @property
    def width(self) -> int:
        return self.sums.shape[1] - 1

    def parts(self, edges: npt.NDArray[np.int64], height: int, width: int) -> Pixels:
        """Return the pixels ``(n, height, width, 3)`` between edges ``(n, 4)``: left, top, right, bottom."""
        x, y = (_spans(edges[:, each], edges[:, each + 2], size) for each, size in ((0, width), (1, height)))
        (left, right), (top, bottom) = ((each[:, None, :] for each in x), (each[:, :, None] for each in y))
        total = (self.sums[bottom, right] - self.sums[top, right]) - (self.sums[bottom, left] - self.sums[top, left])
        area = ((bottom - top) * (right - left))[..., None]
        return ((2 * total + area) // (2 * area)).astype(np.uint8)

    def crops(self, boxes: Floats, size: int) -> tuple[Floats, Pixels]:
        """Return the boxes that are on the image, and their pixels ``(n, size, size, 3)``."""
        edges = np.trunc(boxes).astype(np.int64)
        edges[:, :2] = np.maximum(edges[:, :2], 1) - 1
        edges[:, 2:] = np.minimum(edges[:, 2:], (self.width, self.height))
        inside = (edges[:, :2] < edges[:, 2:]).all(axis=1)
        return boxes[inside], self.parts(edges[inside], size, size)


def _spans(
    begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first and one past the last pixel ``(n, size)`` that each of ``size`` equal parts touches."""
    place, length = np.arange(size), (end - begin)[:, None]
    return begin[:, None] + place * length // size, begin[:, None] - (-(place + 1) * length // size)


def draw(photo: Image.Image, faces: list[Face]) -> Image.Image:
    """Return the photograph with a box and five points for each face."""
    image = ImageOps.exif_transpose(photo).convert("RGB")
    pen, width = ImageDraw.Draw(image), max(1, round(min(image.size) / 200))
    for face in faces:
        pen.rectangle(face.box, outline=(0, 200, 80), width=width)
        for x, y in face.points:
            pen.ellipse((x - width, y - width, x + width, y + width), fill=(255, 220, 0))
    return image


def _tiles(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the corners of tiles of the canvas's size. They overlap, so that each cell is whole in one of them."""
    rows, columns = (side - CELL + STEP for side in CANVAS)
    for top in range(0, height - CELL + 1, rows):
        for left in range(0, width - CELL + 1, columns):
            yield top, left


def _on_canvases(
    pnet: Network, pieces: list[tuple[int, int, int, Pixels]]
) -> Iterator[tuple[int, int, int, Floats, Floats]]:
    """Yield for each piece (scale, top, left, pixels) the scores ``(rows, columns)`` and moves ``(4, rows, columns)``.

    Small pieces share a canvas, side by side on shelves. Cells that reach into a neighbour are left out.
    """
    canvases: list[Pixels] = []
    places = []
    x = y = shelf = 0
    for piece in sorted(pieces, key=lambda each: -each[3].shape[0]):
        height, width = piece[3].shape[:2]
        if x + width > CANVAS[1]:
            x, y, shelf = 0, y + shelf, 0
        if not canvases or y + height > CANVAS[0]:
            canvases.append(np.zeros((*CANVAS, 3), np.uint8))
            x = y = shelf = 0
        canvases[-1][y : y + height, x : x + width] = piece[3]
        places.append((len(canvases) - 1, y, x, piece))
        x, shelf = x + width + width % STEP, max(shelf, height + height % STEP)  # a place is at every STEPth pixel
    if not canvases:
        return
    found = pnet(np.stack(canvases))
    for canvas, y, x, (scale, top, left, pixels) in places:
        rows, columns = ((side - CELL) // STEP + 1 for side in pixels.shape[:2])
        part = np.s_[y // STEP : y // STEP + rows, x // STEP : x // STEP + columns]
        yield scale, top, left, found["faces"][canvas, 1][part], found["boxes"][canvas][:, *part]


def _moved(boxes: Floats, moves: npt.NDArray[Any], rim: float) -> Floats:
    """Return boxes ``(n, 4)`` whose edges moved by shares of their width and height plus ``rim``."""
    size = boxes[:, 2:] - boxes[:, :2] + rim
    return boxes + np.concatenate([size, size], axis=1) * moves


def _squares(boxes: Floats) -> Floats:
    """Return squares around the middles of the boxes, as large as their longer sides."""
    size = boxes[:, 2:] - boxes[:, :2]
    side = size.max(axis=1, keepdims=True)
    low = boxes[:, :2] + size / 2 - side / 2
    return np.concatenate([low, low + side], axis=1)


def _points(boxes: Floats, found: npt.NDArray[Any]) -> Floats:
    """Return O-Net's points ``(n, 5, 2)`` in pixels of the image."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    shares = found.reshape(-1, 2, 5).transpose(0, 2, 1)
    return boxes[:, None, :2] + size[:, None] * shares - 1


def _without_overlaps(boxes: Floats, scores: Floats, most: float, *, of_smaller: bool = False) -> list[int]:
    """Return the boxes that no better one covers by more than ``most``, best first.

    That is a share of the union, or of the smaller box, whose corners are then pixels and count.
    """
    rim = 1.0 if of_smaller else 0.0
    area = np.prod(boxes[:, 2:] - boxes[:, :2] + rim, axis=1)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[order, :2]), np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.maximum(high - low + rim, 0.0), axis=1)
        whole = np.minimum(area[best], area[order]) if of_smaller else area[best] + area[order] - common
        order = order[common <= most * whole]
    return kept


def _merged(boxes: Floats, points: Floats, faces: Floats, best: list[int]) -> tuple[Floats, Floats]:
    """Return boxes and points in which each of the best ones is the mean of all that lie on the same face.

    ``faces`` are the probabilities ``(n, 2)`` of no face and a face. A box counts as much as the root of its odds.
    """
    weights = np.sqrt(faces[:, 1] / np.maximum(faces[:, 0], LEAST_DOUBT))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    new_boxes, new_points = boxes.copy(), points.copy()
    for each in best:
        low, high = np.maximum(boxes[each, :2], boxes[:, :2]), np.minimum(boxes[each, 2:], boxes[:, 2:])
        common = np.prod(np.maximum(high - low, 0.0), axis=1)
        weight = weights * (common >= ONE_FACE * (area[each] + area - common))
        new_boxes[each] = np.average(boxes, axis=0, weights=weight)
        new_points[each] = np.average(points, axis=0, weights=weight)
    return new_boxes, new_points


def main() -> None:
    """Print the faces of photographs, and draw them with ``--save``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--save", type=Path, metavar="FILE")
    parser.add_argument("--smallest", type=float, default=20.0, help="faces of fewer pixels are not looked for")
    arguments = parser.parse_args()
    faces = Faces.of_wheels(smallest=arguments.smallest).find(arguments.photo)
    for face in faces:
        print(f"{face.score:7.2%}  ({', '.join(f'{each:.1f}' for each in face.box)})")  # noqa: T201
    if not faces:
        print("no face was found")  # noqa: T201
    if arguments.save:
        draw(Image.open(arguments.photo), faces).save(arguments.save)


if __name__ == "__main__":
    main()
