"""The two steps in the middle of a detector of two stages, as operators that a graph keeps whole.

``propose`` chooses the boxes that the second stage looks at, ``regions`` takes what is in them from the feature maps.
Both give as many rows for every image, so that a network with them has one shape: rows of boxes that an image does not
have are ``NO_BOX``, and their values are zeros. torch.export keeps each as one call. The code here is their FP32 form;
the native engine has kernels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from cpupack.runtime.tasks.boxes import clipped, nms
from cpupack.runtime.tasks.decode import moved

NO_BOX = -1.0
"""All four corners of a row that is no box. Real boxes are inside the image."""
_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_ROIS_AT_ONCE = 32
_ROUNDING = 1e-4
"""Of the largest value: what is nearer is one value in two forms of a model."""
Floats = npt.NDArray[np.float32]


@dataclass
class _Seen:
    """What ``propose`` was given for some images, and the boxes that it gave."""

    images: list[tuple[Floats, Floats, Floats]] = field(default_factory=list)

    def boxes_of(self, scores: Floats, offsets: Floats) -> Floats | None:
        for own, moves, boxes in self.images:
            if _is_near(own, scores) and _is_near(moves, offsets):
                return boxes
        return None


def _is_near(one: Floats, other: Floats) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= _ROUNDING * np.abs(one).max())


_seen: _Seen | None = None


@contextmanager
def steady_proposals() -> Iterator[None]:
    """Have an image whose scores and offsets are those of an earlier one but for rounding get the same boxes.

    Two forms of one model round differently. Where two scores are nearly equal, that decides which box comes first or
    is suppressed, and all that follows is of other boxes. Inside, what is compared are the forms and not such ties.
    """
    global _seen
    before, _seen = _seen, _Seen() if _seen is None else _seen
    try:
        yield
    finally:
        _seen = before


@torch.library.custom_op("cpupack_boxes::propose", mutates_args=())
def propose(
    scores: torch.Tensor,
    offsets: torch.Tensor,
    anchors: torch.Tensor,
    levels: Sequence[int],
    most: int,
    kept: int,
    nms_iou: float,
    least_score: float,
    least_side: float,
    height: int,
    width: int,
) -> torch.Tensor:
    """Return the ``kept`` best boxes of each image, best first, ``(n, kept, 4)``: corners in pixels of the input.

    ``scores`` ``(n, anchors)`` are logits, ``offsets`` ``(n, anchors, 4)`` are those from the ``anchors``
    ``(anchors, 4)``, of which ``levels`` says how many each feature map has. The ``most`` best anchors of each level
    with a score of ``least_score`` or more are moved, clipped to the image and suppressed where they overlap a better
    one of their level by more than ``nms_iou``; boxes with a side below ``least_side`` are none. Rows after the last
    box are ``NO_BOX``.
    """
    found = np.full((len(scores), kept, 4), NO_BOX, np.float32)
    places = anchors.detach().numpy()
    for row, (own, moves) in enumerate(zip(scores.detach().numpy(), offsets.detach().numpy(), strict=True)):
        before = None if _seen is None else _seen.boxes_of(own, moves)
        if before is None:
            boxes = _proposed(own, moves, places, levels, most, kept, nms_iou, least_score, least_side, (width, height))
            found[row, : len(boxes)] = boxes
            if _seen is not None:
                _seen.images.append((own.copy(), moves.copy(), found[row].copy()))
        else:
            found[row] = before
    return torch.from_numpy(found)


@propose.register_fake
def _(
    scores: torch.Tensor,
    offsets: torch.Tensor,
    anchors: torch.Tensor,
    levels: Sequence[int],
    most: int,
    kept: int,
    nms_iou: float,
    least_score: float,
    least_side: float,
    height: int,
    width: int,
) -> torch.Tensor:
    return scores.new_empty(scores.shape[0], kept, 4)


def _proposed(
    scores: Floats,
    offsets: Floats,
    anchors: Floats,
    levels: Sequence[int],
    most: int,
    kept: int,
    nms_iou: float,
    least_score: float,
    least_side: float,
    size: tuple[int, int],
) -> Floats:
    """Return the boxes ``(up to kept, 4)`` of one image."""
    parts, begin = [(np.empty((0, 4), np.float32), np.empty(0, np.float32))], 0
    for count in levels:
        own = scores[begin : begin + count]
        best = np.argsort(-own, kind="stable")[:most]
        best = best[own[best] >= least_score] + begin
        begin += count
        boxes = clipped(moved(anchors[best], offsets[best], _WEIGHTS), *size)
        large = ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(least_side)).all(axis=1)
        boxes, chances = boxes[large], scores[best][large]
        alone = nms(boxes, chances, nms_iou)
        parts.append((boxes[alone], chances[alone]))
    boxes, chances = (np.concatenate(each) for each in zip(*parts, strict=True))
    found: Floats = boxes[np.argsort(-chances, kind="stable")[:kept]]
    return found


@torch.library.custom_op("cpupack_boxes::regions", mutates_args=())
def regions(
    features: Sequence[torch.Tensor],
    boxes: torch.Tensor,
    scales: Sequence[float],
    areas: Sequence[float],
    height: int,
    width: int,
    samples: int,
) -> torch.Tensor:
    """Return what is in each box, ``(n, boxes, height, width, channels)``: means over a grid of ``height`` x ``width``.

    ``boxes`` ``(n, boxes, 4)`` are those of ``propose``. A box is taken from the first of ``features``
    ``(n, channels, h, w)``, or from that after the last of ``areas`` (pixels of the input) which its own area reaches.
    ``scales`` are pixels of each feature map for one of the input. Each mean is over ``samples`` x ``samples`` places,
    between the four pixels around each, as ``torchvision.ops.roi_align`` has it (not aligned).
    """
    count, rows = boxes.shape[:2]
    found = boxes.new_zeros(count, rows, height, width, features[0].shape[1])
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    level = torch.bucketize(area, torch.tensor(list(areas), dtype=torch.float32), right=True)
    for number, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        for image in range(count):
            own = torch.where((level[image] == number) & (boxes[image, :, 0] >= 0.0))[0]
            for part in own.split(_ROIS_AT_ONCE):
                found[image, part] = _means(feature[image], boxes[image, part] * scale, height, width, samples)
    return found


@regions.register_fake
def _(
    features: Sequence[torch.Tensor],
    boxes: torch.Tensor,
    scales: Sequence[float],
    areas: Sequence[float],
    height: int,
    width: int,
    samples: int,
) -> torch.Tensor:
    return boxes.new_empty(boxes.shape[0], boxes.shape[1], height, width, features[0].shape[1])


def _means(feature: torch.Tensor, boxes: torch.Tensor, height: int, width: int, samples: int) -> torch.Tensor:
    """Return the means ``(boxes, height, width, channels)`` of one image's boxes in pixels of the feature map."""
    columns, rows = (_places(boxes[:, axis], boxes[:, axis + 2], cells, samples, feature.shape[2 - axis])
                     for axis, cells in ((0, width), (1, height)))  # fmt: skip
    image = feature.permute(1, 2, 0)
    total = boxes.new_zeros(len(boxes), height * samples, width * samples, feature.shape[0])
    for row, high in rows:
        for column, wide in columns:
            weight = high[:, :, None] * wide[:, None, :]
            total += weight[..., None] * image[row[:, :, None], column[:, None, :]]
    cells = total.reshape(len(boxes), height, samples, width, samples, feature.shape[0])
    return cells.mean(dim=(2, 4))


