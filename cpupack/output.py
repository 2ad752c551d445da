"""The builder's stdout and stderr: what cannot be written is an error of its own, apart from every other OSError."""

from __future__ import annotations

import io
import sys
from typing import Any


class UnwrittenError(Exception):
    """The command's output could not be written. ``broken_pipe``: its reader (head, less) has gone."""

    def __init__(self, why: str, *, broken_pipe: bool = False) -> None:
        super().__init__(why)
        self.broken_pipe = broken_pipe


class _Out(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            why, gone = error.strerror or str(error), isinstance(error, BrokenPipeError)
        raise UnwrittenError(why, broken_pipe=gone)


class _Told(io.FileIO):
    """stderr. Where it cannot be written, nobody can be told."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


class _Closed(io.TextIOBase):
    """stdout that was closed before Python started. Python itself would drop what is written to it."""

    def write(self, text: str) -> int:
        raise UnwrittenError("stdout is closed")


def prepare() -> None:
    """Replace the process's stdout and stderr. Characters that their encoding does not have are written as ``\\u...``.

    What a caller has put in their place stays.
    """
    if sys.stdout is None:
        sys.stdout = _Closed()
    elif sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Out, 1, sys.stdout)
    if sys.stderr is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Told, 2, sys.stderr)


def _text(kind: type[io.FileIO], descriptor: int, old: Any) -> io.TextIOWrapper:
    raw = io.BufferedWriter(kind(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(raw, encoding=old.encoding, errors="backslashreplace", line_buffering=True)


def drop() -> None:
    """Forget what could not be written: the interpreter would try again when it exits."""
    sys.stdout = None
