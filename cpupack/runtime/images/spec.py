"""What is done to images, and the arithmetic of it: all of preprocessing that does not need Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import IntegrityError

NAMES = ("nearest", "bilinear", "bicubic", "lanczos")
"""The interpolations, by Pillow's names."""
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}
FITS = ("stretch", "pad")
PLACES = ("center", "start")


@dataclass(frozen=True)
class PreprocessSpec:
    """What is done to an image. Sizes are pixels: one int (shorter edge, square crop) or ``(height, width)``.

    ``mean`` and ``std`` apply to pixels scaled to 0..1 and hold one value or one a channel. With ``fit = "pad"`` an
    image keeps its shape: it is resized to fit into ``resize``, which is then ``(height, width)``, and what is left has
    the colour ``pad_value``. ``place`` says where the image is.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    mode: str = "RGB"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fit: str = "stretch"
    pad_value: tuple[int, ...] = (0,)
    place: str = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in NAMES:
            raise ValueError(f"interpolation is {self.interpolation!r}, not one of {', '.join(NAMES)}")
        if self.mode not in CHANNELS:
            raise ValueError(f"mode is {self.mode!r}, not one of {', '.join(CHANNELS)}")
        if self.fit not in FITS or self.place not in PLACES:
            raise ValueError(f"fit is {self.fit!r} and place {self.place!r}")
        if self.fit == "pad" and (not isinstance(self.resize, tuple) or self.crop is not None):
            raise ValueError(f"an image is padded to {self.resize!r} and cropped to {self.crop!r}")
        if not all(0 <= value <= 255 for value in self.pad_value):
            raise ValueError(f"pad_value is {self.pad_value}")
        for name in ("mean", "std", "pad_value"):
            if len(getattr(self, name)) not in {1, self.channels}:
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.channels} channels")

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> PreprocessSpec:
        """Read a recipe's ``[preprocess]`` dump or the manifest's. Raises IntegrityError on damage."""
        try:
            return cls(
                resize=_size(section.get("resize")),
                crop=_size(section.get("crop")),
                interpolation=section.get("interpolation", "bilinear"),
                mode=section.get("mode", "RGB"),
                mean=tuple(float(value) for value in section.get("mean", (0.0,))),
                std=tuple(float(value) for value in section.get("std", (1.0,))),
                fit=section.get("fit", "stretch"),
                pad_value=tuple(int(value) for value in section.get("pad_value", (0,))),
                place=section.get("place", "center"),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise IntegrityError(f"the preprocess section is damaged: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``from_dict`` reads them back."""
        return {
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "crop": list(self.crop) if isinstance(self.crop, tuple) else self.crop,
            "interpolation": self.interpolation,
            "mode": self.mode,
            "mean": list(self.mean),
            "std": list(self.std),
            "fit": self.fit,
            "pad_value": list(self.pad_value),
            "place": self.place,
        }

    @property
    def channels(self) -> int:
        return CHANNELS[self.mode]

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Height and width of every result, None when it depends on the image."""
        if self.crop is not None:
            return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        return self.resize if isinstance(self.resize, tuple) else None


def normalize(pixels: npt.NDArray[np.uint8], spec: PreprocessSpec) -> npt.NDArray[np.float32]:
    """Scale and normalize: (x/255 - mean) / std.

    uint8 ``(n, height, width, channels)`` becomes float32 ``(n, channels, height, width)`` with channels_last
    strides: nothing is transposed in memory.
    """
    n, height, width, channels = pixels.shape
    # Rows of width * channels let numpy use long vectors; broadcasting over three channels would not.
    mean = np.tile(np.resize(np.asarray(spec.mean, np.float32), channels), width)
    std = np.tile(np.resize(np.asarray(spec.std, np.float32), channels), width)
    out = np.empty((n, height, width * channels), np.float32)
    for source, result in zip(pixels.reshape(n, height, width * channels), out, strict=True):
        np.divide(source, np.float32(255), out=result, dtype=np.float32)
        result -= mean
        result /= std
    return out.reshape(n, height, width, channels).transpose(0, 3, 1, 2)


def _size(value: Any) -> int | tuple[int, int] | None:
    if value is None:
        return None
    sizes = [value] if isinstance(value, int) else list(value)
    if len(sizes) not in {1, 2} or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{value!r} is not a size")
    return value if isinstance(value, int) else (sizes[0], sizes[-1])
