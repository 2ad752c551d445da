"""The threads of the runner. They are none of ``threading``'s, so ``threading.enumerate`` has not heard of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from cpupack.runtime import threads
from cpupack.runtime.engine import crew


def started_threads() -> int:
    """How many threads run that ``threads.start`` has started. One that was told to end needs a moment for that."""
    return _threads_inside(threads.__file__)


def crew_threads() -> int:
    """How many of them are a crew's."""
    return _threads_inside(crew.__file__)


def _threads_inside(path: str) -> int:
    """How many threads are called from a thread's start, then ``path``, and whatever that called."""
    return sum(path in list(_files(frame))[-2:] for frame in sys._current_frames().values())


def _files(frame: FrameType | None) -> Iterator[str]:
    """The file of each call, from the innermost to the outermost."""
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back
