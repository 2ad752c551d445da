"""SOURCE_DATE_EPOCH: the time that all files of a wheel have (reproducible-builds.org/specs/source-date-epoch)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cpupack.errors import UsageError

VARIABLE = "SOURCE_DATE_EPOCH"
_FIRST, _LAST = 315532800, 4354819199
"""1980 to 2107 in UTC: what the dates of a zip archive can express, in seconds since 1970."""


def source_date_epoch() -> int | None:
    """Return the time that the environment asks for, in seconds since 1970, None without one.

    Raises UsageError for what is no such time.
    """
    text = os.environ.get(VARIABLE)
    if text is None or not text.strip():
        return None
    if not text.strip().isascii() or not text.strip().isdigit() or not _FIRST <= int(text) <= _LAST:
        raise UsageError(
            f"{VARIABLE} is {text[:40]!r}, which is not a number of seconds from {_FIRST} to {_LAST}",
            hint="a wheel is a zip archive, whose dates go from 1980 to 2107; unset it for the default",
        )
    return int(text)


@contextmanager
def dated(epoch: int | None) -> Iterator[None]:
    """Have hatchling give all files of a wheel this time while the block runs; None for its own default."""
    before = os.environ.get(VARIABLE)
    try:
        _set(None if epoch is None else str(epoch))
        yield
    finally:
        _set(before)


def _set(text: str | None) -> None:
    if text is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = text
