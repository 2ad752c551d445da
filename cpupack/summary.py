"""The summary of a build as text and as JSON: size, accuracy, speed, setting, time of every stage."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from cpupack.accuracy import Interval
from cpupack.artifacts import CalibrationReport, Gate, LayerFact, Recovery, VerifyReport
from cpupack.build_facts import safety_in_words
from cpupack.cache import stage_in_words
from cpupack.console import flow
from cpupack.diagnostics import in_words
from cpupack.pipeline import BuildResult
from cpupack.recovery.table import recovery_table
from cpupack.wheel.facts import megabytes, untimed_reason
from cpupack.wheel.layers import percent

_LABEL_WIDTH = 11
_WIDTH = 80 - 2 - _LABEL_WIDTH
_LISTED_NOTES = 5

Row = tuple[str, ...]
"""A fact: its label, its text, and optionally a style."""


def summary_dict(result: BuildResult) -> dict[str, Any]:
    """Return the facts of one wheel's build for ``--json``: the file, its ``build.json`` and the stages' times."""
    return {
        "wheel": str(result.wheel.path),
        "sha256": result.wheel.sha256,
        "wheel_bytes": result.wheel.size_bytes,
        "distribution": result.wheel.distribution,
        "version": result.wheel.version,
        "platform_tag": result.wheel.platform_tag,
        **result.facts,
        "stages_s": {title: round(seconds, 3) for title, seconds in result.times_s.items()},
        "warnings": list(result.warnings),
        "cached": list(result.cached),
    }


def summary_text(result: BuildResult) -> Text:
    """Return the summary that a build prints for one wheel, in 80 columns unless a name is longer."""
    model, contender = result.model, result.contender
    scripted, report = contender.scripted, contender.report
    rows: list[Row] = [
        ("weights", *_weights(result)),
        *(("calibrated" * (number == 0), line) for number, line in enumerate(_calibration(result.calibration))),
        ("size", f"FP32 {megabytes(model.fp32_bytes)} -> INT8 {megabytes(scripted.size_bytes)}"),
        ("operators", f"{scripted.int8_operators} INT8, {scripted.fp32_operators} FP32{_float_time(contender.layers)}"),
        *(("", note) for note in _notes(contender.quantized.notes)),
        ("engine", _engine_line(result)),
        ("runs on", _runs_on(result)),
        *([("16-bit", safety_in_words(contender.saturation))] if contender.saturation else []),
        *(("outputs" * (number == 0), line) for number, line in enumerate(_outputs(report))),
        *_accuracy(report),
        ("speed", *_speed(report, untimed_reason(model.task.decoder if model.task else None, scripted.target.cpu))),
        *(("gate", _gate(gate)) for gate in report.gates),
        ("setting", _setting(result)),
        *([("cache", f"not made again: {', '.join(map(stage_in_words, result.cached))}")] if result.cached else []),
    ]
    heading = Text.assemble("\n", (result.wheel.path.name, "bold"), f"  {megabytes(result.wheel.size_bytes)}\n")
    return heading + _lines(rows) + _recovery(result.recovery)


def times_text(times_s: Mapping[str, float]) -> Text:
    """Return the wall time of a build and of each of its stages, in seconds."""
    stages = flow((f"{title} {seconds:.1f}" for title, seconds in times_s.items()), _WIDTH)
    return _lines([("time", f"{sum(times_s.values()):.0f} s"), *(("", line) for line in stages)])


def _lines(rows: Iterable[Row]) -> Text:
    """Return aligned lines. A rich table would fill every line with spaces and wrap long names."""
    lines = []
    for label, text, *style in rows:
        for number, part in enumerate(textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)):
            name = label if number == 0 else ""
            lines.append(Text.assemble((f"  {name:<{_LABEL_WIDTH}}", "bold"), (part, style[0] if style else "")))
    return Text("\n").join(lines)


def _recovery(recovery: Recovery | None) -> Text:
    """Return what recovery tried and the TOML to paste. The TOML is not indented, so that it can be copied."""
    if recovery is None:
        return Text()
    trials = len(recovery.trials) - 1
    text = (
        f"the recipe's own settings failed a gate; {trials} trial{'s' if trials > 1 else ''} in "
        f"{recovery.seconds:.0f} s on {recovery.engine}: {recovery.why}"
    )
    if recovery.stopped is not None:
        text += f"; budget_s was spent before {recovery.stopped}"
    marks = "> chosen, * none is better in both SQNR and speed. Paste into the recipe:"
    lines = ["", *(f"  {line}" for line in recovery_table(recovery)), f"    {marks}", "", recovery.toml]
    return Text("\n") + _lines([("recovered", text)]) + Text("\n".join(lines))


def _weights(result: BuildResult) -> tuple[str, ...]:
    if not result.model.random_weights:
        return (result.model.weights_origin,)
    return f"RANDOM, not trained: {result.model.weights_origin}", "bold red"


def _calibration(report: CalibrationReport | None) -> list[str]:
    return in_words(report) if report is not None else []


def _notes(notes: tuple[str, ...]) -> list[str]:
    more = len(notes) - _LISTED_NOTES
    return [*notes[:_LISTED_NOTES], *([f"and {more} more, see `cpupack inspect --layers`"] if more > 0 else [])]


def _float_time(layers: tuple[LayerFact, ...]) -> str:
    """Return what share of the time the layers in FP32 take, "" where there are none or it was not measured."""
    shares = [each.time_share for each in layers if each.precision == "fp32" and each.time_share is not None]
    return f"; layers in FP32 take {percent(sum(shares))} of the time" if shares else ""


def _engine_line(result: BuildResult) -> str:
    chosen = result.contender.scripted.target.engine
    others = []
    for each in result.raced:
        if each.scripted.target.engine != chosen:
            speed = f" {each.report.speedup:.2f}x" if each.report.speedup else ""
            others.append(f"{each.scripted.target.engine}{speed}{'' if each.report.passed else ' but a gate failed'}")
    for slower in result.slower:
        others.append(f"{slower.engine} {slower.speedup:.2f}x" if slower.speedup else f"{slower.engine} not checked")
    others += [f"{name} cannot run it" for name in result.failed]
    return chosen + (f" (others: {', '.join(others)})" if others else "")


def _runs_on(result: BuildResult) -> str:
    target = result.contender.scripted.target
    isa = f" with {target.isa} or better" if target.isa else ""
    return f"{target.cpu}{isa}, {target.activation_bits}-bit activations"


def _outputs(report: VerifyReport) -> tuple[str, str]:
    sqnr = "equal to FP32" if report.sqnr_db == math.inf else f"SQNR {report.sqnr_db:.1f} dB"
    samples = f"on {report.samples} sample{'s' if report.samples != 1 else ''} of {report.data}"
    same = "" if report.agreement is None else f", same top-1 as FP32 {report.agreement:.1%}"
    if report.likeness is not None:
        pixels = "" if report.agreement is None else f", same class for {report.agreement:.1%} of the pixels"
        same = f"{pixels}, {report.likeness_name} {report.likeness:.4f}"
    if report.decisions is not None:
        same += f", same decisions as FP32 {report.decisions:.1%}"
    worst = f" in the worst ({report.worst_output})" if report.worst_output else ""
    return f"{sqnr}{worst}, cosine {report.cosine:.4f}{same}", samples


def _accuracy(report: VerifyReport) -> list[tuple[str, str]]:
    """Return the rows about labels and targets, with 95 % intervals."""
    rows: list[tuple[str, str]] = []
    if (meaning := report.meaning) is not None:
        rows = [("meaning", f"cosine to FP32 {meaning.mean_cosine:.4f}, worst {meaning.worst_cosine:.4f}")]
        if meaning.spearman is not None:
            near = f"recall@{meaning.neighbours} {meaning.recall:.3f}"
            rows.append(("", f"order of similarities: Spearman {meaning.spearman:.4f}, {near}"))
        if meaning.label_recall_fp32 is not None:
            both = f"FP32 {meaning.label_recall_fp32:.3f}, INT8 {meaning.label_recall_int8:.3f}"
            rows.append(("", f"one of its label among the {meaning.neighbours} nearest: {both}"))
    if report.top1_fp32 is not None and report.top5_fp32 is not None:
        rows += [
            ("top-1", _top(report.top1_fp32, report.top1_fp32_ci95, report.top1_int8, report.top1_int8_ci95)),
            ("", _drop(report)),
            ("top-5", _top(report.top5_fp32, report.top5_fp32_ci95, report.top5_int8, report.top5_int8_ci95)),
        ]
    if report.metric is not None:
        rows.append(("metric", f"FP32 {report.metric_fp32:.6g}, INT8 {report.metric_int8:.6g} ({report.metric})"))
    return rows


def _top(fp32: float, fp32_ci95: Interval | None, int8: float | None, int8_ci95: Interval | None) -> str:
    assert int8 is not None
    return f"FP32 {fp32:.2%}{_span(fp32_ci95)}, INT8 {int8:.2%}{_span(int8_ci95)}"


def _span(ci95: Interval | None) -> str:
    return f" [{ci95[0] * 100:.2f}, {ci95[1] * 100:.2f}]" if ci95 else ""


def _drop(report: VerifyReport) -> str:
    assert report.top1_fp32 is not None
    assert report.top1_int8 is not None
    drop = (report.top1_fp32 - report.top1_int8) * 100
    text = "no drop" if drop == 0 else f"drop {drop:.2f} points" if drop > 0 else f"gain {-drop:.2f} points"
    return f"{text}{_span(report.top1_drop_ci95)} on {report.labelled_samples:,} labelled samples (95 % intervals)"


def _speed(report: VerifyReport, untimed: str) -> tuple[str, ...]:
    if report.speedup is None:
        return (f"not measured: {untimed}",)
    row = report.speed_rows[0]
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    text = f"{report.speedup:.2f}x FP32 torch at batch {row['batch_size']}, {threads}, interleaved"
    return (text,) if report.speedup >= 1.0 else (f"{text}: SLOWER", "yellow")


def _gate(gate: Gate) -> str:
    text = f"{gate.name} = {gate.bound:g} holds: {gate.measured:.4g}"
    if gate.ci95 is None or not all(map(math.isfinite, gate.ci95)):
        return text
    shown = "" if gate.proven else ", NOT PROVEN by this many samples"
    return f"{text} [{gate.ci95[0]:.4g}, {gate.ci95[1]:.4g}]{shown}"


def _setting(result: BuildResult) -> str:
    plan = result.plan
    if not plan.tuned:
        return f"not tuned: {plan.reason.removeprefix('not tuned: ')}"
    setting = (plan.threads, plan.instances, plan.batch_size)
    measured = [
        row
        for row in plan.rows
        if "error" not in row and (row["threads"], row["instances"], row["batch_size"]) == setting
    ]
    text = (
        f"{plan.instances} instance{'s' if plan.instances != 1 else ''} x {plan.threads} "
        f"thread{'s' if plan.threads != 1 else ''}, batch {plan.batch_size}"
    )
    if not measured:
        return text
    best = max(measured, key=lambda row: float(row["throughput_per_s"]))
    return f"{text}: {best['throughput_per_s']:,.0f} samples/s, p99 {best['latency_ms']['p99']:.1f} ms"
