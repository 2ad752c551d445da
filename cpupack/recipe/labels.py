"""Reads a file of labels, one on each line: the one reader for the wheel's labels and for class folders."""

from __future__ import annotations

from pathlib import Path


class LabelsError(Exception):
    """What is wrong with a file of labels, in words that begin with its path."""


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the labels of a text file. Empty lines at the end and white space at the end of a line do not count.

    Raises LabelsError for a file that cannot be read, is not UTF-8, or has an empty line between others.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise LabelsError(f"{path} cannot be read: {error.strerror or error}") from error
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    empty = next((number for number, line in enumerate(lines, start=1) if not line), None)
    if empty is not None:
        raise LabelsError(f"{path}, line {empty} is empty; each line is the label of one output")
    return tuple(lines)
