"""What stages may say while they work: the interface; ``console.py`` has the implementations that print."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Where a stage reports to. Stages never print."""

    def stage(self, title: str) -> AbstractContextManager[None]:
        """Enter a stage; its wall time is recorded under ``title``."""

    def step(self, done: int, total: int, what: str = "") -> None:
        """Report that ``done`` of ``total`` units of the current stage are finished."""

    def note(self, text: str) -> None:
        """Say something a reader of the log wants to know."""

    def warn(self, text: str) -> None:
        """Say something the user must not miss; also repeated in the summary."""


class SilentProgress:
    """Says nothing."""

    def stage(self, title: str) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, done: int, total: int, what: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass
