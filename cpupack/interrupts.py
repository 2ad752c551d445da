"""Turns every signal that asks to stop into a KeyboardInterrupt with the signal's number."""

from __future__ import annotations

import importlib
import signal
from types import FrameType
from typing import NoReturn

from cpupack.runtime.host.processes import interrupts_held_back

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def install_handlers() -> None:
    """Make SIGTERM and SIGHUP interrupt like Ctrl-C, so that temporary files and children are cleaned up."""
    for signum in _SIGNALS:
        if signal.getsignal(signum) == signal.SIG_DFL:  # nohup ignores SIGHUP, and that must stay
            signal.signal(signum, _interrupt)


def import_torch() -> None:
    """Import torch with interrupts blocked: its C++ parts abort the process when one arrives during the import."""
    with interrupts_held_back():
        importlib.import_module("torch")


def _interrupt(signum: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signum)
