"""Turns images into model input: the one implementation for calibration, evaluation and the shipped runner.

The semantics are those of torchvision's reference transforms on PIL images (Resize with PIL's antialiased
filters, CenterCrop with zero padding, ToTensor, Normalize), pixel for pixel, after the EXIF orientation.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..arrays import is_masked
from ..errors import InputError
from ..handlers import raised_by_handler
from .formats import check_format, not_an_image
from .paths import path_errors
from .spec import NAMES
from .spec import PreprocessSpec as PreprocessSpec  # for all that also decode; the runner's start does without Pillow
from .spec import normalize as normalize

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | npt.NDArray[Any]

INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in NAMES}

_ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image of each EXIF orientation upright (Exif 2.32, section 4.6.4, tag 0x0112)."""
LYING = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""
_BITS_PER_SAMPLE = 258
"""A tag of TIFF."""
_WIDE_GREY = {"PNG", "PPM"}
"""Formats whose 16-bit grey Pillow gives as 32-bit integers from 0 to 65535."""
_TRUE_HEADERS = {"JPEG", "PNG", "BMP", "GIF", "WEBP"}
"""Formats whose header has the size of the decoded image."""

# Pillow has no common error for "this file is damaged"; its decoders raise all of these.
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
"""What Pillow raises of an image with too many pixels: the second where warnings are errors."""
DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, struct.error, zlib.error),
    *(RuntimeError, ArithmeticError, MemoryError, BufferError, SystemError),  # of decoders in C, as that of AVIF
    *(AssertionError, AttributeError),
)
MAX_PIXELS = 178_956_970
"""Pixels of an image at most. It is Pillow's own limit, which its users can lift."""
MAX_BYTES = 2**30
"""Bytes of an encoded image at most: all pixels of the largest image, uncompressed, fit."""
_CHUNK_BYTES = 2**20
MAX_WHOLE_PIXELS = 2**24
"""An image that resizing would give more pixels is resized only where the crop keeps it."""

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")


