"""What is made once in a test session, by the first process of it that asks."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a directory of the session that ``make`` has filled: read it, never write to it.

    pytest-xdist runs the tests in several processes, and each has its own session fixtures. What takes long to make,
    such as a wheel or a virtual environment, comes from here: the others wait, then use what the first one made.
    Raises what ``make`` raises, in each process that asks.
    """
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory, made = root / "once" / name, root / "once" / f"{name}.made"
    directory.parent.mkdir(exist_ok=True)
    with directory.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            if directory.exists():  # another process failed in the middle
                shutil.rmtree(directory)
            directory.mkdir()
            make(directory)
            made.touch()
    return directory
