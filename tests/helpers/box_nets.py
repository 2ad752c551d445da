"""Programs of what lies between the two stages of a detector, beside the same float32 operations in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cpupack.stages.quantize.native.boxes import append_propose, append_regions
from helpers.float_nets import EXTREMES, Array, Net, normal
from helpers.float_values import exp, f4, fma

_GROWTH = np.float32(math.log(1000.0 / 16))


def moved(anchors: Array, offsets: Array, size: tuple[int, int]) -> Array:
    """Return boxes ``(n, 4)``: anchors moved by offsets and clipped, each rounded as the kernel rounds."""
    found: Array = np.empty_like(anchors)
    for axis in (0, 1):
        low, high, end = anchors[:, axis], anchors[:, 2 + axis], np.float32(size[axis])
        sides = high - low
        middle = fma(offsets[:, axis], sides, fma(f4(0.5), sides, low))
        grown = exp(np.where(np.isnan(offsets[:, 2 + axis]), np.nan, np.minimum(_GROWTH, offsets[:, 2 + axis]))) * sides
        for place, sign in ((axis, -0.5), (2 + axis, 0.5)):
            found[:, place] = np.minimum(np.maximum(fma(f4(sign), grown, middle), np.float32(0)), end)
    return found


def alone(boxes: Array, most: float, kept: int) -> list[int]:
    """Return the boxes, best first, that no better one overlaps by more than ``most``, at most ``kept``."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    dead, found = np.zeros(len(boxes), bool), list[int]()
    for one in range(len(boxes)):
        if dead[one] or len(found) == kept:
            continue
        found.append(one)
        low, high = np.maximum(boxes[one, :2], boxes[:, :2]), np.minimum(boxes[one, 2:], boxes[:, 2:])
        sides = np.maximum(high - low, np.float32(0))
        overlap = sides[:, 0] * sides[:, 1] / fma(-sides[:, 0], sides[:, 1], area[one] + area)
        dead |= (np.arange(len(boxes)) > one) & (overlap > np.float32(most))
    return found


def proposed(
    scores: Array, offsets: Array, anchors: Array, levels: list[int], size: tuple[int, int], **settings: Any
) -> Array:
    """Return the boxes of one image, ``(kept, 4)``."""
    rows, begin = list[tuple[Any, int, Array]](), 0
    for count in levels:
        own = range(begin, begin + count)
        begin += count
        best = sorted((n for n in own if scores[n] >= np.float32(settings["least_score"])), key=lambda n: -scores[n])
        best = best[: settings["most"]]
        boxes = moved(anchors[best], offsets[best], size)
        large = (boxes[:, 2:] - boxes[:, :2] >= np.float32(settings["least_side"])).all(axis=1)
        scored, boxes = scores[best][large], boxes[large]
        kept = alone(boxes, settings["most_overlap"], min(settings["most"], settings["kept"]))
        rows += [(-scored[n], len(rows), boxes[n]) for n in kept]
    rows.sort(key=lambda row: row[:2])
    found = np.full((settings["kept"], 4), -1, np.float32)
    for number, (_, _, box) in enumerate(rows[: settings["kept"]]):
        found[number] = box
    return found


