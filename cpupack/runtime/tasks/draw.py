"""Drawing over images: colours, a legend, boxes, points and lines. Only what draws imports this module and Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .lettering import lettering

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


def overlaid(image: Image.Image, masks: Sequence[tuple[int, npt.NDArray[Any]]], opacity: float = 0.55) -> Image.Image:
    """Return an image with the mean colour of all classes that a pixel has over it.

    ``masks`` are pairs of a class and its truth values ``(height, width)`` of the image.
    """
    pixels = np.array(image, np.uint8)
    sums, counts = np.zeros(pixels.shape), np.zeros(pixels.shape[:2])
    for index, mask in masks:
        sums[mask] += np.array(colour_of(index))
        counts += mask
    where = counts > 0
    colours = sums[where] / counts[where][:, None]
    pixels[where] = (pixels[where] * (1.0 - opacity) + colours * opacity).round().astype(np.uint8)
    return Image.fromarray(pixels)


def legend(image: Image.Image, rows: Sequence[tuple[int, str, str]]) -> Image.Image:
    """Return an image with a list of classes (index, label, note) below it, as wide as the image or wider."""
    if not rows:
        return image
    size = _text_size(image)
    names = [(colour_of(index), lettering(label, index, note, size)) for index, label, note in rows]
    line, gap = round(1.5 * size), round(0.5 * size)
    widest = max(name.width for _, name in names) + line + 2 * gap
    width = max(image.width, widest)
    columns = max(1, width // widest)
    lines = -(-len(names) // columns)
    canvas = Image.new("RGB", (width, image.height + lines * line + 2 * gap), _WHITE)
    canvas.paste(image, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, (colour, name) in enumerate(names):
        left = gap + (number % columns) * widest
        top = image.height + gap + (number // columns) * line
        pen.rectangle((left, top + 1, left + size, top + 1 + size), fill=colour, outline=_BLACK)
        pen.text((left + line, top), name.text, fill=_BLACK, font=name.font)
    return canvas


def boxes(image: Image.Image, found: Sequence[tuple[Sequence[Any], int, str, str]]) -> Image.Image:
    """Return an image with boxes (xmin, ymin, xmax, ymax), each with the label of its class ``index`` and a note at its
    upper left corner. Four corners (x, y) in place of the numbers are a turned box."""
    canvas = image.copy()
    pen = ImageDraw.Draw(canvas)
    size = _text_size(image)
    thick = max(1, size // 7)
    for box, index, _, _ in found:
        if isinstance(box[0], tuple):
            pen.line((*box, *box[:2]), fill=colour_of(index), width=thick, joint="curve")
            continue
        left, top, right, bottom = box
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        pen.rectangle(corners, outline=colour_of(index), width=thick)
    for box, index, label, note in found:
        left, top = min(box, key=lambda corner: corner[1]) if isinstance(box[0], tuple) else box[:2]
        name, colour = lettering(label, index, note, size), colour_of(index)
        width, height = name.width + size // 2, round(1.35 * size)
        x = min(max(left, 0.0), max(image.width - width, 0))
        y = top - height if top >= height else top
        pen.rectangle((x, y, x + width, y + height), fill=colour)
        pen.text((x + size // 4, y), name.text, fill=_readable(colour), font=name.font)
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
