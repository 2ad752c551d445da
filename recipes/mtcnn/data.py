"""What MTCNN's networks see in photographs: the cascade runs in FP32, and its inputs calibrate the wheels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faces import Faces, Network, Pixels
from networks import onet, pnet, rnet
from PIL import Image, ImageOps

PHOTOS = Path(__file__).parents[1] / "photos"
"""REAL: a folder with some hundred photographs like those in which faces will be looked for."""
SIZES = (160, 320, 512)
"""Each photograph is looked at with its shorter side so long, and mirrored, too."""
MOST_PHOTOS = 50
MOST = 256
"""Samples of each network."""


def canvases() -> Iterator[Pixels]:
    """``[calibration] source`` of P-Net: uint8 ``(240, 320, 3)``."""
    yield from _seen("pnet")


def small_crops() -> Iterator[Pixels]:
    """``[calibration] source`` of R-Net: uint8 ``(24, 24, 3)``."""
    yield from _seen("rnet")


def large_crops() -> Iterator[Pixels]:
    """``[calibration] source`` of O-Net: uint8 ``(48, 48, 3)``."""
    yield from _seen("onet")


def fp32() -> dict[str, Network]:
    """Return the three networks in FP32, as runners of wheels are called."""
    return {"pnet": _called(pnet()), "rnet": _called(rnet()), "onet": _called(onet())}


def _called(network: torch.nn.Module) -> Network:
    def call(pixels: Pixels) -> Mapping[str, npt.NDArray[Any]]:
        floats = (torch.from_numpy(pixels).permute(0, 3, 1, 2) - 127.5) / 128
        with torch.inference_mode():
            return {name: values.numpy() for name, values in network(floats).items()}

    return call


def _seen(which: str) -> list[Pixels]:
    """Return what one of the networks gets, ``MOST`` samples at most. Low thresholds let more through to the others."""
    seen: list[Pixels] = []
    networks = fp32()
    network = networks[which]

    def call(pixels: Pixels) -> Mapping[str, npt.NDArray[Any]]:
        seen.extend(pixels)
        return network(pixels)

    networks[which] = call
    faces = Faces(**networks, thresholds=(0.5, 0.3, 0.7))
    for photo in _photos():
        faces.find(photo)
    chosen = np.random.default_rng(0).permutation(len(seen))[:MOST]
    return [seen[each] for each in chosen]


def _photos() -> Iterator[Image.Image]:
    paths = sorted(each for each in PHOTOS.rglob("*") if each.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        raise FileNotFoundError(f"{PHOTOS} has no photographs")
    for path in paths[:MOST_PHOTOS]:
        whole = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        for size in SIZES:
            share = size / min(whole.size)
            small = whole.resize((round(whole.width * share), round(whole.height * share)))
            yield small
            yield ImageOps.mirror(small)
