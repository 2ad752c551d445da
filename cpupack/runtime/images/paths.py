"""Says what is wrong with the path of an input, in one sentence that names it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InputError

_MOST_SHOWN = 200
"""Characters of a path that a message shows."""


def check_path(name: str) -> None:
    """Raise InputError where no file has this path. Opens nothing, because the writer of a FIFO would notice."""
    with path_errors(name):
        os.stat(name)  # noqa: PTH116 - Path would write a URL with one slash less


def check_regular(name: str) -> None:
    """Raise InputError for a file found in a directory that is a pipe or a device: reading it may never end."""
    with path_errors(name):
        mode = os.stat(name).st_mode  # noqa: PTH116 - as above
    if not stat.S_ISREG(mode):
        raise InputError(f"{name} is a {'directory' if stat.S_ISDIR(mode) else 'pipe or a device'}, not a file")


@contextmanager
def path_errors(name: str) -> Iterator[None]:
    """Turn what the system says about opening and reading the file ``name`` into an InputError."""
    shown = name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}... ({len(name)} characters)"
    try:
        yield
    except FileNotFoundError:
        if not name:
            raise InputError("the path of an input is empty") from None
        hint = ""
        if name.startswith("data:"):
            hint = "; it looks like a data URL: decode its base64, and hand in the bytes"
        elif "://" in name:
            hint = "; it looks like a URL, and a runner reads no network: download it first"
        raise InputError(f"{shown}: no such file{hint}") from None
    except IsADirectoryError:
        raise InputError(f"{shown} is a directory, not a file") from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte, or characters that no file name has
        raise InputError(f"{shown!r} is not a path: {error}") from error
