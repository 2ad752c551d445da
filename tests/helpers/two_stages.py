"""A small Faster R-CNN of torchvision's class, whose random weights propose boxes that differ."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from cpupack.model.vision import import_torchvision

SIZE = (96, 128)
"""Height and width of its images."""
CLASSES = 4
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Pyramid(nn.Module):
    """Three maps of 8 channels: an eighth, a sixteenth and a thirty-second of the image."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        x = self.stem(x)
        found = OrderedDict()
        for number, step in enumerate(self.steps):
            x = step(x)
            found[str(number)] = x
        return found


def detector(*, convolutions: bool = False, seed: int = 0, **settings: Any) -> nn.Module:
    """Return a FasterRCNN in eval mode. With ``convolutions`` its second stage is that of torchvision's v2."""
    import_torchvision()
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNConvFCHead
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(seed)
    anchors = AnchorGenerator(((12, 16), (24, 32), (48, 64)), ((0.5, 1.0, 2.0),) * 3)
    pool = MultiScaleRoIAlign(["0", "1", "2"], output_size=5, sampling_ratio=2, canonical_scale=32)
    head = FastRCNNConvFCHead((8, 5, 5), [8], [16], nn.BatchNorm2d) if convolutions else None
    model: Any = FasterRCNN(
        Pyramid(), None if convolutions else CLASSES, rpn_anchor_generator=anchors, box_roi_pool=pool, box_head=head,
        box_predictor=_predictor(16) if convolutions else None,
        **{"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 40, "box_score_thresh": 0.3, **settings},
    )  # fmt: skip
    with torch.no_grad():
        for norm in (each for each in model.modules() if isinstance(each, nn.BatchNorm2d)):
            norm.weight.uniform_(0.7, 1.5)
            norm.bias.uniform_(-0.3, 0.6)
        model.rpn.head.conv[0][0].weight.normal_(0.0, 0.15)
        model.rpn.head.cls_logits.weight.normal_(0.0, 0.8)
        model.rpn.head.bbox_pred.weight.normal_(0.0, 0.15)
        model.roi_heads.box_predictor.cls_score.weight.normal_(0.0, 8.0 if convolutions else 0.6)
        model.roi_heads.box_predictor.cls_score.bias[0] = -4.0 if convolutions else 0.0
        model.roi_heads.box_predictor.bbox_pred.weight.normal_(0.0, 0.5)
    return model.eval()


def _predictor(inputs: int) -> nn.Module:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    return FastRCNNPredictor(inputs, CLASSES)


def _batched_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, most: float) -> torch.Tensor:
    """Suppress in each group by the definition, for builds of torchvision whose compiled operators do not load."""
    from torchvision.ops import box_iou

    kept: list[int] = []
    overlaps = box_iou(boxes, boxes)
    for row in torch.argsort(-scores, stable=True).tolist():
        if not any(groups[row] == groups[other] and overlaps[row, other] > most for other in kept):
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64)


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """Have torchvision align regions and suppress boxes by its Python form."""
    import_torchvision()
    align, pool, boxes = (
        importlib.import_module(f"torchvision.ops.{name}") for name in ("roi_align", "poolers", "boxes")
    )
    plain = inspect.unwrap(align._roi_align)

    def aligned(x: Any, rois: Any, output_size: Any, spatial_scale: float, sampling_ratio: int) -> Any:
        return plain(x, rois, spatial_scale, *output_size, sampling_ratio, False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "roi_align", aligned)
        patch.setattr(boxes, "batched_nms", _batched_nms)
        yield


def own_forward(model: Any, x: torch.Tensor) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return the proposals and the detections of torchvision's own forward."""
    import_torchvision()
    from torchvision.models.detection.image_list import ImageList

    listed = ImageList(x, [SIZE] * len(x))
    with in_python(), torch.no_grad():
        features = model.backbone(x)
        proposals, _ = model.rpn(listed, features)
        return proposals, model.roi_heads(features, proposals, listed.image_sizes)[0]
