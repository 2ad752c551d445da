"""Reads the files of a ``multipart/form-data`` body (RFC 7578). Pure: bytes in, views out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError

MOST_PARTS = 1024
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s](filename|name)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """One field: its name, the name of its file (empty without one) and its content, a view into the body."""

    name: str
    filename: str
    content: memoryview


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a Content-Type names. Raises InputError without one."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise InputError("Content-Type is multipart/form-data without a boundary")
    return (match[1] or match[2]).encode("latin-1", "replace")


def parts(body: bytes | bytearray, boundary: bytes) -> list[Part]:
    """Return every field of the body. Raises InputError where it does not keep to the format."""
    line, view = b"--" + boundary, memoryview(body)
    if not body.startswith(line):
        raise InputError("the multipart body does not begin with its boundary")
    found: list[Part] = []
    at = len(line)
    while True:
        if body.startswith(b"--", at):
            return found
        if not body.startswith(b"\r\n", at):
            raise InputError("a boundary of the multipart body is not followed by a line end")
        head_end = body.find(b"\r\n\r\n", at)
        end = body.find(b"\r\n" + line, max(at, head_end))
        if head_end < 0 or end < 0:
            raise InputError("the multipart body ends in the middle of a part")
        if len(found) == MOST_PARTS:
            raise InputError(f"the multipart body has more than {MOST_PARTS} parts")
        names = {key.lower(): value for key, value in _NAME.findall(body[at:head_end])}
        found.append(
            Part(
                names.get(b"name", b"").decode("utf-8", "replace"),
                names.get(b"filename", b"").decode("utf-8", "replace"),
                view[head_end + 4 : end] if end >= head_end + 4 else view[:0],
            )
        )
        at = end + 2 + len(line)
