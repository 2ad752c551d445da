"""Lowers the steps between the two stages of a detector: which boxes are looked at, and what is in them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from cpupack.graph.proposals import PROPOSE, REGIONS
from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.floats import Floats, Operand
from cpupack.stages.quantize.native.program import Layer, Op
from cpupack.stages.quantize.native.walks import View

LEVELS = 8
"""``CPUPACK_LEVELS`` of kernels/engine/boxes.h."""
MOST_SAMPLES, MOST_CELLS = 4, 64
"""``CPUPACK_MOST_SAMPLES`` and ``CPUPACK_MOST_CELLS``."""
SCRATCH_BYTES = 1280 * 1024
"""``SCRATCH_BYTES`` of kernels/engine/kernels.h."""
PROPOSALS = np.dtype(
    [("levels", "<i4"), ("anchors", "<i4", LEVELS)]
    + [(name, "<i4") for name in ("most", "kept", "scores_first", "offsets_first")]
    + [(name, "<f4") for name in ("height", "width", "least_score", "least_side", "most_overlap")]
)
"""``struct cpupack_proposals``."""
_NUMBERS = (
    "boxes", "boxes_first", "rows", "columns", "samples", "height", "width", "channels", "in_first", "row_step",
    "pixel_step", "fills",
)  # fmt: skip
REGION = np.dtype(
    [(name, "<i4") for name in _NUMBERS] + [(name, "<f4") for name in ("scale", "least_area", "below_area")]
)
"""``struct cpupack_regions``."""


def room_of(most: int, kept: int, levels: int) -> int:
    """Return the bytes that ``cpupack_proposal_room`` says."""
    padded = most + 64
    return 8 * padded + 4 * 6 * padded + levels * 4 * 5 * min(most, kept)


def append_propose(
    floats: Floats,
    scores: Operand,
    offsets: Operand,
    anchors: torch.Tensor,
    levels: list[int],
    *,
    most: int,
    kept: int,
    most_overlap: float,
    least_score: float,
    least_side: float,
    height: int,
    width: int,
) -> View:
    """Append the choice of the best boxes and return them, ``(kept, 4)``. The settings are those of ``propose``."""
    one, two = floats.side_by_side(scores), floats.side_by_side(offsets)
    out = floats.new((kept, 4))
    record = np.zeros(1, PROPOSALS)
    record["levels"], record["anchors"][0, : len(levels)] = len(levels), levels
    record["most"], record["kept"] = min(most, sum(levels)), kept
    record["scores_first"], record["offsets_first"] = one.first, two.first
    record["height"], record["width"], record["most_overlap"] = height, width, most_overlap
    record["least_score"], record["least_side"] = least_score, least_side
    constants: dict[str, Any] = {
        "weights": np.frombuffer(record.tobytes(), np.uint8),
        "scales": np.ascontiguousarray(anchors.detach().float().numpy()),
    }
    assert one.buffer is not None
    assert two.buffer is not None
    assert out.buffer is not None
    floats.program.layers.append(
        Layer(Op.PROPOSE, input=one.buffer, input2=two.buffer, output=out.buffer, constants=constants)
    )
    return out


def append_regions(
    floats: Floats,
    features: list[Operand],
    boxes: Operand,
    scales: list[float],
    areas: list[float],
    *,
    height: int,
    width: int,
    samples: int,
) -> View:
    """Append what is in boxes ``(boxes, 4)``, of each feature map by itself: ``(boxes, height, width, channels)``.

    The settings are those of ``regions``.
    """
    places = floats.side_by_side(boxes)
    maps = [floats.channels_last(each) for each in features]
    (channels,) = {each.shape[0] for each in maps}
    out = floats.new((places.shape[0], height, width, channels))
    bounds = [0.0, *areas, math.inf]
    for number, (view, scale) in enumerate(zip(maps, scales, strict=True)):
        record = np.zeros(1, REGION)
        record["boxes"], record["boxes_first"] = places.shape[0], places.first
        record["rows"], record["columns"], record["samples"] = height, width, samples
        record["channels"], record["height"], record["width"] = view.shape
        record["in_first"], record["row_step"], record["pixel_step"] = view.first, *view.steps[1:]
        record["fills"], record["scale"] = number == 0, scale
        record["least_area"], record["below_area"] = bounds[number], bounds[number + 1]
        constants: dict[str, Any] = {"weights": np.frombuffer(record.tobytes(), np.uint8)}
        assert view.buffer is not None
        assert places.buffer is not None
        assert out.buffer is not None
        floats.program.layers.append(
            Layer(Op.REGIONS, input=view.buffer, input2=places.buffer, output=out.buffer, constants=constants)
        )
    return out


def _propose(b: Builder, node: fx.Node) -> View:
    given: Any = node.args
    scores, offsets, anchors, levels, most, kept, overlap, least, side, height, width = given
    held = b.calls.constant(anchors)
    if held is None:
        raise b.calls.refusal(node, "with anchors that are computed")
    if len(levels) > LEVELS or room_of(most, kept, len(levels)) > SCRATCH_BYTES:
        raise b.calls.refusal(node, "of so many boxes: rpn_pre_nms_top_n_test is too large")
    return append_propose(
        b.floats, as_floats(b, scores, node), as_floats(b, offsets, node), held, list(levels),
        most=most, kept=kept, most_overlap=overlap, least_score=least, least_side=side,
        height=height, width=width,
    )  # fmt: skip


def _regions(b: Builder, node: fx.Node) -> View:
    given: Any = node.args
    maps, boxes, scales, areas, height, width, samples = given
    if samples > MOST_SAMPLES or max(height, width) > MOST_CELLS:
        raise b.calls.refusal(node, "of so many cells or samples")
    if any(len(shape_of(each)) != 4 for each in maps):
        raise b.calls.refusal(node, "of maps that are no images")
    return append_regions(
        b.floats, [as_floats(b, each, node) for each in maps], as_floats(b, boxes, node), list(scales), list(areas),
        height=height, width=width, samples=samples,
    )  # fmt: skip


BOXES: dict[Any, Any] = {PROPOSE: (_propose, "propose"), REGIONS: (_regions, "regions")}
"""Handlers of calls in FP32, with the names of their kernels."""
