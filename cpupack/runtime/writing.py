"""Writes a file as a whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems say that have no such call."""


@contextmanager
def whole_file(path: Path, prefix: str = "") -> Iterator[BinaryIO]:
    """Yield a file to write; ``path`` has its content at the end, and what it had before if anything fails.

    Until then it has another name beside it, which begins with ``prefix``. What is no plain file, such as a pipe or
    ``/dev/stdout``, is written as it goes, and so is a file in a directory that takes no other one. Where a link leads
    is written, and the link stays. A file that was there keeps its permissions. Raises OSError.
    """
    import tempfile  # here: no prediction writes, and it brings random and more

    target = path.resolve()
    direct = path.exists() and not path.is_file()
    if direct or (target.exists() and not os.access(target.parent, os.W_OK)):
        with path.open("wb") as stream:
            yield stream
        return
    handle, made = tempfile.mkstemp(prefix=prefix or f".{target.name}.", dir=target.parent)
    part = Path(made)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            _synchronize(stream.fileno())
        with suppress(PermissionError):  # a file system without permissions, as on a memory card
            part.chmod(target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask())
        _rename(part, target)
    finally:
        part.unlink(missing_ok=True)


def _synchronize(descriptor: int) -> None:
    """Have a file on the disk before its name: else the name could outlive a loss of power, and the content not."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise


def _rename(part: Path, target: Path) -> None:
    try:
        part.replace(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(part, target)  # a file that is mounted into a container keeps its place


def _umask() -> int:
    """Return which permissions new files do not get. Python only tells by setting another."""
    found = os.umask(0o077)
    os.umask(found)
    return found
