"""The charts of the build's page, from the facts in a wheel. A chart without data is None or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpupack.runtime.manifest import PlanEntry
from cpupack.runtime.pages import charts
from cpupack.runtime.pages.axes import linear
from cpupack.runtime.pages.bench_charts import tuning_charts
from cpupack.runtime.pages.charts import Bar, Point
from cpupack.runtime.pages.shapes import Chart
from cpupack.wheel.facts import megabytes

WORST_LAYERS = 24
HOLD = "all gates hold"

Facts = Mapping[str, Any]


def accuracy_charts(report: Facts) -> list[Chart]:
    """Return top-1 and top-5 of FP32 and INT8 in percent with their 95 % intervals. Empty without labels."""
    found = []
    for key, name in (("top1", "Top-1"), ("top5", "Top-5")):
        fp32, int8 = report.get(f"{key}_fp32"), report.get(f"{key}_int8")
        if fp32 is None or int8 is None:
            continue
        rows = [
            _interval_bar(label, value, report.get(f"{key}_{label.lower()}_ci95"), style)
            for label, value, style in (("FP32", fp32, "bar-quiet"), ("INT8", int8, "bar"))
        ]
        found.append(charts.bars(f"{name} accuracy", rows, "% of the labelled samples", zero=False))
    return found


def _interval_bar(label: str, value: float, interval: Sequence[float] | None, style: str) -> Bar:
    percent = value * 100
    if interval is None:
        return Bar(label, percent, f"{percent:.2f} %", style)
    low, high = (each * 100 for each in interval)
    return Bar(label, percent, f"{percent:.2f} % [{low:.2f}, {high:.2f}]", style, low, high)


def layer_charts(layers: Sequence[Facts]) -> list[Chart]:
    """Return bar charts of the layers with the lowest SQNR, in dB: one by output, one by weights, worst first."""
    found = []
    for key, what in (("output_sqnr_db", "output"), ("weight_sqnr_db", "weights")):
        known = sorted((layer for layer in layers if layer.get(key) is not None), key=lambda layer: float(layer[key]))
        if not known:
            continue
        shown = known[:WORST_LAYERS]
        rows = [Bar(str(layer["name"]), float(layer[key]), f"{layer[key]:.1f}") for layer in shown]
        title = f"SQNR of each layer's {what}"
        if len(known) > len(shown):
            title += f", the {len(shown)} lowest of {len(known)}"
        found.append(charts.bars(title, rows, "dB, higher is closer to FP32"))
    return found


def size_chart(fp32_bytes: int, int8_bytes: int, wheel_bytes: int) -> Chart:
    """Return the sizes of the FP32 weights, the INT8 model and the wheel."""
    sizes = (("FP32 weights", fp32_bytes), ("INT8 model", int8_bytes), ("wheel", wheel_bytes))
    rows = [Bar(name, size / 1e6, megabytes(size), "bar-quiet" if "FP32" in name else "bar") for name, size in sizes]
    return charts.bars("Size", rows, "MB")


def speed_chart(engines: Mapping[str, Facts], chosen: str, speedup: float | None) -> Chart | None:
    """Return a chart of each engine's speedup over FP32, fastest first, or None if no engine was timed."""
    timed = {name: float(each["speedup"]) for name, each in engines.items() if each.get("speedup") is not None}
    if not timed and speedup is not None:
        timed = {chosen: speedup}
    if not timed:
        return None
    rows = [Bar("FP32 torch", 1.0, "1.00", "bar-quiet")]
    for name, value in sorted(timed.items(), key=lambda item: -item[1]):
        passed = engines.get(name, {}).get("passed", True)
        words = "".join([", chosen" * (name == chosen), "" if passed else ", a gate failed"])
        rows.append(Bar(name, value, f"{value:.2f}{words}", "bar" if passed else "bar-bad"))
    return charts.bars("Speed against FP32", rows, "times FP32, same batch and threads", bound=1.0)


def tuning(rows: Sequence[Facts], plan: PlanEntry) -> list[Chart]:
    """Return the heat map and the trade-off chart of the measured settings."""
    chosen = None
    if plan.tuned and plan.threads and plan.instances and plan.batch_size:
        chosen = (plan.threads, plan.instances, plan.batch_size)
    return tuning_charts(rows, chosen)


def recovery_chart(recovery: Facts) -> Chart | None:
    """Return a chart of accuracy and speed of every trial that has both, with the Pareto front and the winner."""
    trials = [
        (number, trial)
        for number, trial in enumerate(recovery.get("trials") or [])
        if trial.get("speedup") is not None and trial.get("sqnr_db") is not None
    ]
    if not trials:
        return None
    points = {
        number: Point(
            float(trial["speedup"]),
            float(trial["sqnr_db"]),
            str(trial["label"]),
            HOLD if trial.get("passed") else "a gate fails",
            f"{trial['label']}: {trial['speedup']:.2f} times FP32, {trial['sqnr_db']:.1f} dB",
            number == recovery.get("winner"),
        )
        for number, trial in trials
    }
    front = [points[number] for number, trial in trials if trial.get("pareto")]
    ordered = sorted(points.values(), key=lambda point: point.series != HOLD)
    x = linear("times FP32", [point.x for point in ordered], zero=False, room=0.06)
    y = linear("SQNR, dB", [point.y for point in ordered], zero=False, room=0.08)
    return charts.scatter("Accuracy against speed of every trial", ordered, x, y, front=front)
