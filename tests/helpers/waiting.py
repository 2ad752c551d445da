"""Waiting for what comes in its own time. No test measures how long that is."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

PATIENCE_S = 400.0
"""What does not come in this time hangs: it is far more than anything takes on the busiest host. pytest ends a test a
little later (``timeout`` in pyproject.toml), and can only say where it was."""


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again until ``condition`` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended. One that is not our child may stay a zombie until its new parent looks."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
