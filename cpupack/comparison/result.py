"""A comparison as JSON, as a table for a terminal, and as a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

import cpupack
from cpupack.comparison.options import CompareOptions
from cpupack.comparison.rounds import Row
from cpupack.comparison.run import SETTLE_S, Measured, facts
from cpupack.comparison.stats import paired_ratio
from cpupack.comparison.subject import Subject
from cpupack.peers import ENGINES, OURS, PEAK
from cpupack.peers.int8_peak import MACS
from cpupack.runtime.host import probe as host_probe

SCHEMA = 1
_INPUTS = {
    "float32": "float32, normalized before the clock starts, in each engine's own layout",
    "uint8": "uint8 pixels; normalizing them is part of every engine's time",
}


def result(subject: Subject, options: CompareOptions, measured: Measured) -> dict[str, Any]:
    """Return the whole comparison, JSON-ready: what was compared, the rules, every raw round, and the ratios."""
    model, manifest, job = subject.model, subject.manifest, subject.job
    played, latency = measured.rows["throughput"], measured.rows["latency"]
    peak = [row for row in played if row["engine"] == PEAK]
    modes = {
        "throughput": _mode([row for row in played if row["engine"] != PEAK], _throughput, invert=False),
        "latency": _mode([_without_calls(row) for row in latency], _p50_ms, invert=True),
    }
    for name, engine in modes["latency"]["engines"].items():
        engine |= _pooled([row for row in latency if row["engine"] == name])
    if "end_to_end" in measured.rows:
        files = measured.rows["end_to_end"]
        modes["end_to_end"] = _mode(files, _throughput, invert=False) | {"files": measured.files}
    return {
        "schema": SCHEMA,
        "cpupack": cpupack.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "source": subject.recipe.recipe.model.source,
            "weights": model.weights_origin,
            "random_weights": model.random_weights,
            "input_shape": list(model.input_shape),
            "parameters": model.parameters,
            "macs": model.macs,
            "engine": manifest.target["engine"],
        },
        "data": {
            "calibration": _data(subject.calibration.origin, len(subject.calibration)) if subject.calibration else None,
            "evaluation": _data(subject.reference.samples.origin, len(subject.reference.samples)),
        },
        "rules": {
            "input": options.input_kind,
            "input_text": _INPUTS[options.input_kind],
            "cores": job.cores,
            "budget_s": options.budget_s,
            "batch_sizes": sorted(subject.recipe.recipe.tune.batch_sizes),
            "rounds": options.rounds,
            "round_s": options.round_s,
            "settle_s": SETTLE_S,
            "order": "alternating; every process but the one measured is stopped",
            "ratio": "median of per-round ratios, 95 % bootstrap interval; above 1 cpupack is faster",
        },
        "host": host_probe.describe(engine=manifest.target["engine"]),
        "engines": {name: facts(entry) for name, entry in measured.entries.items()},
        **modes,
        "int8_peak": _peak(peak, modes["throughput"]["rows"], model.macs) if peak else None,
    }


def _peak(rows: list[Row], played: list[Row], macs: int) -> dict[str, Any]:
    """Return the CPU's measured INT8 rate in multiply-adds a second and the share of it that our package reaches."""
    peaks = [_throughput(row) * MACS for row in rows]
    ours = [_throughput(row) * macs for row in played if row["engine"] == OURS]
    share = paired_ratio(ours, peaks)
    return {"macs_per_s": float(np.median(peaks)), "cpupack_share": asdict(share), "rows": rows}


def _data(origin: str, count: int) -> dict[str, Any]:
    return {"origin": origin, "samples": count}


def _throughput(row: Row) -> float:
    return float(row["throughput_per_s"])


def _p50_ms(row: Row) -> float:
    return float(row["latency_ms"]["p50"])


def _without_calls(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "calls_ms"}


def _pooled(rows: Sequence[Row]) -> dict[str, Any]:
    """Return p50 and p99 over the calls of all rounds: one round alone has too few for a p99."""
    calls_ms = np.concatenate([row["calls_ms"] for row in rows])
    p50, p99 = np.percentile(calls_ms, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "calls": len(calls_ms)}


