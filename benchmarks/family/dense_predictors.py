"""torchvision's networks from images to images, each with one tensor as its result. Factories for recipes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import nn


class _One(nn.Module):
    """A network whose result is the tensor ``name`` of a dictionary."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(x)[self.name]
        return found


class _Pyramid(nn.Module):
    """The maps of a feature pyramid, each at the size of the finest, summed."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        finest, *others = self.backbone(x).values()
        for each in others:
            finest = finest + F.interpolate(each, size=finest.shape[-2:], mode="nearest")
        result: torch.Tensor = finest
        return result


def _segmentation(name: str, **kwargs: Any) -> nn.Module:
    from torchvision.models import segmentation

    network = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=21, **kwargs)
    return _One(network, "out").eval()


def fcn_resnet50(**kwargs: Any) -> nn.Module:
    """Return FCN."""
    return _segmentation("fcn_resnet50", **kwargs)


def deeplabv3_resnet50(**kwargs: Any) -> nn.Module:
    """Return DeepLab V3."""
    return _segmentation("deeplabv3_resnet50", **kwargs)


def deeplabv3_mobilenet_v3_large(**kwargs: Any) -> nn.Module:
    """Return DeepLab V3 on MobileNet V3."""
    return _segmentation("deeplabv3_mobilenet_v3_large", **kwargs)


def lraspp_mobilenet_v3_large(**kwargs: Any) -> nn.Module:
    """Return LR-ASPP on MobileNet V3."""
    return _segmentation("lraspp_mobilenet_v3_large", **kwargs)


def fpn_resnet50(**kwargs: Any) -> nn.Module:
    """Return the backbone and the feature pyramid of torchvision's detectors."""
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d, **kwargs
    )
    return _Pyramid(backbone).eval()
