"""Images as output: super-resolution, denoising."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .base import Outputs, Shapes, in_words, only
from .frame import Frame
from .spec import TaskSpec

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """``pixels`` is uint8 ``(height, width, 3)``, or ``(height, width)`` in grey."""

    pixels: npt.NDArray[np.uint8]

    def image(self) -> Image.Image:
        """Return it as a PIL image."""
        from PIL import Image

        return Image.fromarray(self.pixels)

    def to_dict(self) -> dict[str, Any]:
        out = io.BytesIO()
        self.image().save(out, "PNG")
        height, width = self.pixels.shape[:2]
        return {"width": width, "height": height, "png": base64.b64encode(out.getvalue()).decode("ascii")}

    def text(self) -> str:
        height, width = self.pixels.shape[:2]
        return f"  an image of {width} x {height} pixels; --save writes it"

    def draw(self, image: Image.Image) -> Image.Image:
        return self.image()


@dataclass(frozen=True)
class ImagePresenter:
    """Makes a ``Picture``: each channel is output * scale + offset in 0..1, and what lies outside is clipped.

    With ``bgr`` the model has its channels in OpenCV's order, in and out.
    """

    spec: TaskSpec
    bgr: bool = False
    needs_frame: bool = True

    def present(self, outputs: Outputs, frame: Frame | None) -> Picture:
        values = np.asarray(only(outputs), np.float64)
        values = values[None] if values.ndim == 2 else values
        if frame is not None:  # what belongs to a border that was added to the image is left out
            rows, columns = values.shape[1:]
            down = _seen(frame.top, frame.resized_height, frame.input_height, rows)
            values = values[:, down, _seen(frame.left, frame.resized_width, frame.input_width, columns)]
        pixels = np.nan_to_num(255.0 * self.scaled(values)).clip(0, 255).round().astype(np.uint8)
        if self.bgr and len(pixels) == 3:
            pixels = pixels[::-1]
        return Picture(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))

    def scaled(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return outputs ``(..., channels, height, width)`` as they should be from 0 to 1."""
        by_channel = (-1, 1, 1)
        count = values.shape[-3]
        scale = np.resize(np.array(self.spec.scale or (1.0,)), count).reshape(by_channel)
        return values * scale + np.resize(np.array(self.spec.offset or (0.0,)), count).reshape(by_channel)


def _seen(begin: float, resized: float, whole: int, count: int) -> slice:
    """Return which of ``count`` pixels of the output belong to the image, of whose ``resized`` pixels the input of
    ``whole`` ones begins at ``begin``; that is below 0 after a border."""
    border = max(-begin, 0.0)
    end = min(resized - begin, float(whole))
    return slice(round(border * count / whole), max(round(end * count / whole), round(border * count / whole) + 1))


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    shape: tuple[int, ...] = only(outputs) if len(outputs) == 1 else ()
    if len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)):
        return None
    return (
        "needs one output of shape (3, height, width), (1, height, width) or (height, width); "
        f"the model has {in_words(outputs)}"
    )
