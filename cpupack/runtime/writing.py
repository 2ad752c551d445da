"""Writes a file as a whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; ``path`` has its content at the end, and what it had before if anything fails.

    What is no plain file, such as a pipe or ``/dev/stdout``, is written as it goes. Where a link leads is written, and
    the link stays. A file that was there keeps its permissions. Raises OSError.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    target = path.resolve()
    handle, made = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    part = Path(made)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
        part.chmod(target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Return which permissions new files do not get. Python only tells by setting another."""
    found = os.umask(0o077)
    os.umask(found)
    return found
