"""The end of a build in words and as JSON: size, accuracy, speed, setting, time of every stage."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from cpupack.artifacts import Contender, VerifyReport
from cpupack.pipeline import BuildResult


def summary_dict(result: BuildResult, times_s: dict[str, float], warnings: list[str]) -> dict[str, Any]:
    """Return the facts of one wheel's build for ``--json``."""
    report = dataclasses.asdict(result.contender.report)
    return {
        "wheel": str(result.wheel.path),
        "sha256": result.wheel.sha256,
        "wheel_bytes": result.wheel.size_bytes,
        "fp32_bytes": result.model.fp32_bytes,
        "int8_bytes": result.contender.scripted.size_bytes,
        "random_weights": result.model.random_weights,
        "target": dataclasses.asdict(result.contender.scripted.target),
        "engines": {each.scripted.target.engine: _engine(each) for each in result.raced}
        | {name: {"failed": why} for name, why in result.failed.items()},
        "report": {key: _finite(value) for key, value in report.items()},
        "plan": dataclasses.asdict(result.plan),
        "stages_s": {title: round(seconds, 3) for title, seconds in times_s.items()},
        "warnings": warnings,
    }


def summary_text(result: BuildResult, times_s: dict[str, float]) -> RenderableType:
    """Return the summary that a build prints for one wheel."""
    model, contender = result.model, result.contender
    target, report = contender.scripted.target, contender.report
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    rows = [
        ("wheel", f"{result.wheel.path.name} ({_mb(result.wheel.size_bytes)})"),
        ("weights", model.weights_origin),
        ("size", f"FP32 {_mb(model.fp32_bytes)} -> INT8 {_mb(contender.scripted.size_bytes)}"),
        ("operators", f"{contender.scripted.int8_operators} INT8, {contender.scripted.fp32_operators} FP32"),
        ("engine", _engine_line(result)),
        ("outputs", _outputs(report)),
        *_accuracy(report),
        *([("speed", _speed(report))] if report.speedup else []),
        ("setting", _setting(result)),
        *[("gate", f"{gate.name} = {gate.bound:g}: measured {gate.measured:.4g}") for gate in report.gates],
        ("time", f"{sum(times_s.values()):.0f} s: " + ", ".join(f"{k} {v:.1f}" for k, v in times_s.items())),
    ]
    if target.isa:
        rows.insert(
            5,
            (
                "runs on",
                f"{target.cpu} with {target.isa} or better, {target.activation_bits}-bit activations",
            ),
        )
    for name, value in rows:
        facts.add_row(name, value)
    return Group("", facts)


def _engine(each: Contender) -> dict[str, Any]:
    return {
        "speedup": each.report.speedup,
        "sqnr_db": _finite(each.report.sqnr_db),
        "passed": each.report.passed,
        "int8_bytes": each.scripted.size_bytes,
    }


def _engine_line(result: BuildResult) -> str:
    chosen = result.contender.scripted.target.engine
    others = []
    for each in result.raced:
        if each.scripted.target.engine != chosen:
            speed = f"{each.report.speedup:.2f}x" if each.report.speedup else ""
            others.append(f"{each.scripted.target.engine} {speed}{'' if each.report.passed else ', a gate failed'}")
    others += [f"{name} failed" for name in result.failed]
    return chosen + (f" (others: {'; '.join(others)})" if others else "")


def _outputs(report: VerifyReport) -> str:
    return (
        f"SQNR {report.sqnr_db:.1f} dB, cosine {report.cosine:.4f}, same top-1 as FP32 {report.agreement:.1%} "
        f"({report.samples} samples, {report.data})"
    )


def _accuracy(report: VerifyReport) -> list[tuple[str, str]]:
    if report.top1_fp32 is None or report.top1_int8 is None or report.top5_fp32 is None or report.top5_int8 is None:
        return []
    drop = (report.top1_fp32 - report.top1_int8) * 100
    return [
        (
            "accuracy",
            f"top-1 FP32 {report.top1_fp32:.2%}, INT8 {report.top1_int8:.2%} (drop {drop:+.2f} points); "
            f"top-5 {report.top5_fp32:.2%}, {report.top5_int8:.2%} on {report.labelled_samples} labelled samples",
        )
    ]


def _speed(report: VerifyReport) -> str:
    row = report.speed_rows[0]
    return (
        f"{report.speedup:.2f}x FP32 torch (batch {row['batch_size']}, {row['threads']} thread"
        f"{'s' if row['threads'] > 1 else ''}, interleaved)"
    )


def _setting(result: BuildResult) -> str:
    plan = result.plan
    if not plan.tuned:
        return f"not tuned: {plan.reason.removeprefix('not tuned: ')}"
    measured = [
        row
        for row in plan.rows
        if (row["threads"], row["instances"], row["batch_size"]) == (plan.threads, plan.instances, plan.batch_size)
    ]
    best = max(measured, key=lambda row: float(row["throughput_per_s"]))
    return (
        f"{plan.instances} instance{'s' if plan.instances != 1 else ''} x {plan.threads} "
        f"thread{'s' if plan.threads != 1 else ''}, batch {plan.batch_size}: "
        f"{best['throughput_per_s']:.0f} samples/s, p99 {best['latency_ms']['p99']:.1f} ms a batch"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