def decode_image(source: ImageSource) -> Image.Image:
    """Return the image that ``source`` holds, decoded whole.

    An array is uint8 ``(height, width)``, ``(height, width, 1)`` or ``(height, width, 3)``. Raises InputError
    that names the file and says whether it is missing, not an image, or damaged.
    """
    if isinstance(source, Image.Image):
        return _loaded(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    return decode_bytes(*read_image(source))


def read_image(source: Any) -> tuple[bytes, str]:
    """Return an encoded image and its name for errors. Raises InputError that names the file."""
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"image of {len(source)} bytes"
        if len(source) > MAX_BYTES:
            raise _too_many_bytes(name)
        return bytes(source), name
    if isinstance(source, str | os.PathLike):
        return _read_path(source)
    if hasattr(source, "read"):
        return _read_file(source)
    raise InputError(
        f"cannot read an image from {type(source).__name__}; "
        "expected a path, bytes, a file opened in binary mode, a PIL image or a uint8 array (height, width, channels)"
    )


def _read_path(source: str | os.PathLike[str]) -> tuple[bytes, str]:
    name = os.fspath(source)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    with path_errors(name), open(name, "rb") as file:  # noqa: PTH123 - Path would write a URL with one slash less
        return _read_whole(file, name), name


def _read_file(source: Any) -> tuple[bytes, str]:
    name = getattr(source, "name", None)
    name = name if isinstance(name, str) else f"{type(source).__name__} object"
    try:
        data = _read_whole(source, name)
    except (OSError, ValueError, TypeError, EOFError) as error:  # closed, not readable, or with its own read
        raise InputError(f"{name} cannot be read: {error}") from error
    if not data:
        raise InputError(f"{name} is empty, or was read to its end already: seek(0) goes back")
    return data, name


def _read_whole(file: Any, name: str) -> bytes:
    """Read to the end. What has no end, such as /dev/zero, is refused at ``MAX_BYTES``."""
    parts: list[bytes] = []
    size = 0
    while part := file.read(_CHUNK_BYTES):
        if not isinstance(part, bytes | bytearray | memoryview):
            raise InputError(f"{name} gives {type(part).__name__}; open it in binary mode: open(path, 'rb')")
        parts.append(bytes(part))
        size += len(part)
        if size > MAX_BYTES:
            raise _too_many_bytes(name)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_many_bytes(name: str) -> InputError:
    return InputError(f"{name} has more than {MAX_BYTES:,} bytes, which is the limit for an image")


def _loaded(image: Image.Image) -> Image.Image:
    """Return the caller's image after it was decoded: ``Image.open`` reads the header alone."""
    name = f"PIL image {filename}" if (filename := getattr(image, "filename", "")) else "PIL image"
    check_format(image, name)
    check_pixels(image, name)
    try:
        image.load()
    except DECODER_ERRORS as error:  # Pillow asserts that the file is open
        if lacks_memory(error, image):
            raise _out_of_memory(name, image) from error
        why = str(error) or ("it is damaged" if isinstance(error, MemoryError) else "its file is closed")
        raise InputError(f"{name} cannot be decoded: {why}; load() it before its file is closed") from error
    except TOO_LARGE as error:
        raise InputError(f"{name} is too large: {error}") from error
    return image


def check_pixels(image: Image.Image, name: str) -> None:
    """Raise InputError, beginning with ``name``, for an image with more than ``MAX_PIXELS``."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")


def to_pixels(image: Image.Image, spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Orient, convert, resize and crop or pad. Returns contiguous uint8 ``(height, width, channels)``.

    Sizes and offsets are rounded as torchvision rounds them (transforms/functional.py: resize, center_crop).
    """
    turn = TURNS.get(orientation(image))
    image = _convert(image if turn is None else image.transpose(turn), "RGB" if spec.channels == 3 else spec.mode)
    image = _resize(image, spec)
    pixels = np.array(_centre_crop(image, *(crop_size(spec) or (image.height, image.width))), dtype=np.uint8)
    return finish_pixels(pixels if pixels.ndim == 3 else pixels[:, :, None], spec)


def finish_pixels(pixels: npt.NDArray[np.uint8], spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Put the borders around resized pixels, in RGB or grey, that the spec's size asks for, and order the channels."""
    if spec.mode == "BGR":
        pixels = pixels[:, :, ::-1]
    height, width = pixels.shape[:2]
    rows, columns = crop_size(spec) or (height, width)
    if (rows, columns) == (height, width):
        return np.ascontiguousarray(pixels)
    top, left = border_before(rows - height, spec), border_before(columns - width, spec)
    whole = np.empty((rows, columns, pixels.shape[2]), np.uint8)
    whole[:] = spec.pad_value
    whole[top : top + height, left : left + width] = pixels
    return whole


def decode_bytes(data: bytes, name: str) -> Image.Image:
    """Decode an image whole. Raises InputError that begins with ``name``."""
    if not data:
        raise InputError(f"{name} is empty")
    image: Image.Image | None = None
    try:
        image = Image.open(io.BytesIO(data))
        check_format(image, name)
        check_pixels(image, name)
        image.load()
        check_pixels(image, name)  # the header of some formats gives another size than the image inside
    except UnidentifiedImageError:
        if data.startswith(_MAGIC):
            raise InputError(f"{name} is a damaged image: its header cannot be read") from None
        raise not_an_image(data, name) from None
    except TOO_LARGE as error:
        raise InputError(f"{name} is too large: {error}") from error
    except DECODER_ERRORS as error:
        if image is not None and lacks_memory(error, image):
            raise _out_of_memory(name, image) from error
        raise InputError(f"{name} is a truncated or damaged image: {error}") from error
    return image


def lacks_memory(error: Exception, image: Image.Image) -> bool:
    """Return whether it was memory for the pixels that a decoder lacked. Some say so of damaged files, too."""
    if not isinstance(error, MemoryError):
        return False
    try:
        np.empty((2, image.height, image.width, 4), np.uint8)
    except MemoryError:
        return True
    return False


def _out_of_memory(name: str, image: Image.Image) -> InputError:
    return InputError(f"{name} cannot be decoded: not enough memory for its {image.width} x {image.height} pixels")


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    shape = tuple(array.shape)
    if is_masked(array):
        raise InputError("image array is a masked array; expected a plain one: filled(0) gives masked pixels a value")
    if array.dtype != np.uint8:
        raise InputError(f"image array has dtype {array.dtype}; expected uint8 pixels (0..255)")
    if array.ndim not in {2, 3} or 0 in shape:
        raise InputError(f"image array has shape {shape}; expected (height, width, channels)")
    if array.ndim == 3 and shape[2] not in {1, 3}:
        order = "; it looks channels-first: transpose it to (height, width, channels)" if shape[0] in {1, 3} else ""
        raise InputError(f"image array has shape {shape}: {shape[2]} channels; expected 1 or 3{order}")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) without one.

    Unreadable EXIF counts as none, as in every viewer, because the pixels are intact. ``ImageOps.exif_transpose`` is
    not used: it writes all other tags again and fails on any odd one.
    """
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except DECODER_ERRORS as error:
        if raised_by_handler(error):
            raise
        return 1
    return value if isinstance(value, int) else 1


def upright_size(source: ImageSource) -> tuple[int, int]:
    """Return the width and height of an image as it is seen. Of common files the header alone is read.

    Raises InputError as ``decode_image`` does.
    """
    if isinstance(source, Image.Image | np.ndarray):
        image = decode_image(source)
    else:
        data, name = read_image(source)
        image = _opened(data, name)
        if image.format not in _TRUE_HEADERS:  # the header of some formats gives another size than the image inside
            image = decode_bytes(data, name)
    width, height = image.size
    return (height, width) if orientation(image) in LYING else (width, height)


def upright_image(source: ImageSource) -> Image.Image:
    """Return an image as RGB and as it is seen. Raises InputError as ``decode_image`` does."""
    image = decode_image(source)
    turn = TURNS.get(orientation(image))
    return _convert(image if turn is None else image.transpose(turn), "RGB")


def _opened(data: bytes, name: str) -> Image.Image:
    """Return an image of which the header is read. What has none is decoded, for the error of that."""
    try:
        return Image.open(io.BytesIO(data))
    except (*DECODER_ERRORS, *TOO_LARGE) as error:
        if raised_by_handler(error):
            raise
        return decode_bytes(data, name)


def _bits(image: Image.Image) -> int:
    """Return how many bits of a 16-bit grey image hold its values: 12 of a TIFF with that depth, else all."""
    tags = getattr(image, "tag_v2", None)
    depth = tags.get(_BITS_PER_SAMPLE) if tags else None
    return 12 if depth in (12, (12,)) else 16


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _WIDE_GREY):
        # Pillow clips 16-bit grey at 255 instead of scaling it; an 8-bit copy would hold the high byte.
        grey = (np.asarray(image).astype(np.uint32) >> _bits(image) - 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    elif image.mode in {"I", "F"}:
        raise InputError(f"image has {image.mode!r} pixels of unknown range; save it with 8 or 16 bits a channel")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; Pillow warns about the direct conversion
    if image.mode == mode:
        return image
    try:
        return image.convert(mode)
    except ValueError as error:
        raise InputError(f"image has {image.mode!r} pixels, which cannot be made {mode}: {error}") from error


def resized_size(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Return the width and height that an upright image is resized to."""
    if spec.resize is None:
        return width, height
    if isinstance(spec.resize, tuple):
        if spec.fit == "stretch":
            return spec.resize[1], spec.resize[0]
        scale = min(spec.resize[1] / width, spec.resize[0] / height)
        return max(1, round(width * scale)), max(1, round(height * scale))
    if width <= height:
        return spec.resize, int(spec.resize * height / width)
    return int(spec.resize * width / height), spec.resize


def crop_size(spec: PreprocessSpec) -> tuple[int, int] | None:
    """Return the height and width of what is cut out of a resized image, or padded to; None where all of it is kept."""
    if spec.fit == "pad":
        assert isinstance(spec.resize, tuple)  # the spec has checked it
        return spec.resize
    return (spec.crop, spec.crop) if isinstance(spec.crop, int) else spec.crop


def crop_offset(size: int, crop: int) -> int:
    """Return where a centred crop begins."""
    return round((size - crop) / 2)


def border_before(missing: int, spec: PreprocessSpec) -> int:
    """Return how many of the pixels that an image is short of the crop come above it, or left of it."""
    return 0 if spec.place == "start" else missing // 2


def _resize(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Resize, and where that makes very many pixels crop too: as far as the later crop keeps them."""
    width, height = resized_size(*image.size, spec)
    if (width, height) == image.size:
        return image
    method = INTERPOLATIONS[spec.interpolation]
    if width * height <= MAX_WHOLE_PIXELS:
        return image.resize((width, height), method)
    rows, columns = crop_size(spec) or (height, width)
    rows, columns = min(rows, height), min(columns, width)
    if rows * columns > MAX_WHOLE_PIXELS:
        raise InputError(
            f"image of {image.width} x {image.height} pixels would be resized to {width} x {height}; "
            f"at most {MAX_WHOLE_PIXELS:,} pixels are made"
        )
    return resize_box(
        image, (width, height), (crop_offset(height, rows), crop_offset(width, columns), rows, columns), method
    )


def resize_box(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int], method: Image.Resampling
) -> Image.Image:
    """Resize to ``size`` (width, height), but compute only the ``window`` (top, left, rows, columns) of the result."""
    top, left, rows, columns = window
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
    return image.resize((columns, rows), method, box=box)


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut out the centre, as far as there is so much."""
    height, width = min(height, image.height), min(width, image.width)
    left, top = crop_offset(image.width, width), crop_offset(image.height, height)
    return image.crop((left, top, left + width, top + height))