def _mode(rows: list[Row], value: Callable[[Row], float], *, invert: bool) -> dict[str, Any]:
    """Return medians and ratios to ours of one mode; ``invert`` where smaller is better. Above 1 ours is better."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["engine"], []).append(value(row))
    ours = values[OURS]
    engines: dict[str, dict[str, Any]] = {}
    for name, theirs in values.items():
        engines[name] = {"median": float(np.median(theirs))}
        if name != OURS:
            ratio = paired_ratio(theirs, ours) if invert else paired_ratio(ours, theirs)
            engines[name]["ratio"] = asdict(ratio)
    peers = {name: engine["ratio"]["median"] for name, engine in engines.items() if name != OURS}
    return {"engines": engines, "best_peer": min(peers, key=peers.__getitem__) if peers else None, "rows": rows}


def format_table(found: dict[str, Any]) -> str:
    """Return the comparison for a terminal, 100 columns wide."""
    model, rules, machine = found["model"], found["rules"], found["host"]
    lines = [f"{model['name']} {model['version']} ({model['source']}) on {rules['cores']} cores of {machine['cpu']}"]
    lines.append(f"input: {rules['input_text']}")
    if model["random_weights"]:
        lines.append("random weights: the speed is real; SQNR and agreement are of meaningless outputs")
    lines += ["", f"{'':<12}{'best setting':<16}{'samples/s':>10}  {'cpupack is faster by':<22}{'SQNR':>9}{'agree':>8}"]
    for name, engine in found["engines"].items():
        lines.append(_throughput_line(name, engine, found["throughput"]["engines"].get(name)))
    lines += ["", f"{'one request, all cores':<28}{'p50 ms':>10}  {'cpupack is faster by':<22}{'p99 ms':>9}"]
    for name, engine in found["engines"].items():
        lines += _latency_lines(name, engine, found["latency"]["engines"].get(name))
    if "end_to_end" in found:
        mode = found["end_to_end"]
        title = f"from {mode['files']} JPEG files"
        lines += ["", f"{title:<28}{'images/s':>10}  cpupack is faster by"]
        for name, row in mode["engines"].items():
            lines.append(f"{name:<28}{row['median']:>10,.1f}  {_ratio_text(row)}".rstrip())
    lines += ["", *_verdict(found)]
    lines += ["", f"faster by: median of {rules['rounds']} paired rounds, 95 % interval; outputs against FP32 on "]
    data = found["data"]["evaluation"]
    lines[-1] += f"{data['samples']} samples ({data['origin']})"
    lines += [f"{name}: {engine['settings']}" for name, engine in found["engines"].items() if engine["settings"]]
    return "\n".join(lines)


def _verdict(found: dict[str, Any]) -> list[str]:
    """Return a line for each mode with the best of the others, and the share of the CPU's INT8 peak."""
    lines = []
    for mode, words in (("throughput", "throughput"), ("latency", "batch-1 p50"), ("end_to_end", "JPEG to output")):
        best = found[mode]["best_peer"] if mode in found else None
        if best is not None:
            lines.append(f"{words}: {_ratio_text(found[mode]['engines'][best])} of the best other engine, {best}")
    if peak := found["int8_peak"]:
        lines.append(
            f"INT8 peak: {peak['cpupack_share']['median']:.0%} of {peak['macs_per_s'] / 1e9:,.0f} G multiply-adds/s, "
            "measured in the same rounds"
        )
    return lines


def _throughput_line(name: str, engine: dict[str, Any], row: dict[str, Any] | None) -> str:
    if row is None:
        return f"{name:<12}{engine['status']}: {engine['reason']}"
    return (
        f"{name:<12}{setting_text(engine['setting']):<16}{row['median']:>10,.1f}  {_ratio_text(row):<22}"
        f"{db_text(engine['sqnr_db']):>9}{engine['agreement']:>8.1%}"
    )


def _latency_lines(name: str, engine: dict[str, Any], row: dict[str, Any] | None) -> list[str]:
    if row is not None:
        return [f"{name:<28}{row['p50_ms']:>10.2f}  {_ratio_text(row):<22}{row['p99_ms']:>9.2f}"]
    # What was out before has its line above.
    return [f"{name:<28}{engine['status']}: {engine['reason']}"] if engine["agreement"] is not None else []


def setting_text(setting: dict[str, int]) -> str:
    """Return ``2x1 batch 8``: instances x threads."""
    return f"{setting['instances']}x{setting['threads']} batch {setting['batch_size']}"


def db_text(value: float) -> str:
    """Return decibels, ``equal`` for infinite ones."""
    return "equal" if math.isinf(value) and value > 0 else f"{value:.1f} dB"


def _ratio_text(row: dict[str, Any]) -> str:
    ratio = row.get("ratio")
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""


def title(name: str) -> str:
    """Return an engine's name as people know it."""
    return ENGINES[name].title


def render_html(found: dict[str, Any]) -> str:
    """Return the comparison as one page without scripts."""
    from cpupack.templates import render

    return render("report/compare.html.j2", found=found, title=title, setting_text=setting_text, db_text=db_text)
