"""Which line of a program a warning is about: that of the caller, not one of the runner's own."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = str(Path(__file__).resolve().parent)


def callers_level() -> int:
    """Return the ``stacklevel`` for a warning, in the function that calls this, that names the first line outside."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level


def _is_ours(name: str) -> bool:
    return name.startswith(_HERE)
