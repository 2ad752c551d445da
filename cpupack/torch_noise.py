"""Keeps what torch says about its own internals off the user's screen. What the user's own code makes it say stays."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_internals() -> Iterator[None]:
    """Leave out Python warnings that torch's modules, graphs that torch.fx wrote, or cpupack's calls of torch cause.

    A build runs the captured graph on every engine, so such a warning names a line that no user has written
    (``<eval_with_key>.31:201``), and speaks of steps that verification measures anyway. Warnings of a line of the
    user's, and those of cpupack itself, stay. ``python -W`` and PYTHONWARNINGS win.
    """
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", module=r"torch(\.|$)")
            warnings.filterwarnings("ignore", module="<")  # code that has no file
            warnings.filterwarnings("ignore", message=r"(?s).*\(Triggered internally at ", module=r"cpupack\.")
        yield
