"""The result of a comparison: what was compared, every raw round, and the ratios. Also as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

import cpupack
from cpupack.comparison.options import INPUTS, CompareOptions
from cpupack.comparison.rounds import Row
from cpupack.comparison.run import SETTLE_S, Entry, Measured, facts
from cpupack.comparison.stats import Ratio, paired_ratio
from cpupack.comparison.subject import Subject
from cpupack.peers import OURS, PEAK
from cpupack.peers.int8_peak import MACS
from cpupack.runtime.host import probe as host_probe

SCHEMA = 1


@dataclass(frozen=True)
class Figures:
    """The figures of an engine in one mode. ``median`` is over the rounds, in samples/s, or p50 in ms for latency.

    ``ratio`` compares with cpupack and is above 1 if cpupack is better. It is None for cpupack itself. The percentiles
    exist only for latency. They are over the ``calls`` of all rounds, because one round has too few for a p99.
    """

    median: float
    ratio: Ratio | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    calls: int | None = None


@dataclass(frozen=True)
class Mode:
    """One way to measure: the figures of each engine, the best of the other engines, the raw rounds.

    ``files`` is the number of image files, in the mode that starts from files.
    """

    engines: Mapping[str, Figures]
    best_peer: str | None
    rows: Sequence[Row]
    files: int | None = None


@dataclass(frozen=True)
class Peak:
    """The CPU's INT8 rate, measured in the same rounds, and the share of it that the package reaches."""

    macs_per_s: float
    cpupack_share: Ratio
    rows: Sequence[Row]


@dataclass(frozen=True)
class Comparison:
    """The whole comparison. ``modes`` are ``throughput``, ``latency`` and perhaps ``end_to_end``.

    ``date`` is in ISO 8601, UTC. ``host`` is the result of the runtime's probe of the machine.
    """

    subject: Subject
    options: CompareOptions
    entries: Mapping[str, Entry]
    modes: Mapping[str, Mode]
    peak: Peak | None
    date: str
    host: Mapping[str, Any]

    @property
    def input_text(self) -> str:
        """What every engine gets, in words."""
        job = self.subject.job
        if not job.takes_rows:
            return INPUTS[self.options.input_kind]
        ordered = "; samples of like length together, padding as each engine needs it" if job.open_inputs else ""
        return f"each input by name and of its own dtype, made before the clock starts{ordered}"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison for ``--json``. Infinite decibels stay infinite here."""
        subject, options = self.subject, self.options
        manifest, calibration, evaluation = subject.manifest, subject.calibration, subject.reference.samples
        return {
            "schema": SCHEMA,
            "cpupack": cpupack.__version__,
            "date": self.date,
            "model": {
                "name": manifest.name,
                "version": manifest.version,
                "source": subject.recipe.recipe.model.source,
                "weights": subject.model.weights_origin,
                "random_weights": subject.model.random_weights,
                "input_shape": list(subject.model.input_shape),
                **subject.model.signature.to_dicts(),
                "parameters": subject.model.parameters,
                "macs": subject.model.macs,
                "engine": manifest.target["engine"],
            },
            "data": {
                "calibration": _data(calibration.origin, len(calibration)) if calibration else None,
                "evaluation": _data(evaluation.origin, len(evaluation)),
            },
            "rules": {
                "input": options.input_kind,
                "input_text": self.input_text,
                "cores": subject.job.cores,
                "budget_s": options.budget_s,
                "batch_sizes": sorted(subject.recipe.recipe.tune.batch_sizes),
                "rounds": options.rounds,
                "round_s": options.round_s,
                "settle_s": SETTLE_S,
                "order": "alternating; every process that is not being measured is stopped",
                "ratio": "median of per-round ratios, 95 % bootstrap interval; above 1 cpupack is faster",
            },
            "host": dict(self.host),
            "engines": {
                name: {"input": options.input_of(name), **facts(entry)} for name, entry in self.entries.items()
            },
            **{name: _mode_dict(mode) for name, mode in self.modes.items()},
            "int8_peak": asdict(self.peak) if self.peak else None,
        }


def result(subject: Subject, options: CompareOptions, measured: Measured) -> Comparison:
    """Return the comparison with medians and ratios, computed from the measurements."""
    played, latency = measured.rows["throughput"], measured.rows["latency"]
    modes = {
        "throughput": _mode([row for row in played if row["engine"] != PEAK], _throughput, invert=False),
        "latency": _mode(latency, _p50_ms, invert=True),
    }
    peaks = [row for row in played if row["engine"] == PEAK]
    if "end_to_end" in measured.rows:
        modes["end_to_end"] = _mode(measured.rows["end_to_end"], _throughput, invert=False, files=measured.files)
    return Comparison(
        subject=subject,
        options=options,
        entries=measured.entries,
        modes=modes,
        peak=None if subject.job.open_inputs else _peak(peaks, modes["throughput"].rows, subject.model.macs),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host_probe.describe(engine=subject.manifest.target["engine"]),
    )


def _peak(rows: Sequence[Row], played: Sequence[Row], macs: int) -> Peak | None:
    if not rows:
        return None
    peaks = [_throughput(row) * MACS for row in rows]
    ours = [_throughput(row) * macs for row in played if row["engine"] == OURS]
    return Peak(float(np.median(peaks)), paired_ratio(ours, peaks), rows)


def _mode(rows: Sequence[Row], value: Callable[[Row], float], *, invert: bool, files: int | None = None) -> Mode:
    """Return one mode's medians and ratios. ``invert`` if smaller is better. Ratios above 1 mean cpupack is better."""
    by_engine: dict[str, list[Row]] = {}
    for row in rows:
        by_engine.setdefault(row["engine"], []).append(row)
    ours = [value(row) for row in by_engine[OURS]]
    engines = {}
    for name, own in by_engine.items():
        theirs = [value(row) for row in own]
        ratio = None if name == OURS else paired_ratio(theirs, ours) if invert else paired_ratio(ours, theirs)
        engines[name] = Figures(float(np.median(theirs)), ratio, *(_pooled(own) if invert else ()))
    peers = {name: each.ratio.median for name, each in engines.items() if each.ratio is not None}
    best = min(peers, key=peers.__getitem__) if peers else None
    return Mode(engines, best, [_without_calls(row) for row in rows], files)


def _pooled(rows: Sequence[Row]) -> tuple[float, float, int]:
    """Return p50 and p99 over the calls of all rounds, and their number."""
    calls_ms = np.concatenate([row["calls_ms"] for row in rows])
    p50, p99 = np.percentile(calls_ms, [50, 99])
    return float(p50), float(p99), len(calls_ms)


def _mode_dict(mode: Mode) -> dict[str, Any]:
    """Return a mode for JSON. Fields that a mode or an engine does not have are left out."""
    engines = {
        name: {key: value for key, value in asdict(each).items() if value is not None}
        for name, each in mode.engines.items()
    }
    files = {} if mode.files is None else {"files": mode.files}
    return {"engines": engines, "best_peer": mode.best_peer, "rows": list(mode.rows), **files}


def _data(origin: str, count: int) -> dict[str, Any]:
    return {"origin": origin, "samples": count}


def _throughput(row: Row) -> float:
    return float(row["throughput_per_s"])


def _p50_ms(row: Row) -> float:
    return float(row["latency_ms"]["p50"])


def _without_calls(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "calls_ms"}
