"""Faster R-CNN: torchvision's detector of two stages as one network of a fixed shape.

The first stage proposes boxes, the second one looks at each. The network gives ``rois`` ``(n, proposals, 4)``,
``scores`` ``(n, proposals, classes)`` and ``boxes`` ``(n, proposals, 4 * classes)``. Images with fewer proposals have
rows that are none (``graph/proposals.py``). Decoding and suppression by class are the runner's, as for other detectors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import nn
from torch.func import functional_call

from cpupack.errors import ModelError
from cpupack.graph.proposals import logit_of, propose, regions
from cpupack.model.one_row import OneRow
from cpupack.runtime.tasks.detection import BOXES, ROIS, SCORES

MOST_LEVELS = 8
"""``CPUPACK_LEVELS`` of kernels/engine/boxes.h."""


def gives_proposals(module: nn.Module) -> bool:
    """Whether a loaded model is a detector of two stages."""
    user: Any = module.user if isinstance(module, OneRow) else module
    return hasattr(user, "_anchors_of")


def refuse_other_parts(module: Any, source: str) -> None:
    """Raise ModelError for what a detector of two stages has beside boxes, and for settings that no kernel has."""
    heads = module.roi_heads
    for part, what in (("mask", "masks"), ("keypoint", "keypoints")):
        if getattr(heads, f"{part}_head", None) is not None:
            raise ModelError(
                f"[model] source: {source} also finds {what}, in a third network for the boxes that are left after "
                "suppression; cpupack packages the boxes of Faster R-CNN alone",
                hint="use fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, fasterrcnn_mobilenet_v3_large_fpn or "
                "fasterrcnn_mobilenet_v3_large_320_fpn; docs/how-to/tasks.md says more",
            )
    pool, rpn = heads.box_roi_pool, module.rpn
    wrong = [
        (int(getattr(pool, "sampling_ratio", 0)) <= 0, "box_roi_pool.sampling_ratio must be 1 or more, such as 2"),
        (
            tuple(float(each) for each in rpn.box_coder.weights) != (1.0,) * 4,
            "rpn.box_coder.weights must be 1, 1, 1, 1",
        ),
        (not 0.0 <= float(rpn.score_thresh) < 1.0, "rpn.score_thresh must be from 0 to below 1"),
        (float(rpn.min_size) <= 0.0, "rpn.min_size must be above 0"),
    ]
    for is_wrong, what in wrong:
        if is_wrong:
            raise ModelError(f"[model] source: {source}: {what}", hint="change it in the function that makes the model")


def forward(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the heads of a FasterRCNN give for images ``(n, 3, height, width)``."""
    height, width = int(x.shape[2]), int(x.shape[3])
    found = model.backbone(x)
    features = {"0": found} if isinstance(found, torch.Tensor) else dict(found)
    maps = list(features.values())
    rpn, heads = model.rpn, model.roi_heads
    scores, offsets = (
        torch.cat([_flat(each, size) for each in given], dim=1)
        for given, size in zip(rpn.head(maps), (1, 4), strict=True)
    )
    anchors, levels = anchors_of(model, maps, (height, width))
    boxes = propose(
        scores.flatten(1), offsets, anchors, levels, int(rpn.pre_nms_top_n()), int(rpn.post_nms_top_n()),
        float(rpn.nms_thresh), logit_of(float(rpn.score_thresh)), float(rpn.min_size), height, width,
    )  # fmt: skip
    read = [value for name, value in features.items() if name in heads.box_roi_pool.featmap_names]
    scales, areas = _levels_of_regions(heads.box_roi_pool, read, height)
    rows, columns = heads.box_roi_pool.output_size
    inside = regions(read[: len(scales)], boxes, scales, areas, rows, columns, int(heads.box_roi_pool.sampling_ratio))
    logits, moves = _looked_at(heads, inside)
    return {ROIS: boxes, SCORES: logits, BOXES: moves}


def anchors_of(model: Any, maps: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, list[int]]:
    """Return the anchors ``(anchors, 4)`` of an image, and how many of them each feature map has.

    They are computed once, by the first call: torch.export then finds a tensor.
    """
    grids = tuple((int(each.shape[2]), int(each.shape[3])) for each in maps)
    if (size, grids) not in model._anchors_of:
        strides = [[torch.tensor(size[0] // height), torch.tensor(size[1] // width)] for height, width in grids]
        found = model.rpn.anchor_generator.grid_anchors([list(each) for each in grids], strides)
        model._anchors_of[size, grids] = torch.cat(found).float(), [len(each) for each in found]
    anchors, levels = model._anchors_of[size, grids]
    if len(levels) > MOST_LEVELS:
        raise ModelError(f"the detector has {len(levels)} feature maps, and at most {MOST_LEVELS} can be packaged")
    return anchors, levels


def _flat(given: torch.Tensor, size: int) -> torch.Tensor:
    """Return ``(n, anchors * size, h, w)`` as ``(n, h * w * anchors, size)``."""
    _, channels, height, width = given.shape
    apart = given.reshape(-1, channels // size, size, height, width)
    return apart.permute(0, 3, 4, 1, 2).reshape(-1, height * width * (channels // size), size)


def _levels_of_regions(pool: Any, maps: list[torch.Tensor], height: int) -> tuple[list[float], list[float]]:
    """Return the scale of each feature map that boxes are taken from, and from which area on those after the first.

    torchvision takes a box from the level floor(4 + log2(side / 224) + 1e-6), or the nearest that there is.
    """
    scales = [2.0 ** round(math.log2(int(each.shape[2]) / height)) for each in maps]
    least, most = (round(-math.log2(each)) for each in (scales[0], scales[-1]))
    sides = [pool.canonical_scale * 2.0 ** (k - pool.canonical_level - 1e-6) for k in range(least + 1, most + 1)]
    if len(sides) >= len(scales):
        raise ModelError(
            f"box_roi_pool has {len(scales)} feature maps from 1/{2**least} to 1/{2**most} of the image",
            hint="name the maps of all sizes between them in featmap_names",
        )
    return scales[: len(sides) + 1], [side * side for side in sides]


def _looked_at(heads: Any, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the second stage's logits and offsets, ``(n, proposals, ...)``, for what is in each box."""
    count, head, predictor = int(inside.shape[1]), heads.box_head, heads.box_predictor
    if _is(head, "TwoMLPHead") and _is(predictor, "FastRCNNPredictor"):
        # A box's values lie by place, then by channel; the weights were trained on channels first.
        first = head.fc6
        places = int(inside.shape[2]) * int(inside.shape[3])
        weight = first.weight.reshape(len(first.weight), -1, places).transpose(1, 2).reshape(len(first.weight), -1)
        found = F.relu(functional_call(first, {"weight": weight}, (inside.flatten(2),)))
        found = F.relu(head.fc7(found))
        return predictor.cls_score(found), predictor.bbox_pred(found)
    rows = inside.permute(0, 1, 4, 2, 3).flatten(0, 1)
    logits, moves = predictor(head(rows))
    return logits.reshape(-1, count, logits.shape[-1]), moves.reshape(-1, count, moves.shape[-1])


def _is(module: nn.Module, name: str) -> bool:
    return type(module).__name__ == name and _is_torchvisions(type(module))


def _is_torchvisions(kind: type) -> bool:
    return kind.__module__.startswith("torchvision.")
