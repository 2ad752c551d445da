"""Drawing over images: colours, a legend, boxes, points and lines. Only what draws imports this module and Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

_GOLDEN = 0.618033988749895
"""The golden ratio's fraction: hues that many turns apart never come close to one before."""
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def colour_of(index: int) -> Colour:
    """Return the colour of a class: always the same one, and unlike those of the classes near it."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * _GOLDEN) % 1.0, 0.85, 1.0 if index % 2 else 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def blended(image: Image.Image, classes: npt.NDArray[Any], opacity: float = 0.55) -> Image.Image:
    """Return an image with the colour of each pixel's class over it. Class 0 and below are left clear.

    ``classes`` is ``(height, width)`` of the image.
    """
    pixels = np.array(image, np.uint8)
    for index in np.unique(classes):
        if index > 0:
            where = classes == index
            mixed = pixels[where] * (1.0 - opacity) + np.array(colour_of(int(index))) * opacity
            pixels[where] = mixed.round().astype(np.uint8)
    return Image.fromarray(pixels)


def legend(image: Image.Image, rows: Sequence[tuple[Colour, str]]) -> Image.Image:
    """Return an image with a list of colours and their names below it, as wide as the image or wider."""
    if not rows:
        return image
    font, size = _font(_text_size(image)), _text_size(image)
    rows = [(colour, _drawable(font, text)) for colour, text in rows]
    line, gap = round(1.5 * size), round(0.5 * size)
    widest = max(_width(font, text) for _, text in rows) + line + 2 * gap
    width = max(image.width, widest)
    columns = max(1, width // widest)
    lines = -(-len(rows) // columns)
    canvas = Image.new("RGB", (width, image.height + lines * line + 2 * gap), _WHITE)
    canvas.paste(image, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, (colour, text) in enumerate(rows):
        left = gap + (number % columns) * widest
        top = image.height + gap + (number // columns) * line
        pen.rectangle((left, top + 1, left + size, top + 1 + size), fill=colour, outline=_BLACK)
        pen.text((left + line, top), text, fill=_BLACK, font=font)
    return canvas


def boxes(image: Image.Image, found: Sequence[tuple[Sequence[float], Colour, str]]) -> Image.Image:
    """Return an image with boxes (xmin, ymin, xmax, ymax) and a label at the upper left corner of each."""
    canvas = image.copy()
    pen = ImageDraw.Draw(canvas)
    size = _text_size(image)
    font, thick = _font(size), max(1, size // 7)
    found = [(box, colour, _drawable(font, text)) for box, colour, text in found]
    for (left, top, right, bottom), colour, _ in found:
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=thick)
    for (left, top, _, _), colour, text in found:
        width, height = _width(font, text) + size // 2, round(1.35 * size)
        x = min(max(left, 0.0), max(image.width - width, 0))
        y = top - height if top >= height else top
        pen.rectangle((x, y, x + width, y + height), fill=colour)
        pen.text((x + size // 4, y), text, fill=_readable(colour), font=font)
    return canvas


def points(
    image: Image.Image,
    found: Sequence[tuple[float, float, Colour]],
    lines: Sequence[tuple[int, int]],
) -> Image.Image:
    """Return an image with a dot at each point ``(x, y, colour)``, and lines between pairs of them."""
    canvas = image.copy()
    pen = ImageDraw.Draw(canvas)
    radius = max(2, _text_size(image) // 4)
    for first, second in lines:
        (x, y, colour), (other_x, other_y, _) = found[first], found[second]
        pen.line((x, y, other_x, other_y), fill=colour, width=max(1, radius // 2))
    for x, y, colour in found:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=_WHITE)
    return canvas


def _text_size(image: Image.Image) -> int:
    return min(max(11, round(min(image.size) / 32)), 40)


def _readable(colour: Colour) -> Colour:
    red, green, blue = colour
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _WHITE


@cache
def _font(size: int) -> Any:
    """Return Pillow's own font. Pillow before 10.1, or one without FreeType, has it in one size."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):
        return ImageFont.load_default()


def _drawable(font: Any, text: str) -> str:
    """Return a text that a font can draw. The bitmap font knows Latin-1 alone, and raises for other letters."""
    return text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")


def _width(font: Any, text: str) -> int:
    return round(float(font.getlength(text)))
