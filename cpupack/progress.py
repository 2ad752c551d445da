"""How stages report their work: the interface. ``console.py`` has the implementation that prints."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

_PACKAGE = Path(__file__).parent


class Progress(Protocol):
    """Receives the reports of the stages. Stages never print."""

    @property
    def times_s(self) -> Mapping[str, float]:
        """The wall time of each finished stage, by its title."""

    @property
    def warnings(self) -> Sequence[str]:
        """The texts that ``warn`` was given, each once."""

    def stage(self, title: str) -> AbstractContextManager[None]:
        """Enter a stage; its wall time is recorded under ``title``."""

    def step(self, done: int, total: int, what: str = "") -> None:
        """Report that ``done`` of ``total`` units of the current stage are finished."""

    def note(self, text: str) -> None:
        """Report something that a reader of the log wants to know."""

    def warn(self, text: str) -> None:
        """Report something that the user must not miss. The summary repeats it."""


class BuildWarning(UserWarning):
    """A warning of a build, issued through Python's ``warnings``."""


class SilentProgress:
    """Prints nothing, and keeps the times and the warnings for later."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.times_s: dict[str, float] = {}
        self.warnings: list[str] = []
        self._clock = clock

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        start = self._clock()
        yield
        self.times_s[title] = self.times_s.get(title, 0.0) + self._clock() - start

    def step(self, done: int, total: int, what: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


class WarningProgress(SilentProgress):
    """Reports only warnings: each once, as a BuildWarning through Python's ``warnings``.

    The warning names the nearest caller's line outside cpupack. If a filter turns the warning into an error, the build
    ends there and leaves no wheel.
    """

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            super().warn(text)
            warnings.warn(text, BuildWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """Return the ``stacklevel`` of the nearest caller outside cpupack, counted from the function that calls this."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
