"""What stages may say while they work: the interface; ``console.py`` has the implementations that print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Protocol


class Progress(Protocol):
    """Where a stage reports to. Stages never print."""

    @property
    def times_s(self) -> Mapping[str, float]:
        """The wall time of each finished stage by its title."""

    @property
    def warnings(self) -> Sequence[str]:
        """What ``warn`` was given, each text once."""

    def stage(self, title: str) -> AbstractContextManager[None]:
        """Enter a stage; its wall time is recorded under ``title``."""

    def step(self, done: int, total: int, what: str = "") -> None:
        """Report that ``done`` of ``total`` units of the current stage are finished."""

    def note(self, text: str) -> None:
        """Say something a reader of the log wants to know."""

    def warn(self, text: str) -> None:
        """Say something the user must not miss; also repeated in the summary."""


class SilentProgress:
    """Says nothing and keeps nothing."""

    times_s: Mapping[str, float] = MappingProxyType({})
    warnings: Sequence[str] = ()

    def stage(self, title: str) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, done: int, total: int, what: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass
