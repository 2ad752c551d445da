"""Which files are images: those whose pixels Pillow reads itself. Says what any other file is.

Pillow also knows formats that it hands to another program (PostScript, to Ghostscript), or whose pixels it cannot read
at all (HDF5, GRIB, MPEG). They are refused before anything of them is decoded.
"""

from __future__ import annotations

from PIL import Image, ImageFile, features

from ..errors import InputError
from ..magic import AVIF, HEIC, Kind, recognized

_REFUSED = {"EPS": "PostScript, which is a program and is not run", "MPEG": "a video"}
_STUBS = ("BUFR", "GRIB", "HDF5", "WMF")
"""Formats that Pillow knows by name, and reads only where somebody has given it a decoder."""


def suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of files that are taken for images in a directory."""
    Image.init()
    left_out = {*_REFUSED, *_STUBS}
    return frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN and kind not in left_out)


def check_format(image: Image.Image, name: str) -> None:
    """Raise InputError, beginning with ``name``, for an opened image whose pixels Pillow does not read itself."""
    kind = image.format or ""
    if kind in _REFUSED:
        raise InputError(f"{name} is {_REFUSED[kind]}; convert it to JPEG or PNG")
    if isinstance(image, ImageFile.StubImageFile):
        raise InputError(f"{name} is a {kind} file, whose pixels Pillow does not read; convert it to JPEG or PNG")


def not_an_image(data: bytes, name: str) -> InputError:
    """Return the error for bytes in which Pillow finds no image: what they are, if that is known."""
    kind = recognized(data)
    if kind is not None and _is_read_here(kind):
        return InputError(f"{name} is {kind.what.partition(',')[0]} that is truncated or damaged")
    if kind is not None:
        return InputError(f"{name} is {kind.what}; {kind.advice}")
    return InputError(f"{name} is not an image that Pillow can read")


def _is_read_here(kind: Kind) -> bool:
    """Return whether this Pillow reads pictures of a kind that others do not, by itself or by a plugin."""
    if kind is AVIF:
        return "avif" in features.get_supported()
    return kind is HEIC and "HEIF" in Image.OPEN
