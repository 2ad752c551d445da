"""Turns images into pixels for the runner, in a third of the time of ``preprocess``, which stays the reference.

simplejpeg decodes JPEGs where it is installed. It uses libjpeg-turbo as Pillow does, so the pixels are the same, and it
makes fewer copies. libjpeg decodes a large JPEG at a half, a quarter or an eighth of its size, if that leaves at least
``REDUCED_GAP`` times the size that it is resized to. Only the part that the crop keeps is resized.

Pixels (0 to 255) differ from the reference by at most ``EXACT_BOUND``. Where a JPEG was decoded smaller, they differ by
at most ``REDUCED_MEAN_BOUND`` on average.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from ..arrays import is_masked
from ..engine import library as native_library
from ..errors import HostError, InputError
from ..handlers import raised_by_handler
from ..host.cpu import machine
from . import preprocess, resize
from .preprocess import ImageSource, PreprocessSpec

REDUCED_GAP = 3.0
EXACT_BOUND = 1
REDUCED_MEAN_BOUND = 4.0

_BILINEAR = "bilinear"
_TALL = 2
"""Pillow resizes rows first, but columns first for some images; which ones depends on its version. It never does so
for an image that keeps its proportions and is at most this many times as high as wide."""
_PROPORTIONAL = 0.02
_UNREADABLE = (*preprocess.DECODER_ERRORS, *preprocess.TOO_LARGE)
_scratch = resize.Scratch()


@dataclass(frozen=True)
class Decoder:
    """What decodes JPEGs and what resizes images, each with the reason, as ``info`` shows them."""

    jpeg: str
    jpeg_reason: str
    resize: str
    resize_reason: str


@cache
def _simplejpeg() -> Any:
    """Return the module, None where it is not installed or does not load here."""
    try:
        module = import_module("simplejpeg")
    except ImportError:
        return None
    return module if hasattr(module, "decode_jpeg") else None  # a directory of that name can be imported too


@cache
def _library() -> Any:
    """Return the kernels' library for resizing, None where there is none for this CPU."""
    try:
        return native_library.open_library()
    except HostError:
        return None


def describe(spec: PreprocessSpec) -> Decoder:
    """Return what decodes and resizes the images of ``spec`` on this host."""
    timed = machine() == "x86_64"  # where these were measured
    if _simplejpeg() is None:
        jpeg = f"Pillow {PIL.__version__}"
        jpeg_reason = f"simplejpeg{', a fifth faster,' * timed} is not installed: pip install simplejpeg"
    else:
        jpeg = f"simplejpeg {_simplejpeg().__version__}"
        jpeg_reason = f"installed{', and a fifth faster than Pillow' * timed}"
    if spec.interpolation not in resize.FILTERS:
        return Decoder(jpeg, jpeg_reason, "Pillow", f"the kernels have no {spec.interpolation} filter")
    if _library() is None:
        return Decoder(jpeg, jpeg_reason, "Pillow", "the native kernels are not in this package, or not for this CPU")
    kept = "" if spec.interpolation == _BILINEAR else ", which still resizes squeezed and very tall images"
    speed = "four times as fast as Pillow" if timed else "the package has them"
    return Decoder(jpeg, jpeg_reason, "native kernels", f"{speed}{kept}")


