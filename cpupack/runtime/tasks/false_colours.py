"""Maps of numbers as pictures: colours from the least to the greatest number, and a scale that says what they mean.

Only what draws imports this module and Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .lettering import lettering

Panel = tuple[str, npt.NDArray[np.float32], tuple[float, float]]
"""The name of a map, its numbers ``(height, width)``, and those at the ends of the colours."""

MOST = 16
"""Maps in a picture."""
_LEAST_EDGE = 240
"""Smaller maps are enlarged: a scale would not be read under a map of 32 pixels."""
_UNSEEN, _WHITE, _BLACK = (128, 128, 128), (255, 255, 255), (0, 0, 0)
_FROM_LEAST = (
    (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121),
    (110, 206, 88), (181, 222, 43), (253, 231, 37),
)  # fmt: skip
"""Viridis: it is as bright as the number is large, also for those who see few colours and in grey."""
_AROUND_ZERO = (
    (33, 102, 172), (67, 147, 195), (146, 197, 222), (209, 229, 240), (247, 247, 247), (253, 219, 199), (244, 165, 130),
    (214, 96, 77), (178, 24, 43),
)  # fmt: skip
"""Blue below 0, white at 0, red above."""


def panels(maps: Sequence[Panel]) -> Image.Image:
    """Return maps of one size side by side, each with its scale below it; at most ``MOST`` of them."""
    shown = [_panel(*each) for each in maps[:MOST]]
    width = max(each.width for each in shown)
    height = max(each.height for each in shown)
    columns = math.ceil(math.sqrt(len(shown)))
    canvas = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height), _WHITE)
    for number, each in enumerate(shown):
        canvas.paste(each, (number % columns * width, number // columns * height))
    return canvas


def coloured(values: npt.NDArray[np.float32], ends: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Return the colour ``(..., 3)`` of each number: beyond an end that of the end, grey for NaN."""
    low, high = ends
    colours = np.array(_AROUND_ZERO if low < 0.0 < high else _FROM_LEAST, np.float64)
    known = ~np.isnan(values)
    place = (np.where(known, values, low).astype(np.float64).clip(low, high) - low) / (high - low) * (len(colours) - 1)
    below = place.astype(int).clip(0, len(colours) - 2)
    share = (place - below)[..., None]
    mixed: npt.NDArray[np.uint8] = (
        (colours[below] * (1.0 - share) + colours[below + 1] * share).round().astype(np.uint8)
    )
    mixed[~known] = _UNSEEN
    return mixed


def _panel(name: str, values: npt.NDArray[np.float32], ends: tuple[float, float]) -> Image.Image:
    height, width = values.shape
    times = max(1, _LEAST_EDGE // max(width, height))
    picture = Image.fromarray(coloured(values, ends))
    picture = picture.resize((times * width, times * height), Image.Resampling.NEAREST)
    size = min(max(11, round(min(picture.size) / 32)), 40)
    gap = size // 2
    texts = [lettering(f"{each:.4g}", 0, "", size) for each in ends]
    title = lettering(name, 0, "", size)
    room = max(picture.width, title.width + 2 * gap, sum(each.width for each in texts) + 4 * gap)
    canvas = Image.new("RGB", (room, picture.height + 4 * size + 2 * gap), _WHITE)
    canvas.paste(picture, (0, 0))
    pen = ImageDraw.Draw(canvas)
    top = picture.height + gap // 2
    pen.text((gap, top), title.text, fill=_BLACK, font=title.font)
    top += round(1.4 * size)
    bar = np.linspace(*ends, max(room - 2 * gap, 2), dtype=np.float32)[None].repeat(size, axis=0)
    canvas.paste(Image.fromarray(coloured(bar, ends)), (gap, top))
    top += size + gap // 2
    low, high = texts
    pen.text((gap, top), low.text, fill=_BLACK, font=low.font)
    pen.text((room - gap - high.width, top), high.text, fill=_BLACK, font=high.font)
    if ends[0] < 0.0 < ends[1]:
        zero = lettering("0", 0, "", size)
        pen.text(((room - zero.width) // 2, top), zero.text, fill=_BLACK, font=zero.font)
    return canvas
