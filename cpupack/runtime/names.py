"""Names of files as text."""

from __future__ import annotations


def printable(name: str) -> str:
    """Return a file's name as text that UTF-8 can hold: other bytes become ``\\\\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