def load_pixels(source: ImageSource, spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Decode, orient, convert, resize and crop. Returns contiguous uint8 ``(height, width, channels)``.

    Raises InputError as ``preprocess.decode_image`` does.
    """
    if not isinstance(source, np.ndarray | Image.Image):
        data, name = preprocess.read_image(source)
        fast = _from_jpeg(data, spec)
        if fast is not None:
            return fast
        image = preprocess.decode_bytes(data, name)
        try:
            return preprocess.to_pixels(image, spec)
        except InputError as error:  # of its kind of pixels, or of its size: which file it is, only this place knows
            raise InputError(f"{name}: {error}") from None
    # The other path refuses a masked array, whose mask would be lost, and what is no array of RGB pixels.
    if isinstance(source, np.ndarray) and not is_masked(source) and source.dtype == np.uint8:
        fast = _from_pixels(source, spec) if source.ndim == 3 and source.shape[2] == 3 and source.size else None
        if fast is not None:
            return fast
    return preprocess.to_pixels(preprocess.decode_image(source), spec)


def _from_jpeg(data: bytes, spec: PreprocessSpec) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of a plain JPEG, None for any other image."""
    if not data.startswith(b"\xff\xd8\xff") or spec.channels != 3:
        return None
    try:
        image = Image.open(io.BytesIO(data))  # the header alone
    except _UNREADABLE as error:  # the reference path fails too, and its error names the file
        if raised_by_handler(error):
            raise
        return None
    if image.format != "JPEG" or image.mode not in {"RGB", "L"} or image.width * image.height > preprocess.MAX_PIXELS:
        return None
    width, height = image.size
    orientation = preprocess.orientation(image)
    upright = (height, width) if orientation in preprocess.LYING else (width, height)
    target = preprocess.resized_size(*upright, spec)
    factor = _reduction(upright, target)
    size = (-(-height // factor), -(-width // factor))
    buffer = _scratch.take(3 * size[0] * size[1] if _simplejpeg() is not None else 0)
    pixels = _decode(data, image, factor, size, buffer)
    if pixels is None:
        return None
    turn = preprocess.TURNS.get(orientation)
    upright_pixels = pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))
    found = _from_pixels(upright_pixels, spec, target)
    _scratch.give_back(buffer)
    return found


def _decode(
    data: bytes, image: Image.Image, factor: int, size: tuple[int, int], buffer: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8] | None:
    """Return RGB ``(*size, 3)``, shrunk by ``factor``, in ``buffer``; None where the JPEG is damaged."""
    module = _simplejpeg()
    if module is None:
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        try:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        except _UNREADABLE as error:
            if raised_by_handler(error):
                raise
            return None
    try:
        pixels: npt.NDArray[np.uint8] = module.decode_jpeg(
            data, "RGB", min_height=size[0], min_width=size[1], min_factor=factor, buffer=buffer
        )
    except ValueError as error:  # damaged: Pillow says how, or decodes what is left
        if raised_by_handler(error):
            raise
        return None
    return pixels


def _reduction(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Return by how much libjpeg may shrink an image while it decodes: 1, 2, 4 or 8."""
    gap = min(size[0] / target[0], size[1] / target[1])
    return next((factor for factor in (8, 4, 2) if gap >= factor * REDUCED_GAP), 1)


def _as_pillow_does(size: tuple[int, int], target: tuple[int, int], interpolation: str) -> bool:
    """Return whether the kernels, which resize rows first, give the same pixels as Pillow.

    Between rows and columns, values are rounded to bytes, and clipped if the filter has negative factors. So the order
    of rows and columns matters.
    """
    if interpolation == _BILINEAR:
        return True
    if interpolation not in resize.FILTERS:
        return False
    (width, height), (new_width, new_height) = size, target
    proportional = abs(height * new_width / (width * new_height) - 1.0) < _PROPORTIONAL
    return proportional and height <= _TALL * width


def _from_pixels(
    pixels: npt.NDArray[np.uint8], spec: PreprocessSpec, target: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8] | None:
    """Resize RGB to ``target`` (width, height), crop or pad; None where that would be too many pixels."""
    height, width = pixels.shape[:2]
    new_width, new_height = target or preprocess.resized_size(width, height, spec)
    rows, columns = preprocess.crop_size(spec) or (new_height, new_width)
    rows, columns = min(rows, new_height), min(columns, new_width)
    if rows * columns > preprocess.MAX_WHOLE_PIXELS:
        return None
    window = resize.Window(
        new_height, new_width,
        preprocess.crop_offset(new_height, rows), preprocess.crop_offset(new_width, columns),
        rows, columns,
    )  # fmt: skip
    return preprocess.finish_pixels(_resized(pixels, window, spec.interpolation), spec)


def _resized(pixels: npt.NDArray[np.uint8], window: resize.Window, interpolation: str) -> npt.NDArray[np.uint8]:
    """Return the window of resized RGB pixels."""
    height, width = pixels.shape[:2]
    size = window.width, window.height
    rows = slice(window.top, window.top + window.rows)
    columns = slice(window.left, window.left + window.columns)
    if size == (width, height):
        return np.array(pixels[rows, columns], order="C")
    library = _library()
    if library is not None and _as_pillow_does((width, height), size, interpolation):
        out = np.empty((window.rows, window.columns, 3), np.uint8)
        resize.resize(library, np.ascontiguousarray(pixels), window, out, interpolation)
        return out
    image = Image.fromarray(pixels)
    method = preprocess.INTERPOLATIONS[interpolation]
    # The other filters have negative factors: see ``_as_pillow_does``.
    if interpolation != _BILINEAR and size[0] * size[1] <= preprocess.MAX_WHOLE_PIXELS:
        return np.array(image.resize(size, method), dtype=np.uint8)[rows, columns]
    kept = (window.top, window.left, window.rows, window.columns)
    return np.array(preprocess.resize_box(image, size, kept, method), dtype=np.uint8)
