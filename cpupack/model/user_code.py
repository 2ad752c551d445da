"""Describes in one line where users' code failed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpupack.errors import CalibrationError, CpupackError

_OF_NOTHING = ("numel() == 0", "non-zero size", "must be non-empty", "over an empty dimension", "with size 0")
"""How torch says that a maximum, a quantile or an entry is asked of no values."""
_HERE = str(Path(__file__).parents[1])


def describe_failure(error: BaseException, layer: str = "") -> str:
    """Return ``Type: message (FILE:LINE: code)`` of the innermost frame outside torch and cpupack.

    ``layer`` is the name of the user's module that was running, if known (``layers.watched``).
    """
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not is_library(frame.filename)]
    text = f"{f'in {layer}: ' if layer else ''}{type(error).__name__}: {first_line(error)}"
    if theirs:
        text += f" ({theirs[-1].filename}:{theirs[-1].lineno}: {(theirs[-1].line or '').strip()})"
    return text


@contextmanager
def running_on(data: str) -> Iterator[None]:
    """Raise CalibrationError for a failure of the user's model on ``data``: it has run on zeros, when it was loaded."""
    try:
        yield
    except CpupackError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"the model runs on zeros and fails on {data}: {describe_failure(error)}",
            hint=hint_of_nothing(error)
            or "are these the values that the model takes? For token ids: whole numbers below the size of its table",
        ) from error


def hint_of_nothing(error: BaseException) -> str | None:
    """Return what to do where a maximum or the like is taken of no value; None for any other failure."""
    if not any(words in str(error) for words in _OF_NOTHING):
        return None
    return (
        "it is asked of no value, since a mask chooses nothing of some inputs, and a wheel must answer these, too. "
        "Keep all values, fill those that do not count, and take a default where there is none: "
        "torch.where(mask, x, -1e30).amax(1), then torch.where(mask.any(1), found, 0.0)"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or "no message").splitlines()[0]


def is_library(filename: str) -> bool:
    parts = Path(filename).parts
    return (
        filename.startswith(("<", _HERE))
        or ("site-packages" in parts and "torch" in parts)
        or "importlib" in parts
        or Path(filename).name == "typing_extensions.py"  # its decorators add frames between those of torch
    )