def anchors_of(levels: list[int], size: tuple[int, int], seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    middle = random.uniform(0, 1, (sum(levels), 2)) * size
    sides = random.uniform(2, 40, (sum(levels), 2))
    return np.concatenate([middle - sides / 2, middle + sides / 2], axis=1).astype(np.float32)


def proposals(levels: list[int], *, steps: float = 0.0, extremes: bool = False, **settings: Any) -> Net:
    """Choose boxes of several levels. With ``steps`` many scores are equal."""
    count, size = sum(levels), (61, 47)
    settings = {"most": 40, "kept": 30, "most_overlap": 0.7, "least_score": -1.0, "least_side": 1e-3, **settings}
    scores, offsets = normal(3, count, seed=1), normal(3, count * 4, seed=2, scale=0.7)
    if steps:
        scores = np.round(scores / steps) * np.float32(steps)
    if extremes:
        random = np.random.default_rng(3)
        scores[:, ::3] = random.choice(EXTREMES, scores[:, ::3].shape)
        offsets[:, ::5] = random.choice(EXTREMES, offsets[:, ::5].shape)
    net = Net(np.concatenate([scores, offsets], axis=1))
    one, x = net.view((count,))
    two, moves = net.view((count, 4), first=count)
    anchors = anchors_of(levels, size)
    found = append_propose(
        net.floats, one, two, torch.from_numpy(anchors), levels, height=size[1], width=size[0], **settings
    )
    expected = [proposed(each, own, anchors, levels, size, **settings) for each, own in zip(x, moves, strict=True)]
    net.result(found, np.stack(expected))
    return net


def _places(low: np.float32, high: np.float32, cells: int, samples: int, pixels: int) -> list[tuple[Any, ...]]:
    """Return (pixel before, its share, pixel after, its share) for each place along one axis."""
    size = high - low if high - low >= 1 else np.float32(1)
    cell, found = np.float32(size / np.float32(cells)), []
    for number in range(cells * samples):
        step = np.float32(np.float32(number + 0.5) / np.float32(samples))
        place = fma(step, cell, low)[()]
        inside = -1 <= place <= pixels
        at = np.float32(place if inside and place > 0 else 0)
        before = min(int(at), pixels - 1)
        after = min(before + 1, pixels - 1)
        share = np.float32(0) if int(at) >= pixels - 1 else np.float32(at - np.float32(before))
        found.append((before, np.float32(inside) * (np.float32(1) - share), after, np.float32(inside) * share))
    return found


def region(image: Array, box: Array, scale: float, cells: tuple[int, int], samples: int) -> Array:
    """Return what is in a box of an image ``(height, width, channels)``: ``(*cells, channels)``."""
    corners = box * np.float32(scale)
    down = _places(corners[1], corners[3], cells[0], samples, image.shape[0])
    across = _places(corners[0], corners[2], cells[1], samples, image.shape[1])
    found = np.empty((*cells, image.shape[2]), np.float32)
    for row, column in np.ndindex(cells):
        total = np.zeros(image.shape[2], np.float32)
        for top, of_top, bottom, of_bottom in down[row * samples :][:samples]:
            for left, of_left, right, of_right in across[column * samples :][:samples]:
                for y, x, share in (
                    (top, left, of_top * of_left), (top, right, of_top * of_right),
                    (bottom, left, of_bottom * of_left), (bottom, right, of_bottom * of_right),
                ):  # fmt: skip
                    total = fma(np.full_like(total, share), image[y, x], total)
        found[row, column] = total * np.float32(1 / np.float32(samples * samples))
    return found


def regions(channels: int, samples: int = 2, *, cells: tuple[int, int] = (3, 5)) -> Net:
    """Take what is in boxes of two feature maps: inside, over the edge, outside, tiny, no boxes, no numbers."""
    sizes, scales, area = ((12, 15), (6, 8)), (0.25, 0.125), 400.0
    real = [
        [0, 0, 60, 48], [3.25, 4.5, 9.75, 40.125], [59.9, 47.9, 60, 48], [12, 12, 12.001, 12.001], [0, 0, 20, 20],
        [10, 5, 30, 24.99], [1e4, 1e4, 2e4, 2e4], [58, 46, 70, 60], [-1, -1, -1, -1],
        [np.nan, 0, 5, 5], [0, np.nan, 5, 5], [0, 0, np.inf, 9], [0, 0, 3e38, 3e38], [5, 5, 4, 9],
    ]  # fmt: skip
    boxes = np.array(real, np.float32)
    maps = [normal(2, channels, *size, seed=number) for number, size in enumerate(sizes)]
    places = np.stack([boxes, boxes[::-1]])
    net = Net(np.concatenate([each.reshape(2, -1) for each in (*maps, places)], axis=1))
    views, first = [], 0
    for each in maps:
        views.append(net.view(each.shape[1:], first)[0])
        first += each[0].size
    view, _ = net.view(boxes.shape, first)
    found = append_regions(
        net.floats, list(views), view, list(scales), [area], height=cells[0], width=cells[1], samples=samples
    )
    expected = np.zeros((2, len(boxes), *cells, channels), np.float32)
    for image, number in np.ndindex(places.shape[:2]):
        box = places[image, number]
        own = (box[2] - box[0]) * (box[3] - box[1])
        if box[0] >= 0 and 0 <= own < np.inf:
            level = int(own >= area)
            expected[image, number] = region(
                maps[level][image].transpose(1, 2, 0), box, scales[level], cells, samples
            )  # fmt: skip
    net.result(found, expected)
    return net
