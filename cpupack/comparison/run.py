"""Compares the package with other engines on the same cores, the same FP32 model and the same data.

``rounds.py`` has the rules of measuring (one process for each engine, interleaved rounds, all others stopped), and
``stats.py`` those of the ratios (paired rounds). This module builds all models, searches all settings, then measures
each mode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpupack.comparison.closeness import Closeness, closeness
from cpupack.comparison.options import MIXED, CompareOptions, image_files
from cpupack.comparison.rounds import BUILD_TIMEOUT_S, Row, find_setting, participants
from cpupack.comparison.subject import Subject
from cpupack.errors import VerificationError
from cpupack.peers import COMPARED, EXTRA, OURS, PEAK
from cpupack.peers.job import Job
from cpupack.peers.process import EngineFailedError, EngineProcess
from cpupack.progress import Progress
from cpupack.runtime.tune.choice import Outcome, TuningFailedError
from cpupack.runtime.tune.command import row_text
from cpupack.runtime.tune.rows import Row as SearchRow
from cpupack.runtime.tune.space import Setting, make_space

SETTLE_S = 0.2
"""A stopped process runs this long before its round is timed, to warm up its caches and wake its threads."""


@dataclass
class Entry:
    """One engine in the comparison. ``status`` is ``ok``, ``missing`` or ``failed``, with the reason."""

    name: str
    status: str = "ok"
    reason: str = ""
    settings: str = ""
    setting: Setting | None = None
    outcome: Outcome | None = None
    closeness: Closeness | None = None
    memory_bytes: dict[str, int] = field(default_factory=dict)

    def fail(self, reason: str) -> None:
        """Remove the engine. Raises VerificationError for cpupack itself, because nothing is left to compare."""
        if self.name == OURS:
            raise VerificationError(f"the compared package failed: {reason}")
        self.status, self.reason = "failed", reason


@dataclass(frozen=True)
class Measured:
    """All measurements: the engines, and the raw rows of ``throughput``, ``latency`` and perhaps ``end_to_end``.

    Rows of the engine ``PEAK`` have the INT8 peak. ``files`` is the number of image files, None without them.
    """

    entries: dict[str, Entry]
    rows: dict[str, list[Row]]
    files: int | None = None


@dataclass(frozen=True)
class _Mode:
    """One way to measure: each engine's job, how to prepare its process, and how to measure one round."""

    name: str
    job: Callable[[Entry], Job]
    enter: Callable[[Entry, EngineProcess], None]
    ask: Callable[[EngineProcess], Row]


def measure(subject: Subject, options: CompareOptions, work: Path, progress: Progress) -> Measured:
    """Run the whole comparison below ``work``.

    An engine that fails is removed, with the reason. Raises VerificationError when cpupack's own package fails.
    """
    files = image_files(options.files) if options.files else None
    entries = {name: Entry(name) for name in (OURS, *options.against)}
    jobs = {name: _job(subject, name, options, work) for name in (*entries, PEAK)}
    for entry in entries.values():
        if missing := COMPARED[entry.name].missing():
            entry.status, entry.reason = "missing", f"not installed: {', '.join(missing)} (pip install '{EXTRA}')"
    with progress.stage("build the peers' models"):
        _each(entries, lambda entry: _build(entry, jobs[entry.name], work), progress)
    with progress.stage("search settings"):
        _each(entries, lambda entry: _search(entry, jobs[entry.name], subject, options, work, progress), progress)
    rows = {}
    for mode in _modes(subject, jobs, options, files, work):
        with progress.stage(f"measure {mode.name}"):
            rows[mode.name] = _play(mode, entries, jobs, options.rounds, work, progress)
    return Measured(entries, rows, len(files) if files else None)


def _modes(
    subject: Subject, jobs: dict[str, Job], options: CompareOptions, files: list[str] | None, work: Path
) -> list[_Mode]:
    def ask_round(process: EngineProcess) -> Row:
        return process.ask("round", duration_s=options.round_s, settle_s=SETTLE_S)

    def best(entry: Entry) -> Job:
        assert entry.setting is not None
        return jobs[entry.name].at(entry.setting)

    every_core = Setting(threads=subject.job.cores, instances=1, batch_size=1)
    modes = [
        _Mode("throughput", best, partial(_enter_throughput, subject, work), ask_round),
        _Mode("latency", lambda entry: jobs[entry.name].at(every_core, single=True), _enter_latency, ask_round),
    ]

    def from_files(entry: Entry) -> Job:
        # There are no ready floats in a file, so every engine gets pixels where the peers would get floats.
        return dataclasses.replace(best(entry), input_kind="uint8") if options.input_kind == MIXED else best(entry)

    if files:
        modes.append(
            _Mode(
                "end_to_end",
                from_files,
                lambda _entry, process: _enter_files(process, files),
                lambda process: process.ask("files", paths=files, duration_s=options.round_s),
            )
        )
    return modes


