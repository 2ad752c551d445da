"""Calls a function on the event loop at exact times: the loop's own timers are a millisecond coarse."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

from ..errors import HostError

_CLOCK_MONOTONIC = 1
"""The clock of ``time.monotonic``."""
_ABSOLUTE = 1


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Time), ("first", _Time))


class Alarm:
    """Calls ``ring`` on ``loop`` at the time that was set last. A timer of the kernel (timerfd_create(2)).

    Raises HostError where the kernel gives none.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._file = self._library.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            raise HostError(f"no timer: {os.strerror(ctypes.get_errno())}")
        self._loop, self._ring = loop, ring
        loop.add_reader(self._file, self._read)

    def set(self, at_s: float) -> None:
        """Ring at this time of ``time.monotonic``, at once if it is over."""
        nanoseconds = max(1, int(at_s * 1e9))  # 0 would switch it off
        setting = _Setting(_Time(0, 0), _Time(*divmod(nanoseconds, 10**9)))
        if self._library.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(setting), None):
            raise HostError(f"the timer cannot be set: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """Ring no more."""
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _read(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:  # it was set anew before this was called
            return
        self._ring()
