"""Labels as a drawing can have them: a font that has their letters, or letters that a font has.

Pillow's own font has those of ASCII alone, so other labels need a font of the host. Where none has them, accents are
left out, and of a label that still cannot be written there is its number.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import ImageFont

MOST_LETTERS = 40
"""Longer labels are cut, so that one label does not hide the image."""
_HOST = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf",
    "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf",
)  # fmt: skip
"""Fonts that Linux, macOS and Windows come with, those of few scripts first."""
_NO_LETTER = "\U0010ffff"
_HOST_FONTS: ContextVar[bool] = ContextVar("host_fonts", default=True)


@dataclass(frozen=True)
class Lettering:
    """A text and the font that has all of its letters."""

    text: str
    font: Any

    @property
    def width(self) -> int:
        """The width in pixels."""
        return round(float(self.font.getlength(self.text)))


@contextmanager
def own_font_alone() -> Iterator[None]:
    """Draw with Pillow's own font alone: the pictures of a build are the same on every host."""
    token = _HOST_FONTS.set(False)
    try:
        yield
    finally:
        _HOST_FONTS.reset(token)


def lettering(label: str, index: int, note: str, size: int) -> Lettering:
    """Return the label of class ``index`` and a note in ASCII after it, in a font of ``size`` pixels."""
    label = "".join(" " if unicodedata.category(each) in {"Cc", "Zl", "Zp"} else each for each in label)
    if len(label) > MOST_LETTERS:
        label = f"{label[: MOST_LETTERS - 3]}..."
    own = _own(size)
    fonts = [own, *(_of_host(size) if _HOST_FONTS.get() and not _has(own, label) else ())]
    font = next((each for each in fonts if _has(each, label)), None)
    if font is None:
        plain = "".join(each for each in unicodedata.normalize("NFKD", label) if not unicodedata.combining(each))
        font, label = own, plain if _has(own, plain) else f"class {index}"
    return Lettering(f"{label}  {note}".strip(), font)  # a space is narrow: "class 1 9%" reads as class 19


@cache
def _own(size: int) -> Any:
    """Return Pillow's own font. Pillow before 10.1, or one without FreeType, has it in one size."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):
        return ImageFont.load_default()


@cache
def _of_host(size: int) -> tuple[Any, ...]:
    """Return the fonts of this host that are known here."""
    found = []
    for name in _HOST:
        try:
            found.append(ImageFont.truetype(name, size))
        except (ImportError, OSError):  # no FreeType, or no such font
            continue
    return tuple(found)


def _has(font: Any, text: str) -> bool:
    """Return whether a font has every letter of a text. The font without FreeType has those of Latin-1."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return all(ord(each) < 256 for each in text)
    return all(each.isspace() or _has_letter(font, each) for each in set(text))


@cache
def _has_letter(font: Any, letter: str) -> bool:
    """A font draws the same sign for every letter that it lacks."""
    return bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))
