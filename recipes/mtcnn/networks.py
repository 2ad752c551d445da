"""MTCNN's three networks with the trained weights of the pip package facenet-pytorch (MIT licence).

``pip install "cpupack[mtcnn]"`` brings it. Each network returns a dict, so that the wheel's outputs have names.
"""

from __future__ import annotations

import torch
from torch import nn


def pnet() -> nn.Module:
    """Return P-Net: for every second pixel of an image, whether a face of 12 x 12 is there, and its box."""
    return _named("PNet", ("boxes", "faces"))


def rnet() -> nn.Module:
    """Return R-Net: whether a crop of 24 x 24 is a face, and its box."""
    return _named("RNet", ("boxes", "faces"))


def onet() -> nn.Module:
    """Return O-Net: whether a crop of 48 x 48 is a face, its box, and where eyes, nose and mouth are."""
    return _named("ONet", ("boxes", "points", "faces"))


def _named(name: str, outputs: tuple[str, ...]) -> nn.Module:
    from facenet_pytorch.models import mtcnn

    kind = getattr(mtcnn, name)
    network: nn.Module = kind(pretrained=True).eval()

    def forward(self: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(outputs, kind.forward(self, x), strict=True))

    network.__class__ = type(name, (kind,), {"forward": forward})
    return network
