"""Keeps what torch says about its own internals off the user's screen. What the user's own code makes it say stays."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_internals() -> Iterator[None]:
    """Leave out warnings that torch's modules, graphs that torch.fx wrote, or cpupack's calls of torch cause, and what
    torch logs below an error.

    A build runs the captured graph on every engine, so such a warning names a line that no user has written
    (``<eval_with_key>.31:201``), and speaks of steps that verification measures anyway. Warnings of a line of the
    user's, and those of cpupack itself, stay. ``python -W``, PYTHONWARNINGS and TORCH_LOGS win.
    """
    with _quiet_logs(), warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", module=r"torch(\.|$)")
            warnings.filterwarnings("ignore", module="<")  # code that has no file
            warnings.filterwarnings("ignore", message=r"(?s).*\(Triggered internally at ", module=r"cpupack\.")
        yield


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Raise the level of torch's loggers: libraries of models that are imported make it speak of their own classes, and
    torchao of kernels for GPUs that it cannot load."""
    levels = {log: log.level for log in map(logging.getLogger, ("torch", "torchao"))}
    for log, level in levels.items():
        if not os.environ.get("TORCH_LOGS"):
            log.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)
