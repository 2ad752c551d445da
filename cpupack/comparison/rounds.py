"""Measures engines in turn, in rounds of alternating order. One process runs while the others are stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cpupack.peers.job import Job
from cpupack.peers.process import EngineFailedError, EngineProcess
from cpupack.progress import Progress
from cpupack.runtime.tune.choice import Outcome
from cpupack.runtime.tune.rows import Row as SearchRow
from cpupack.runtime.tune.search import MeasurementFailedError, search
from cpupack.runtime.tune.space import Setting, Space

Row = dict[str, Any]
BUILD_TIMEOUT_S = 3600.0
SERVE_TIMEOUT_S = 900.0
_WALL_PER_BUDGET = 20.0
"""A search also ends after this many times its budget in wall time, because a compiling engine takes long to start."""


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of the engines: forward in even rounds, backward in odd rounds, so that drift cancels."""
    return list(names) if number % 2 == 0 else list(reversed(names))


class Participants:
    """The engines that take part in one mode. An engine that fails is removed, with the reason in ``failed``."""

    def __init__(self, stack: ExitStack, work: Path) -> None:
        self.failed: dict[str, str] = {}
        self._stack, self._work = stack, work
        self._processes: dict[str, EngineProcess] = {}

    @property
    def names(self) -> list[str]:
        return list(self._processes)

    def enter(self, job: Job, prepare: Callable[[EngineProcess], None]) -> None:
        """Start an engine, prepare it, and stop it until its turn."""
        name = job.engine
        scratch = self._work / f"serve-{name}"
        process = self._stack.enter_context(EngineProcess(job, scratch, timeout_s=SERVE_TIMEOUT_S))
        try:
            prepare(process)
        except EngineFailedError as error:
            self._remove(name, process, error)
            return
        process.pause()
        self._processes[name] = process

    def play(self, rounds: int, measure: Callable[[EngineProcess], Row], progress: Progress) -> list[Row]:
        """Measure every engine once in each round. Return rows with ``round``, ``position`` and ``engine``.

        Rows of an engine that fails later are dropped, because its rounds cannot be paired.
        """
        rows: list[Row] = []
        for number in range(rounds):
            progress.step(number, rounds, "rounds")
            for position, name in enumerate(order(self.names, number)):
                process = self._processes[name]
                try:
                    with process.running():
                        row = measure(process)
                except EngineFailedError as error:
                    self._remove(name, process, error)
                    continue
                rows.append({"round": number, "position": position, "engine": name, **row})
        return [row for row in rows if row["engine"] in self._processes]

    def _remove(self, name: str, process: EngineProcess, error: EngineFailedError) -> None:
        self.failed[name] = str(error)
        self._processes.pop(name, None)
        process.__exit__()


@contextmanager
def participants(work: Path) -> Iterator[Participants]:
    """Yield a Participants without engines. At the end its processes are killed, also after an exception."""
    with ExitStack() as stack:
        yield Participants(stack, work)


class SearchClock:
    """Counts only the time spent measuring, so that starting and compiling do not use up an engine's budget."""

    def __init__(self, budget_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.measured_s = 0.0
        self._now, self._budget_s, self._begin_s = now, budget_s, now()

    def __call__(self) -> float:
        wall_s = self._now() - self._begin_s
        return self._budget_s * 2 if wall_s > _WALL_PER_BUDGET * self._budget_s else self.measured_s

    def add(self, seconds: float) -> None:
        self.measured_s += seconds


def find_setting(job: Job, space: Space, budget_s: float, work: Path, on_row: Callable[[SearchRow], None]) -> Outcome:
    """Search an engine's best threads x instances x batch for throughput. Each setting runs in a fresh process.

    Raises TuningFailedError when nothing could be measured.
    """
    clock = SearchClock(budget_s)

    def measure(setting: Setting, duration_s: float) -> Row:
        wanted = job.at(setting)
        try:
            with EngineProcess(wanted, work / f"search-{job.engine}", timeout_s=SERVE_TIMEOUT_S) as process:
                process.ask("open")
                begin_s = time.monotonic()
                row = process.ask("bench", duration_s=duration_s)
                clock.add(time.monotonic() - begin_s)
        except EngineFailedError as error:
            raise MeasurementFailedError(f"{setting}: {error}") from error
        return row

    return search(measure, space, "throughput", None, budget_s, clock, on_row)