def _play(
    mode: _Mode, entries: dict[str, Entry], jobs: dict[str, Job], rounds: int, work: Path, progress: Progress
) -> list[Row]:
    """Start every remaining engine, play the rounds, and remove those that failed.

    Each row says what the engine got as ``input``, except for that of ``PEAK``, which makes its own.
    """
    inputs = {name: mode.job(entry).input_kind for name, entry in _in(entries).items()}
    with participants(work) as running:
        if mode.name == "throughput":
            one_a_core = Setting(threads=1, instances=jobs[PEAK].cores, batch_size=1)
            running.enter(jobs[PEAK].at(one_a_core), _enter_peak)
        for name, entry in _in(entries).items():
            progress.note(f"starting {name}")
            running.enter(mode.job(entry), partial(mode.enter, entry))
        rows = running.play(rounds, mode.ask, progress)
    for name, reason in running.failed.items():
        if name == PEAK:
            progress.warn(f"the INT8 peak could not be measured: {reason}")
            continue
        entries[name].fail(reason)
        progress.warn(f"{name} is out: {reason}")
    return [row | ({"input": inputs[row["engine"]]} if row["engine"] in inputs else {}) for row in rows]


def _job(subject: Subject, name: str, options: CompareOptions, work: Path) -> Job:
    directory = work / "engines" / name
    directory.mkdir(parents=True)
    return dataclasses.replace(
        subject.job, engine=name, directory=str(directory), input_kind=options.input_of(name), threads=subject.job.cores
    )


def _each(entries: dict[str, Entry], action: Callable[[Entry], None], progress: Progress) -> None:
    for number, (name, entry) in enumerate(_in(entries).items()):
        progress.step(number, len(entries), name)
        try:
            action(entry)
        except (EngineFailedError, TuningFailedError) as error:
            entry.fail(str(error))
            progress.warn(f"{name} is out: {error}")


def _in(entries: dict[str, Entry]) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if entry.status == "ok"}


def _build(entry: Entry, job: Job, work: Path) -> None:
    with EngineProcess(job, work / f"build-{entry.name}", timeout_s=BUILD_TIMEOUT_S) as process:
        entry.settings = process.ask("build")["settings"]


def _search(entry: Entry, job: Job, subject: Subject, options: CompareOptions, work: Path, progress: Progress) -> None:
    space = make_space(job.cores, "throughput", None, subject.recipe.recipe.tune.batch_sizes)

    def show(row: SearchRow) -> None:
        progress.note(f"{entry.name}: {row_text(row)}")

    entry.outcome = find_setting(job, space, options.budget_s, work, show)
    entry.setting = entry.outcome.setting


def _enter_throughput(subject: Subject, work: Path, entry: Entry, process: EngineProcess) -> None:
    """Open the engine, get the outputs from the process that will be timed, and warm up."""
    process.ask("open")
    outputs = work / f"outputs-{entry.name}.npz"
    process.ask("evaluate", outputs=str(outputs))
    with np.load(outputs) as stored:
        actual = [stored[name] for name in stored.files]
    reference = subject.reference
    entry.closeness = closeness(subject.model.signature, reference.outputs, actual, reference.kind)
    entry.memory_bytes["throughput"] = process.ask("warm")["peak_memory_bytes"]


def _enter_latency(entry: Entry, process: EngineProcess) -> None:
    process.ask("open")
    entry.memory_bytes["latency"] = process.ask("warm")["peak_memory_bytes"]


def _enter_peak(process: EngineProcess) -> None:
    process.ask("open")
    process.ask("warm")


def _enter_files(process: EngineProcess, files: Sequence[str]) -> None:
    process.ask("open_files")
    process.ask("files", paths=files, duration_s=0.01)


def facts(entry: Entry) -> dict[str, Any]:
    """Return an engine's facts for the report."""
    engine, outcome = COMPARED[entry.name], entry.outcome
    return {
        "title": engine.title,
        "status": entry.status,
        "reason": entry.reason,
        "versions": {} if entry.status == "missing" else engine.versions(),
        "settings": entry.settings,
        "setting": None if entry.setting is None else dataclasses.asdict(entry.setting),
        "search": None
        if outcome is None
        else {"reason": outcome.reason, "rows": [row.to_dict() for row in outcome.rows]},
        "agreement": entry.closeness and entry.closeness.agreement,
        "sqnr_db": entry.closeness and entry.closeness.sqnr_db,
        "outputs": entry.closeness and {name: {"sqnr_db": value} for name, value in entry.closeness.by_output.items()},
        "peak_memory_bytes": entry.memory_bytes,
    }
