"""Names of files: as text, and of all files below a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from .errors import InputError


def printable(name: str) -> str:
    """Return a file's name as text that UTF-8 can hold: other bytes become ``\\\\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def files_below(directory: Path) -> Iterator[Path]:
    """Yield every file below a directory, in no order.

    Raises InputError for a directory that cannot be read. ``Path.rglob`` leaves that out without a word.
    """

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"{error.filename} cannot be read: {error.strerror or error}") from error

    for folder, _, names in os.walk(directory, onerror=refuse):
        yield from (Path(folder, name) for name in names)
