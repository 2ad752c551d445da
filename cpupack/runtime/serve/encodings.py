"""Undoes the Content-Encoding of a body. Pure: bytes in, bytes out."""

from __future__ import annotations

import zlib

from .messages import HttpError

_WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""What zlib calls each encoding."""


def decoded(body: bytes | bytearray, encoding: bytes, most_bytes: int) -> bytes | bytearray:
    """Return a body without its ``encoding``, at most ``most_bytes`` long.

    Raises HttpError: 415 for an encoding that is not taken, 413 for a larger body, 400 for damaged data.
    """
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        return body
    window = _WINDOWS.get(encoding)
    if window is None:
        name = encoding[:40].decode("latin-1")
        raise HttpError(415, f"Content-Encoding {name} is not taken; send gzip, deflate or none")
    name, found, left = encoding.decode(), bytearray(), bytes(body)
    while True:
        inflater = zlib.decompressobj(window)
        try:
            found += inflater.decompress(left, most_bytes - len(found) + 1)
        except zlib.error as error:
            raise HttpError(400, f"the body is not valid {name}: {error}") from None
        if len(found) > most_bytes:
            raise HttpError(413, f"the decompressed body is larger than the {most_bytes} bytes that this server takes")
        if not inflater.eof:
            raise HttpError(400, f"the body ends in the middle of its {name} data")
        left = inflater.unused_data
        if not left:
            return found
        if window == _WINDOWS[b"deflate"]:  # only gzip may have several members
            raise HttpError(400, f"{len(left)} bytes follow the {name} data of the body")
