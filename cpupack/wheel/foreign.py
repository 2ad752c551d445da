"""Facts of a wheel that somebody else made: its hashes may be right, and the facts of any form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpupack.errors import UsageError


@contextmanager
def facts_of(wheel: Path) -> Iterator[None]:
    """Read facts of ``wheel`` in a block: raises UsageError where they are not of the form that cpupack writes."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise unreadable(wheel, error) from error


def unreadable(wheel: Path, error: Exception) -> UsageError:
    """Return the error for facts that raised ``error``."""
    return UsageError(
        f"{wheel} holds facts that this cpupack cannot read: {error!r}",
        hint="its hashes are right, so it was built so, or forged: ask who built it, or use the cpupack that did",
    )
