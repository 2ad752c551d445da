"""Facts of a wheel that somebody else made: its hashes may be right, and the facts of any form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpupack.errors import UsageError

MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What code raises that meets facts of another form than it expects."""


def read_json(data: bytes) -> Any:
    """Return what JSON in UTF-8 holds.

    Raises ValueError or RecursionError for what is none, and for text that no file can hold: half of a surrogate pair.
    """
    found = json.loads(data.decode("utf-8"))
    if b"\\u" in data:  # only so can it be written
        json.dumps(found, ensure_ascii=False).encode()
    return found


@contextmanager
def facts_of(wheel: Path) -> Iterator[None]:
    """Read facts of ``wheel`` in a block: raises UsageError where they are not of the form that cpupack writes."""
    try:
        yield
    except MALFORMED as error:
        raise unreadable(wheel, error) from error


def unreadable(wheel: Path, error: Exception) -> UsageError:
    """Return the error for facts that raised ``error``."""
    return UsageError(
        f"{wheel} holds facts that this cpupack cannot read: {error!r}",
        hint="its hashes are right, so it was built so, or forged: ask who built it, or use the cpupack that did",
    )