def _places(
    low: torch.Tensor, high: torch.Tensor, cells: int, samples: int, pixels: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return the pixels before and after each place ``(boxes, cells * samples)`` on one axis, with their weights."""
    cell = (high - low).clamp(min=1.0) / cells
    steps = (torch.arange(cells * samples, dtype=torch.float32) + 0.5) / samples
    place = low[:, None] + steps * cell[:, None]
    inside = ((place >= -1.0) & (place <= pixels)).float()
    place = place.clamp(0.0, pixels - 1.0)
    before = place.floor().long().clamp(0, pixels - 1)
    share = place - before
    return (before, (1.0 - share) * inside), ((before + 1).clamp(max=pixels - 1), share * inside)


def logit_of(probability: float) -> float:
    """Return the least logit whose sigmoid reaches a probability below 1; the least float32 for 0."""
    if probability <= 0.0:
        return float(np.finfo(np.float32).min)
    return math.log(probability / (1.0 - probability))


PROPOSE, REGIONS = torch.ops.cpupack_boxes.propose.default, torch.ops.cpupack_boxes.regions.default


def is_between_stages(node: fx.Node) -> bool:
    """Whether a call is one of the two steps."""
    return node.target in (PROPOSE, REGIONS)


def after_proposals(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the calls whose rows are those of proposals: ``propose``, and all that reads it."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.target is PROPOSE or any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found
