"""Warnings of the runner: each names the caller's line, however deep in the package it comes from."""

from __future__ import annotations

import os
import sys
import warnings


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest line outside the package that this module is a part of."""
    frame, level = sys._getframe(0), 1
    # os.path, because a warning may be given in a loop: pathlib takes 4 us for this, and os.path 1.3.
    inside = os.path.join(os.path.dirname(os.path.dirname(frame.f_code.co_filename)), "")  # noqa: PTH118, PTH120
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
