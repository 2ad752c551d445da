"""Says what a file is by its first bytes, where it is not what it was taken for."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 512
"""Bytes at the beginning of a file that ``recognized`` looks at."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_CONVERT = "convert it to JPEG or PNG"


@dataclass(frozen=True)
class Kind:
    """What a file is, with its article, and what to do about it."""

    what: str
    advice: str
    picture: bool = False

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}"


HEIC = Kind("a HEIC picture, which Pillow does not read", _CONVERT, picture=True)
AVIF = Kind(
    "an AVIF picture, which this Pillow does not read", f"install Pillow 11.3 or later, or {_CONVERT}", picture=True
)


def recognized(head: bytes) -> Kind | None:
    """Return what a file is whose first bytes are ``head``, None where that is not known."""
    if head[4:8] == b"ftyp":
        return _boxed(head[8:12])
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:HEAD_BYTES].lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return Kind("an HTML page, such as a message of a server", "download the file itself")
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return Kind("an SVG drawing", _CONVERT, picture=True)
    return None


def _boxed(brand: bytes) -> Kind:
    """Return the kind of a file in ISO's base media format (ISO/IEC 14496-12), by its brand."""
    if brand in _HEIC:
        return HEIC
    if brand in _AVIF:
        return AVIF
    return Kind("a video", "save its frames as JPEG or PNG")


_JPEG_XL = Kind("a JPEG XL picture, which Pillow does not read", _CONVERT, picture=True)
_POSTSCRIPT = Kind("PostScript, which is a program and is not run", _CONVERT, picture=True)
_STARTS = {
    b"version https://git-lfs": Kind("a pointer of Git LFS, and not the file itself", "run `git lfs pull`"),
    b"\xff\x0a": _JPEG_XL,
    b"\0\0\0\x0cJXL \r\n\x87\n": _JPEG_XL,
    b"%!PS": _POSTSCRIPT,
    b"\xc5\xd0\xd3\xc6": _POSTSCRIPT,  # EPS with a preview, for DOS
    b"%PDF": Kind("a PDF document", "save its pages as JPEG or PNG"),
    b"\x93NUMPY": Kind("an array of numpy (.npy)", "load it with np.load, and hand in the array"),
    b"\x1f\x8b": Kind("compressed by gzip", "unpack it: gunzip"),
    b"BZh": Kind("compressed by bzip2", "unpack it: bunzip2"),
    b"\xfd7zXZ\0": Kind("compressed by xz", "unpack it: unxz"),
    b"\x28\xb5\x2f\xfd": Kind("compressed by zstd", "unpack it: unzstd"),
    b"7z\xbc\xaf": Kind("a 7-Zip archive", "unpack it"),
    b"Rar!": Kind("a RAR archive", "unpack it"),
    b"GGUF": Kind("a GGUF file of llama.cpp", "save the model's weights with torch or safetensors"),
    b"\x89HDF\r\n\x1a\n": Kind("an HDF5 file", "save its arrays in the format that is asked for"),
}
"""Kinds by their first bytes."""
