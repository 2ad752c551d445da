"""What a run shows: its progress while it goes on, and its figures at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .prepare import Prepared
from .work import Report

_EVERY_S = 5.0
_EXAMPLES = 3


@dataclass
class Progress:
    """Counts the reports of a run, and says every few seconds how far it is."""

    prepared: Prepared
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    computed: int = 0
    unreadable: int = 0
    examples: list[str] = field(default_factory=list)
    first_s: float | None = None
    last_s: float = 0.0
    _began_s: float = 0.0
    _said_s: float = 0.0

    def __post_init__(self) -> None:
        self._began_s = self._said_s = self.clock()
        run, done = self.prepared.job.run, self.prepared.done_rows
        before = f", {done:,} of them done before" if done else ""
        self.say(f"{run.inputs:,} inputs in {run.files:,} files{before}")

    def add(self, report: Report) -> None:
        """Count one report."""
        self.computed += report.rows
        self.unreadable += report.unreadable
        self.examples += report.examples[: _EXAMPLES - len(self.examples)]
        self.first_s = report.begin_s if self.first_s is None else min(self.first_s, report.begin_s)
        self.last_s = max(self.last_s, report.end_s)
        now_s = self.clock()
        if now_s - self._said_s >= _EVERY_S:
            self._said_s = now_s
            self.say(self._line(now_s))

    @property
    def busy_s(self) -> float:
        """From the begin of the first shard to the end of the last one."""
        return 0.0 if self.first_s is None else self.last_s - self.first_s

    def _line(self, now_s: float) -> str:
        per_s = self.computed / (now_s - self._began_s)
        left_s = (self.prepared.left_rows - self.computed) / per_s if per_s else 0.0
        bad = f", {self.unreadable:,} not readable" if self.unreadable else ""
        done = self.prepared.done_rows + self.computed
        return f"{done:,} of {self.prepared.job.run.inputs:,}, {per_s:,.1f}/s{bad}, about {duration(left_s)} left"


def facts(
    prepared: Prepared, progress: Progress, took_s: float, cores: int, processes: int, alone_per_core_s: float | None
) -> dict[str, Any]:
    """Return the figures of a run as JSON. ``alone_per_core_s`` is the rate of one process alone, for each core."""
    per_s = progress.computed / progress.busy_s if progress.busy_s else 0.0
    per_core_s = per_s / cores
    run = prepared.job.run
    return {
        "manifest": {"name": run.name, "version": run.version},
        "from": str(prepared.job.source),
        "to": str(prepared.job.target),
        "inputs": run.inputs,
        "done_before": prepared.done_rows,
        "computed": progress.computed,
        "unreadable": progress.unreadable,
        "examples": progress.examples,
        "files": run.files,
        "took_s": took_s,
        "busy_s": progress.busy_s,
        "processes": processes,
        "cores": cores,
        "inputs_per_s": per_s,
        "inputs_per_s_per_core": per_core_s,
        "alone_per_s_per_core": alone_per_core_s,
        "efficiency": per_core_s / alone_per_core_s if alone_per_core_s and per_s else None,
    }


def text(found: dict[str, Any]) -> str:
    """Return the figures as lines for a terminal."""
    done = f" ({found['done_before']:,} of them before)" if found["done_before"] else ""
    lines = [f"{found['inputs']:,} inputs{done} in {found['files']:,} files of {found['to']}"]
    if found["unreadable"]:
        lines.append(f"  not readable  {found['unreadable']:,}; their rows say why, for example:")
        lines += [f"                {example}" for example in found["examples"]]
    if found["computed"]:
        setup_s = max(0.0, found["took_s"] - found["busy_s"])
        lines.append(f"  time          {duration(found['took_s'])}, of which {duration(setup_s)} to start and to end")
        plural = "es" if found["processes"] > 1 else ""
        lines.append(
            f"  rate          {found['inputs_per_s']:,.1f}/s on {found['cores']} cores in {found['processes']} "
            f"process{plural}: {found['inputs_per_s_per_core']:,.1f}/s a core"
        )
    if found["efficiency"] is not None:
        lines.append(
            f"  alone         one process on one machine: {found['alone_per_s_per_core']:,.1f}/s a core; "
            f"this run has {found['efficiency']:.0%} of it"
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a time for people: ``8.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes} min {rest_s} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
