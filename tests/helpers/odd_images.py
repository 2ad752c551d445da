"""Images as people have them: every mode, orientation and container; and files that are no images."""

from __future__ import annotations

import gzip
import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, features

HEIGHT, WIDTH = 60, 80


def scene() -> npt.NDArray[np.uint8]:
    """Return RGB pixels with a different colour in each corner, so that no turn leaves them as they are."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) * 255 // (HEIGHT + WIDTH)], -1).astype(np.uint8)
    pixels[:20, :30] = (220, 30, 30)
    return pixels


def turned(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Return pixels as they are stored where a camera writes this EXIF orientation (Exif 2.32, section 4.6.4)."""
    stored = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.transpose(1, 0, 2), 6: pixels.transpose(1, 0, 2)[::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1], 8: pixels.transpose(1, 0, 2)[:, ::-1],
    }[orientation]  # fmt: skip
    return np.ascontiguousarray(stored)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def png(pixels: npt.NDArray[np.uint16], colour: int) -> bytes:
    """Return a PNG of 16 bits a channel; Pillow writes grey alone. ``colour``: 0 grey, 2 RGB, 4 grey-alpha, 6 RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of_12_bits(values: npt.NDArray[np.uint16]) -> bytes:
    """Return a grey TIFF of 12 bits a pixel, two pixels in three bytes (TIFF 6.0, section 7); the width is even."""
    height, width = values.shape
    first, second = values[:, ::2].astype(np.uint32), values[:, 1::2].astype(np.uint32)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, 12), (259, 3, 1), (262, 3, 1),
        (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(packed)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    )


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # Pillow leaves the options of one format on the image, for the next
    return file.getvalue()


def odd_images() -> dict[str, bytes]:
    """Return files that hold ``scene``, more or less, by names that say what is odd."""
    pixels = scene()
    image = Image.fromarray(pixels)
    grey, flipped = image.convert("L"), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    wide = pixels.astype(np.uint16) * 257
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1)))
    half = np.full((HEIGHT, WIDTH, 1), 40_000, np.uint16)
    palette, large = image.quantize(64), image.resize((1600, 1200))
    seen = image.copy()
    seen.putalpha(alpha)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = {
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "444.jpg": saved(image, "JPEG", subsampling=0),
        "422.jpg": saved(image, "JPEG", subsampling=1),
        "rgb.jpg": saved(image, "JPEG", keep_rgb=True),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "grey.jpg": saved(grey, "JPEG"),
        "profile.jpg": saved(image, "JPEG", icc_profile=profile),
        "large.jpg": saved(large, "JPEG"),
        "large_lying.jpg": saved(large, "JPEG", exif=exif(6)),
        "large_grey.jpg": saved(large.convert("L"), "JPEG"),
        "mpo.jpg": saved(image, "MPO", save_all=True, append_images=[flipped.copy()]),
        "trailing.jpg": saved(image, "JPEG") + b"\0" * 100,
        "grey16.png": png(wide[..., 0], 0),
        "rgb16.png": png(wide, 2),
        "grey_alpha16.png": png(np.concatenate([wide[..., :1], half], -1), 4),
        "rgba16.png": png(np.concatenate([wide, half], -1), 6),
        "palette.png": saved(palette, "PNG"),
        "palette_key.png": saved(palette, "PNG", transparency=3),
        "palette_alpha.png": saved(palette, "PNG", transparency=bytes(range(64))),
        "key.png": saved(image, "PNG", transparency=(220, 30, 30)),
        "la.png": saved(Image.merge("LA", (grey, alpha)), "PNG"),
        "rgba.png": saved(seen, "PNG"),
        "bit.png": saved(image.convert("1"), "PNG"),
        "bit.tif": saved(image.convert("1"), "TIFF", compression="group4"),
        "animated.png": saved(image, "PNG", save_all=True, append_images=[flipped]),
        "animated.gif": saved(image, "GIF", save_all=True, append_images=[flipped]),
        "animated.webp": saved(image, "WEBP", save_all=True, append_images=[flipped], lossless=True),
        "pages.tif": saved(image, "TIFF", save_all=True, append_images=[flipped]),
        "grey16.tif": saved(Image.fromarray(wide[..., 0]), "TIFF"),
        "grey12.tif": tiff_of_12_bits((wide[..., 0] >> 4).astype(np.uint16)),
        "cmyk.tif": saved(image.convert("CMYK"), "TIFF"),
        "grey16.pgm": f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + wide[..., 0].astype(">u2").tobytes(),
        "plain.bmp": saved(image, "BMP"),
        "plain.tga": saved(image, "TGA"),
        "png_inside.jpg": saved(image, "PNG"),
        "jpeg_inside.png": saved(image, "JPEG"),
        "UPPER.JPG": saved(image, "JPEG"),
    }  # fmt: skip
    if features.check("jpg_2000"):
        found["plain.jp2"] = saved(image, "JPEG2000")
    if features.check("avif"):
        found["lying.avif"] = saved(Image.fromarray(turned(pixels, 6)), "AVIF", exif=exif(6))
    for orientation in range(1, 9):
        stored = Image.fromarray(turned(pixels, orientation))
        found[f"turned{orientation}.jpg"] = saved(stored, "JPEG", exif=exif(orientation))
        for kind, options in {"png": {}, "tiff": {}, "webp": {"lossless": True}}.items():
            found[f"turned{orientation}.{kind}"] = saved(stored, kind, exif=exif(orientation), **options)
    return found


def boxed(brand: bytes) -> bytes:
    """Return the beginning of a file in ISO's base media format."""
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + b"\0" * 200


def no_images() -> dict[str, tuple[bytes, str]]:
    """Return files that no image can be read from, each with what must be said of it."""
    image = Image.fromarray(scene())
    grey = np.asarray(image.convert("L"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\nshowpage\n%%EOF\n"
    return {
        "empty.jpg": (b"", "is empty"),
        "cut.jpg": (saved(image.resize((800, 600)), "JPEG")[:9000], "truncated or damaged"),
        "cut.png": (saved(Image.effect_noise((80, 60), 90), "PNG")[:2000], "truncated or damaged"),
        "photo.heic": (boxed(b"heic"), "is a HEIC picture"),
        "heic_inside.jpg": (boxed(b"mif1"), "is a HEIC picture"),
        "new.jxl": (b"\xff\x0a" + b"\1" * 50, "is a JPEG XL picture"),
        "boxed.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 50, "is a JPEG XL picture"),
        "film.jpg": (boxed(b"mp42"), "is a video"),
        "film.mpg": (b"\0\0\1\xb3\x05\0\x3c" + b"\0" * 64, "is a video"),
        "drawing.svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing"),
        "page.jpg": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        "program.eps": (eps, "is PostScript, which is a program and is not run"),
        "program.jpg": (eps, "is PostScript, which is a program and is not run"),
        "paper.jpg": (b"%PDF-1.7\n", "is a PDF document"),
        "packed.jpg": (gzip.compress(saved(image, "JPEG")), "is compressed by gzip"),
        "array.jpg": (b"\x93NUMPY\x01\0", "is an array of numpy"),
        "numbers.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "is a HDF5 file"),
        "text.jpg": (b"hello", "is not an image that Pillow can read"),
        "float.tif": (saved(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"), "pixels of unknown range"),
        "integer.tif": (saved(Image.fromarray(grey.astype(np.int32) * 1000), "TIFF"), "pixels of unknown range"),
    }  # fmt: skip
